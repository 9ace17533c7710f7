//! What was issued, while the store was away, to those who never report: a rotation that does not know of it would leave them
//! behind.
//!
//! It is kept on this replica's disk before anything is issued, and noted in the store before this replica says that it is
//! there: a rotation waits for a replica that is silent, unless a person forces it past.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use alcazar_service::{files::write_atomic, process};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::task;

use super::checked;
use crate::rotation::{Note, Unreported};

/// The notes that the store has not heard of. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct Owed(Arc<Held>);

struct Held {
    path: PathBuf,
    notes: Mutex<Notes>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    certificates: Option<Unreported>,
    tokens: Option<Unreported>,
}

impl Notes {
    fn of(&mut self, what: Note) -> &mut Option<Unreported> {
        match what {
            Note::Certificates => &mut self.certificates,
            Note::Tokens => &mut self.tokens,
        }
    }
}

impl Owed {
    /// Reads what a process before has left in the data folder. Blocks for the disk. A file that is damaged stands for the
    /// `worst` that it can have said.
    pub(crate) fn open(data_dir: &Path, worst: Unreported) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let notes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Notes::default(),
            bytes => checked::decode(KIND, &bytes?).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), reason = %process::chain(&error), "what was issued while the store was away cannot be read; the most that it can be is noted");
                Notes { certificates: Some(worst), tokens: Some(worst) }
            }),
        };
        Ok(Self(Arc::new(Held { path, notes: Mutex::new(notes) })))
    }

    /// What the store has not heard of.
    pub(crate) fn of(&self, what: Note) -> Option<Unreported> {
        *self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).of(what)
    }

    /// Keeps, durably, that something is issued then, until then; what is owed now.
    ///
    /// # Errors
    /// When the disk refuses: then it must not be issued.
    pub(crate) async fn owe(&self, what: Note, issued: SystemTime, until: SystemTime) -> Result<Unreported, OwedError> {
        let held = self.0.clone();
        task::spawn_blocking(move || {
            let mut notes = held.notes.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *notes.of(what);
            // Most of the time it is kept already.
            if let Some(kept) = before.filter(|kept| kept.covers(issued, until)) {
                return Ok(kept);
            }
            let next = Unreported::ahead(before, issued, until);
            let mut all = *notes;
            *all.of(what) = Some(next);
            let failed = |source| OwedError::Io { path: held.path.clone(), source };
            let bytes = checked::encode(KIND, &all).map_err(|source| failed(source.into()))?;
            write_atomic(&held.path, &bytes, 0o600).map_err(failed)?;
            *notes = all;
            Ok(next)
        })
        .await
        .map_err(|_ending| OwedError::Interrupted)?
    }

    /// The store has heard of this much.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn paid(&self, what: Note, paid: Unreported) -> Result<(), OwedError> {
        let held = self.0.clone();
        task::spawn_blocking(move || {
            let mut notes = held.notes.lock().unwrap_or_else(PoisonError::into_inner);
            if *notes.of(what) != Some(paid) {
                return Ok(());
            }
            *notes.of(what) = None;
            let failed = |source| OwedError::Io { path: held.path.clone(), source };
            if *notes == Notes::default() {
                return match fs::remove_file(&held.path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                    _ => Ok(()),
                };
            }
            let bytes = checked::encode(KIND, &*notes).map_err(|source| failed(source.into()))?;
            write_atomic(&held.path, &bytes, 0o600).map_err(failed)
        })
        .await
        .map_err(|_ending| OwedError::Interrupted)?
    }
}

/// Why a note was not kept.
#[derive(Debug, Error)]
pub(crate) enum OwedError {
    /// The disk refused.
    #[error("what is issued while the store is away cannot be noted in {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// The process is ending.
    #[error("noting what is issued was interrupted")]
    Interrupted,
}

/// In the data folder.
pub(crate) const FILE: &str = "unreported";
const KIND: &str = "notes";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[tokio::test]
    async fn what_is_owed_is_there_after_a_start_until_it_is_paid() {
        let folder = tempfile::tempdir().unwrap();
        let worst = Unreported { until: at(9000), longest_seconds: 5000 };
        let owed = Owed::open(folder.path(), worst).unwrap();
        let first = owed.owe(Note::Certificates, at(1000), at(1400)).await.unwrap();
        assert!(first.covers(at(1000), at(1400)) && first.covers(at(1100), at(1500)), "it runs ahead");
        assert_eq!(owed.owe(Note::Certificates, at(1100), at(1500)).await.unwrap(), first);
        let tokens = owed.owe(Note::Tokens, at(1000), at(1040)).await.unwrap();

        let again = Owed::open(folder.path(), worst).unwrap();
        assert_eq!((again.of(Note::Certificates), again.of(Note::Tokens)), (Some(first), Some(tokens)));
        let more = again.owe(Note::Certificates, at(2000), at(2400)).await.unwrap();
        again.paid(Note::Certificates, first).await.unwrap();
        assert_eq!(again.of(Note::Certificates), Some(more), "more is owed since");
        again.paid(Note::Certificates, more).await.unwrap();
        again.paid(Note::Tokens, tokens).await.unwrap();
        assert!(!folder.path().join(FILE).exists());

        fs::write(folder.path().join(FILE), "damaged").unwrap();
        assert_eq!(Owed::open(folder.path(), worst).unwrap().of(Note::Certificates), Some(worst));
    }
}
