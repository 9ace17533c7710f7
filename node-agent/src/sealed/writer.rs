use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alcazar_service::files::private_directory;
use alcazar_service::{Part, Shutdown};
use tokio::sync::mpsc;

/// What is to become of the files.
pub(crate) enum Change {
    Put(String, Vec<u8>),
    Remove(String),
    /// All but these go.
    Only(BTreeSet<String>),
}

/// Writes the files, off the loops that make what is in them.
pub(crate) struct Writer {
    directory: PathBuf,
    queue: mpsc::UnboundedReceiver<Change>,
    /// What the disk has not taken yet, the last word on each file.
    pending: BTreeMap<String, Option<Vec<u8>>>,
    only: Option<BTreeSet<String>>,
}

impl Writer {
    pub(super) fn new(directory: PathBuf, queue: mpsc::UnboundedReceiver<Change>) -> Self {
        Self { directory, queue, pending: BTreeMap::new(), only: None }
    }

    /// Runs until the shutdown, and writes what is left then. The part says whether the disk takes it; `unread` is why nothing
    /// came back from it.
    pub(crate) async fn keep(mut self, unread: Option<String>, part: Part, shutdown: Shutdown) {
        match unread {
            Some(reason) => {
                tracing::error!(target: "alcazar::refused", directory = %self.directory.display(), reason, "what workloads held before the restart cannot be read; they wait for the CA");
                part.degraded(format!("cannot read what workloads held before: {reason}"));
            }
            None => part.ready(),
        }
        let mut failed = None;
        loop {
            tokio::select! {
                change = self.queue.recv(), if failed.is_none() => match change {
                    Some(change) => self.note(change),
                    None => return,
                },
                () = tokio::time::sleep(AGAIN), if failed.is_some() => {}
                () = shutdown.cancelled() => {
                    self.drain();
                    self.write().await.unwrap_or_else(|error| tracing::error!(%error, "what workloads hold is not sealed as it was last"));
                    return;
                }
            }
            self.drain();
            let outcome = self.write().await.err().map(|error| error.to_string());
            match (&outcome, &failed) {
                (Some(reason), None) => {
                    tracing::error!(directory = %self.directory.display(), reason, "what workloads hold cannot be sealed; a restart while the CA is away would bring back what is older, and it is tried again");
                }
                (None, Some(_)) => tracing::info!("what workloads hold is sealed again"),
                _ => {}
            }
            match &outcome {
                Some(reason) => part.degraded(reason.as_str()),
                None => part.ready(),
            }
            failed = outcome;
        }
    }

    fn drain(&mut self) {
        while let Ok(change) = self.queue.try_recv() {
            self.note(change);
        }
    }

    fn note(&mut self, change: Change) {
        match change {
            Change::Put(name, bytes) => {
                self.pending.insert(name, Some(bytes));
            }
            Change::Remove(name) => {
                self.pending.insert(name, None);
            }
            Change::Only(names) => {
                self.pending.retain(|name, _| names.contains(name));
                self.only = Some(names);
            }
        }
    }

    /// Writes what is pending; what the disk does not take stays so.
    async fn write(&mut self) -> io::Result<()> {
        let (directory, mut pending, mut only) =
            (self.directory.clone(), std::mem::take(&mut self.pending), self.only.take());
        let writing = tokio::task::spawn_blocking(move || {
            let outcome = apply(&directory, &mut pending, &mut only);
            (pending, only, outcome)
        });
        let (pending, only, outcome) = writing.await.map_err(io::Error::other)?;
        (self.pending, self.only) = (pending, only);
        outcome
    }
}

fn apply(
    directory: &Path,
    pending: &mut BTreeMap<String, Option<Vec<u8>>>,
    only: &mut Option<BTreeSet<String>>,
) -> io::Result<()> {
    private_directory(directory)?;
    // First what makes room.
    if let Some(names) = only {
        for found in fs::read_dir(directory)? {
            let found = found?;
            let name = found.file_name();
            if !name.to_str().is_some_and(|name| names.contains(name)) {
                remove(&found.path())?;
            }
        }
        *only = None;
    }
    while let Some(first) = pending.first_entry() {
        let path = directory.join(first.key());
        match first.get() {
            Some(bytes) => replace(&path, bytes)?,
            None => remove(&path)?,
        }
        first.remove();
    }
    Ok(())
}

/// The old file or the new one, and after a power cut perhaps one that does not open. Not synced: thousands are written in
/// an hour, and each of them can be had again.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut half = path.as_os_str().to_owned();
    half.push(HALF);
    let half = PathBuf::from(half);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&half, path));
    if written.is_err() {
        // It may be what fills the disk.
        drop(fs::remove_file(&half));
    }
    written
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What the name of a file ends with that is being written.
pub(super) const HALF: &str = ".new";
/// How often a disk that took nothing is tried again.
const AGAIN: Duration = Duration::from_secs(5);
