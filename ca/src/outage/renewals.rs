//! The renewals that the store has not heard of: in memory, and before anybody has the certificate, each in a file of its own.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use alcazar_identity::Fingerprint;
use alcazar_service::{
    files::{private_directory, write_atomic},
    process,
};
use thiserror::Error;
use tokio::{sync::Notify, task};

use super::checked;
use crate::records::Pending;

/// What is pending in this replica. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct Renewals(Arc<Held>);

struct Held {
    folder: PathBuf,
    /// By the node's principal.
    pending: RwLock<HashMap<Box<str>, Arc<Pending>>>,
    /// Held while a file is written, by the node: whoever asked may be gone by then, and the next one must not be overtaken.
    turns: [Mutex<()>; TURNS],
    /// Something has become pending.
    wake: Notify,
}

impl Renewals {
    /// Reads what a process before has left in the data folder. Blocks for the disk. A file that is damaged is told and left
    /// where it is: its node attests again, and no other node waits for that.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join(FOLDER);
        let mut pending = HashMap::new();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        for entry in entries.into_iter().flatten() {
            let path = entry?.path();
            // What a crash has left half written was never given to anybody.
            if path.extension().is_some() {
                continue;
            }
            let read = fs::read(&path)?;
            match checked::decode::<Pending>(KIND, &read) {
                Ok(record) => {
                    pending.insert(record.node.principal().into(), Arc::new(record));
                }
                Err(error) => {
                    tracing::error!(target: "alcazar::store", file = %path.display(), reason = %process::chain(&error), "a renewal that the store has not heard of cannot be read: its node must attest again; keep the file as evidence, or remove it");
                }
            }
        }
        let turns = std::array::from_fn(|_| Mutex::default());
        Ok(Self(Arc::new(Held { folder, pending: RwLock::new(pending), turns, wake: Notify::new() })))
    }

    /// How far a node has come.
    pub(crate) fn of(&self, principal: &str) -> Option<Arc<Pending>> {
        self.0.pending.read().unwrap_or_else(PoisonError::into_inner).get(principal).cloned()
    }

    /// Everything that is pending.
    pub(crate) fn all(&self) -> Vec<Arc<Pending>> {
        self.0.pending.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns when something has become pending since the last time.
    pub(crate) async fn more(&self) {
        self.0.wake.notified().await;
    }

    /// Keeps what goes on from `before`, durably; whether that is what is pending still.
    ///
    /// # Errors
    /// When the disk refuses: then nobody may have the certificate.
    pub(crate) async fn keep(&self, before: Option<Arc<Pending>>, next: Pending) -> Result<bool, KeepRenewalError> {
        let held = self.0.clone();
        let kept = task::spawn_blocking(move || held.keep(before.as_deref(), next)).await;
        let kept = kept.map_err(|_ending| KeepRenewalError::Interrupted)??;
        self.0.wake.notify_one();
        Ok(kept)
    }

    /// Forgets what the store has heard of, if it is this still.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn settled(&self, pending: Arc<Pending>) -> Result<(), KeepRenewalError> {
        let held = self.0.clone();
        task::spawn_blocking(move || held.settled(&pending)).await.map_err(|_ending| KeepRenewalError::Interrupted)?
    }
}

impl Held {
    fn keep(&self, before: Option<&Pending>, next: Pending) -> Result<bool, KeepRenewalError> {
        let (path, name) = (self.path(&next), next.node.principal().to_owned());
        let failed = |source| KeepRenewalError::Io { path: path.clone(), source };
        let bytes = checked::encode(KIND, &next).map_err(|source| failed(source.into()))?;
        let _turn = self.turn(&name);
        let present = self.pending.read().unwrap_or_else(PoisonError::into_inner).get(&*name).cloned();
        if present.as_deref() != before {
            return Ok(false);
        }
        if let Err(error) = fs::metadata(&self.folder)
            && error.kind() == io::ErrorKind::NotFound
        {
            private_directory(&self.folder).map_err(failed)?;
            // The folder itself is to be there after a power cut.
            let above = self.folder.parent().unwrap_or(Path::new("."));
            File::open(above).and_then(|above| above.sync_all()).map_err(failed)?;
        }
        write_atomic(&path, &bytes, 0o600).map_err(failed)?;
        self.pending.write().unwrap_or_else(PoisonError::into_inner).insert(name.into(), Arc::new(next));
        Ok(true)
    }

