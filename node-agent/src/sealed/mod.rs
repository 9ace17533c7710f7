//! What workloads hold, over a restart of the agent: sealed files, for whoever asks for them (`seal` in `agent.yaml`).
//!
//! ```text
//!   Workloads ──what changed──▶ Sealed ──seal──▶ Writer ──▶ <dataDir>/sealed/<SHA-256 of the registration's id>
//!                                 ▲                            one file for each registration: it, and its certificate and key
//!   at the start: open, check ────┘
//! ```
//!
//! Invariants:
//! - A file is good for the node and the registration that it was sealed for, and nowhere else.
//! - What comes back is held against what is believed and what is revoked now, as a reply of the CA would be.
//! - Once the CA has spoken, nothing is kept of what it does not register.
//! - A folder that cannot be used is as good as an empty one, and is said.
//! - A file that a crash has cut is no file. It is not synced: what is lost is asked for again.

mod entry;
mod seal;
mod writer;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use alcazar_identity::{Fingerprint, Revocations, SpiffeId, TrustBundles};
use alcazar_service::files::private_directory;
use alcazar_service::process::chain;
use tokio::sync::mpsc;

use entry::EntryError;
pub(crate) use entry::{Entry, Restored};
pub use seal::SealKeyError;
pub(crate) use seal::{Seal, read_key};
pub(crate) use writer::Writer;

use crate::registration::Registration;
use writer::Change;

/// The sealed files of one node.
pub(crate) struct Sealed {
    directory: PathBuf,
    seal: Seal,
    changes: mpsc::UnboundedSender<Change>,
}

impl Sealed {
    /// The files within a data directory, and who writes them.
    pub(crate) fn open(data_dir: &Path, seal: Seal) -> (Self, Writer) {
        let directory = data_dir.join("sealed");
        let (changes, queue) = mpsc::unbounded_channel();
        let writer = Writer::new(directory.clone(), queue);
        (Self { directory, seal, changes }, writer)
    }

    /// What an earlier run has left for this node, as far as it is good now. What is not is said.
    ///
    /// # Errors
    /// When the folder cannot be used. Whoever is served without it is better off than by no agent.
    pub(crate) fn load(
        &self,
        node: &SpiffeId,
        bundles: &TrustBundles,
        revocations: &Arc<Revocations>,
        now: SystemTime,
    ) -> io::Result<Vec<Restored>> {
        private_directory(&self.directory)?;
        let mut all = Vec::new();
        for found in std::fs::read_dir(&self.directory)? {
            let path = found?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            // Half written when the agent was killed.
            if name.ends_with(writer::HALF) {
                discard(&path);
                continue;
            }
            let read = std::fs::read(&path).map_err(EntryError::Read);
            match read
                .and_then(|bytes| self.seal.open(name, &bytes))
                .and_then(|plain| Entry::decode(&plain, name, node))
            {
                Ok(entry) => all.push(entry.restore(bundles, revocations, now)),
                Err(error) => {
                    tracing::error!(target: "alcazar::refused", file = %path.display(), reason = chain(&error), "a sealed file cannot be used, and is removed; its workload waits for the CA");
                    discard(&path);
                }
            }
        }
        Ok(all)
    }

    /// Keeps what a registration holds now.
    pub(crate) fn put(&self, entry: &Entry) {
        let name = name_of(entry.registration().id());
        match entry.encode().map_err(seal::SealError::from).and_then(|plain| self.seal.seal(&name, plain)) {
            Ok(bytes) => self.send(Change::Put(name, bytes)),
            Err(error) => tracing::error!(
                registration = entry.registration().id(),
                reason = chain(&error),
                "what a workload holds cannot be sealed; a restart while the CA is away would leave it without"
            ),
        }
    }

    /// Keeps nothing of a registration.
    pub(crate) fn remove(&self, id: &str) {
        self.send(Change::Remove(name_of(id)));
    }

    /// Keeps nothing but what is of these.
    pub(crate) fn only<'a>(&self, all: impl Iterator<Item = &'a Registration>) {
        let names: BTreeSet<_> = all.map(|registration| name_of(registration.id())).collect();
        self.send(Change::Only(names));
    }

    fn send(&self, change: Change) {
        // The writer ends with the process alone.
        drop(self.changes.send(change));
    }
}

/// What stays is in nobody's way: it opens no better the next time.
fn discard(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(file = %path.display(), %error, "a file that is of no use cannot be removed");
    }
}

/// The name of a registration's file: no id is a path, or too long for one.
fn name_of(id: &str) -> String {
    Fingerprint::of(id.as_bytes()).to_string()
}

#[cfg(test)]
mod tests;
