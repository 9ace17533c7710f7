//! Follows the file: an edit counts at once when it is good, and never when it is not.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alcazar_service::config::ConfigError;
use alcazar_service::process::chain;
use alcazar_service::{Part, Shutdown};
use alcazar_yaml::SourceFile;
use tokio::sync::watch;

use super::Narrowing;
use crate::status::NarrowingStatus;

/// The file of an agent that has one, and what it said when it was last good.
pub(crate) struct NarrowingFile {
    path: PathBuf,
    seen: Option<Fingerprint>,
    narrowing: Arc<Narrowing>,
}

/// Tells one state of the file from another; `None` where there is none.
type Fingerprint = (u64, u64, u64, (i64, i64), (i64, i64));

impl NarrowingFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When it cannot be read, or something in it is wrong: nobody is served by half of a rule.
    pub(crate) fn open(path: &Path) -> Result<Self, ConfigError> {
        // Before it is read: a change in between is noticed.
        let seen = fingerprint(path);
        Ok(Self { path: path.to_owned(), seen, narrowing: Arc::new(read(path)?) })
    }

    pub(crate) fn narrowing(&self) -> Arc<Narrowing> {
        self.narrowing.clone()
    }

    pub(crate) fn status(&self) -> NarrowingStatus {
        NarrowingStatus { file: self.path.clone(), error: None, withheld: Vec::new(), unknown: Vec::new() }
    }

    /// Follows the file until the shutdown. A bad edit is told once, and what was good stays.
    pub(crate) async fn keep(
        mut self,
        out: watch::Sender<Option<Arc<Narrowing>>>,
        status: watch::Sender<Option<NarrowingStatus>>,
        part: Part,
        shutdown: Shutdown,
    ) {
        let mut before = self.seen;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = shutdown.cancelled() => return,
            }
            let now = fingerprint(&self.path);
            // An editor may be at it: what is still changing is looked at next time.
            if std::mem::replace(&mut before, now) != now || now == self.seen {
                continue;
            }
            self.seen = now;
            let error = match read(&self.path) {
                Ok(narrowing) => {
                    tracing::info!(file = %self.path.display(), "the narrowing file was read anew");
                    part.ready();
                    out.send_replace(Some(Arc::new(narrowing)));
                    None
                }
                Err(error) => {
                    let reason = chain(&error);
                    tracing::error!(target: "alcazar::refused", file = %self.path.display(), reason, "the narrowing file cannot be used; what it said before stays in force");
                    part.degraded(format!("{reason}; what it said before stays in force"));
                    Some(reason)
                }
            };
            status.send_modify(|status| {
                if let Some(status) = status {
                    status.error = error;
                }
            });
        }
    }
}

fn read(path: &Path) -> Result<Narrowing, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok(Narrowing::read(&SourceFile::new(path.display().to_string(), text))?)
}

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let file: io::Result<_> = fs::metadata(path);
    let file = file.ok()?;
    let (modified, changed) = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
    Some((file.dev(), file.ino(), file.size(), modified, changed))
}

/// How often the file is looked at. It counts when it was the same at two looks.
const LOOK: Duration = Duration::from_millis(500);
