//! Roots in files that their owners exchange: read when they change, and a file that cannot be used leaves what was read before.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use alcazar_identity::Fingerprint;
use alcazar_service::{Part, Shutdown, process};

use super::CallersError;
use crate::ca::Ca;

/// What a file of roots amounts to.
pub(crate) struct RootsFile<T> {
    path: PathBuf,
    parse: Parse<T>,
    held: RwLock<Held<T>>,
}

/// What the bytes of a file amount to.
type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, CallersError> + Send + Sync>;

struct Held<T> {
    print: Fingerprint,
    roots: Arc<T>,
}

impl<T> RootsFile<T> {
    /// Reads the file. Blocks for the disk.
    pub(super) fn open(
        path: &Path,
        parse: impl Fn(&[u8]) -> Result<T, CallersError> + Send + Sync + 'static,
    ) -> Result<Self, CallersError> {
        let pem = read(path)?;
        let held = Held { print: Fingerprint::of(&pem), roots: Arc::new(parse(&pem)?) };
        Ok(Self { path: path.into(), parse: Box::new(parse), held: RwLock::new(held) })
    }

    /// What was read last, of what could be used.
    pub(super) fn roots(&self) -> Arc<T> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).roots.clone()
    }
}

/// A file that is looked at now and then.
pub(crate) trait Reread: Send + Sync {
    /// Where it is.
    fn path(&self) -> &Path;

    /// Takes over what has changed; whether anything has. Blocks for the disk.
    fn look(&self) -> Result<bool, CallersError>;
}

impl<T: Send + Sync> Reread for RootsFile<T> {
    fn path(&self) -> &Path {
        &self.path
    }

    fn look(&self) -> Result<bool, CallersError> {
        let pem = read(&self.path)?;
        let print = Fingerprint::of(&pem);
        if self.held.read().unwrap_or_else(PoisonError::into_inner).print == print {
            return Ok(false);
        }
        let roots = Arc::new((self.parse)(&pem)?);
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Held { print, roots };
        Ok(true)
    }
}

impl Ca {
    /// Takes over roots of callers that are exchanged on the disk, until the end. One that cannot be used is told in the log and
    /// in the health of `part`.
    pub(crate) async fn follow_roots_of_callers(self, part: Part, shutdown: Shutdown) {
        let mut said = BTreeMap::new();
        loop {
            for file in self.0.callers.files() {
                let path = file.path().to_owned();
                let Ok(outcome) = tokio::task::spawn_blocking(move || file.look()).await else { return };
                match outcome {
                    Ok(changed) => {
                        if said.remove(&path).is_some() || changed {
                            tracing::info!(target: "alcazar::reload", file = %path.display(), "the roots of callers are as the file has them");
                        }
                    }
                    Err(error) => {
                        let reason = process::chain(&error);
                        if said.get(&path) != Some(&reason) {
                            tracing::error!(target: "alcazar::reload", file = %path.display(), reason, "roots of callers cannot be used; those from before go on");
                        }
                        said.insert(path, reason);
                    }
                }
            }
            match said.is_empty() {
                true => part.ready(),
                false => {
                    let reasons: Vec<_> = said.values().map(String::as_str).collect();
                    part.degraded(format!("{}; the roots from before go on", reasons.join("; ")));
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CallersError> {
    fs::read(path).map_err(|source| CallersError::File { path: path.into(), source })
}

const LOOK: Duration = Duration::from_secs(2);
