//! What a damaged store says, and how a panic inside sled becomes it.

use std::{
    any::Any,
    fmt,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Once,
};

/// A store on the disk that is not what was acknowledged: which file, what is wrong, how to recover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    file: PathBuf,
    what: String,
}

impl Damage {
    pub(crate) fn new(file: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self { file: file.into(), what: what.into() }
    }

    /// The file where it was found.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What is wrong with it.
    pub fn what(&self) -> &str {
        &self.what
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(&self.file)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the store is damaged: {}: {}; to recover, stop every process that uses it and either restore the whole folder {} \
             from a backup, or move that folder away to begin with an empty store (what it remembered must then be made anew)",
            self.file.display(),
            self.what,
            self.folder().display()
        )
    }
}

impl std::error::Error for Damage {}

/// Runs a piece of sled, which panics on some kinds of damage, and turns a panic into a `Damage` of `file`.
///
/// Unwind safety: after a `Damage` the caller stops using the database for good.
pub(crate) fn guarded<T>(file: &Path, work: impl FnOnce() -> T) -> Result<T, Damage> {
    hush_sled();
    panic::catch_unwind(AssertUnwindSafe(work))
        .map_err(|payload| Damage::new(file, format!("the database engine gave up reading it ({})", words(&*payload))))
}

fn words(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("without a reason")
}

/// A caught panic of sled is reported as an error in plain words, so its panic message goes to the log
/// and not over the screen. Every other panic is printed as before.
fn hush_sled() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let in_sled = info.location().is_some_and(|at| at.file().contains("/sled-0."));
            if in_sled {
                tracing::debug!(target: "alcazar::store", "the database engine panicked: {info}");
            } else {
                before(info);
            }
        }));
    });
}