    fn settled(&self, pending: &Pending) -> Result<(), KeepRenewalError> {
        let (path, name) = (self.path(pending), pending.node.principal());
        let failed = |source| KeepRenewalError::Io { path: path.clone(), source };
        let _turn = self.turn(name);
        let present = self.pending.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if present.as_deref() != Some(pending) {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        self.pending.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    fn turn(&self, name: &str) -> Option<std::sync::MutexGuard<'_, ()>> {
        let place = Fingerprint::of(name.as_bytes()).as_bytes().first().map_or(0, |byte| usize::from(*byte) % TURNS);
        self.turns.get(place).map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A node's name can be longer than that of a file.
    fn path(&self, pending: &Pending) -> PathBuf {
        self.folder.join(Fingerprint::of(pending.node.principal().as_bytes()).to_string())
    }
}

/// Why a renewal was not kept.
#[derive(Debug, Error)]
pub(crate) enum KeepRenewalError {
    #[error("the renewal, of which the store cannot be told, cannot be kept in {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("keeping the renewal was interrupted")]
    Interrupted,
}

/// In the data folder.
pub(crate) const FOLDER: &str = "renewals";
const KIND: &str = "renewal";
/// So many nodes at a time wait for the disk.
const TURNS: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use alcazar_store::Revision;

    use super::*;
    use crate::{
        csr::KeyHash,
        records::{Leaf, Lineage, Stored},
    };

    fn pending(node: &str, serial: u32) -> Pending {
        let leaf = |serial: u32| Leaf::sample(serial, KeyHash::of(&serial.to_be_bytes()));
        let base = Stored { record: Lineage::begin(leaf(1), Revision::new(1)), revision: Revision::new(5) };
        let next = base.record.next(leaf(serial), &base.record.latest.mark());
        let node = format!("spiffe://td/node/c/{node}").parse().unwrap();
        Pending::begin(node, &base, next, true, SystemTime::UNIX_EPOCH)
    }

    #[tokio::test]
    async fn what_is_pending_is_there_after_a_start_and_one_of_two_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let renewals = Renewals::open(folder.path()).unwrap();
        let (first, second, other) = (pending("n", 2), pending("n", 3), pending("n", 4));
        assert!(renewals.keep(None, first.clone()).await.unwrap());
        renewals.more().await;
        assert!(!renewals.keep(None, other.clone()).await.unwrap(), "somebody was quicker");
        let held = renewals.of(first.node.principal());
        assert!(renewals.keep(held.clone(), second.clone()).await.unwrap());
        assert!(!renewals.keep(held.clone(), other).await.unwrap());
        assert!(renewals.keep(None, pending("m", 9)).await.unwrap());
        // What was settled is not what is pending now.
        renewals.settled(held.unwrap()).await.unwrap();

        let again = Renewals::open(folder.path()).unwrap();
        assert_eq!(again.of(second.node.principal()).as_deref(), Some(&second));
        assert_eq!(again.all().len(), 2);
        for pending in again.all() {
            again.settled(pending).await.unwrap();
        }
        assert!(again.all().is_empty() && Renewals::open(folder.path()).unwrap().all().is_empty());
    }

    #[tokio::test]
    async fn a_damaged_file_stays_and_the_others_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let renewals = Renewals::open(folder.path()).unwrap();
        for node in ["n", "m"] {
            renewals.keep(None, pending(node, 2)).await.unwrap();
        }
        let damaged = renewals.0.path(&pending("n", 2));
        fs::write(&damaged, "alcazar renewal 1 cut").unwrap();
        fs::write(damaged.with_extension("new"), "half").unwrap();
        let again = Renewals::open(folder.path()).unwrap();
        assert_eq!(again.all().iter().map(|held| held.node.clone()).collect::<Vec<_>>(), [pending("m", 2).node]);
        assert!(damaged.exists());
    }
}
