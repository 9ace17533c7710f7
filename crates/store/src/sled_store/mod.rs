//! The store on sled: one folder, one process, one thread that owns the files.

mod committer;
mod disk;
mod mark;

use std::{
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use tokio::sync::{mpsc, oneshot, watch};

use self::{
    committer::{Command, Committer, Reply},
    disk::Disk,
};
use crate::{Answer, Entry, Expected, Key, Listing, Prefix, Revision, Store, StoreError, Watch, WriteError};

/// Commands that may wait for the thread before callers wait to be queued.
const QUEUE: usize = 4096;

/// A [`Store`] in a folder of the local disk, for one process at a time.
///
/// The folder holds sled's files (`db`, `conf`, `blobs/`, `snap.*`), `acknowledged` (the last acknowledged revision)
/// and `lock`. Back it up as a whole, while nothing has it open. Dropping the store closes it.
#[derive(Debug)]
pub struct SledStore {
    path: PathBuf,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    failed: watch::Receiver<Option<StoreError>>,
}

impl SledStore {
    /// What must be left on its disk, in bytes: with less it writes nothing ([`StoreError::DiskFull`]).
    pub const ROOM: u64 = disk::ROOM;

    /// Opens the store in the folder `path`, making it if there is none, and checks every record of it.
    ///
    /// Blocks on the disk: at a process's start, or inside `spawn_blocking`.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when it is open already, [`StoreError::Damaged`] when it is not what was acknowledged.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let disk = Disk::open(&path)?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let (sender, failed) = watch::channel(None);
        let thread = thread::Builder::new()
            .name("alcazar-store".into())
            .spawn(move || Committer::new(disk, sender).run(queue))
            .map_err(|error| StoreError::io("start a thread for", &path, error))?;
        Ok(Self { path, commands: Some(commands), thread: Some(thread), failed })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the files after what was asked before; when this returns, they may be opened again. What is asked later
    /// gets [`StoreError::Closed`].
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if let Some(commands) = &self.commands
            && commands.send(Command::Close { reply }).await.is_ok()
        {
            // An error means that it was closed already.
            drop(closed.await);
        }
    }

    async fn ask<T, E: From<StoreError>>(&self, command: impl FnOnce(Reply<T, E>) -> Command) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(StoreError::Closed)?;
        commands.send(command(reply)).await.map_err(|_gone| StoreError::Closed)?;
        answer.await.map_err(|_gone| StoreError::Closed)?
    }
}

impl Store for SledStore {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(self.ask(|reply| Command::Get { key: key.clone(), reply }))
    }

    fn put_if<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected,
        value: Vec<u8>,
    ) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(self.ask(move |reply| Command::Put { key: key.clone(), expected, value, reply }))
    }

    fn delete_if<'a>(&'a self, key: &'a Key, expected: Revision) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(self.ask(move |reply| Command::Delete { key: key.clone(), expected, reply }))
    }

    fn page<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> Answer<'a, Result<Listing, StoreError>> {
        Box::pin(self.ask(move |reply| Command::Page { prefix: prefix.clone(), after: after.cloned(), limit, reply }))
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Result<Watch, StoreError>> {
        Box::pin(self.ask(move |reply| Command::Watch { prefix: prefix.clone(), after, reply }))
    }

    fn stopped(&self) -> Answer<'_, StoreError> {
        let mut failed = self.failed.clone();
        Box::pin(async move {
            let found = failed.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
            found.unwrap_or(StoreError::Closed)
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(Self::close(self))
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        // The thread ends when its last sender is gone; waiting for it means that the files are free after the drop.
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the store's thread panicked");
        }
    }
}
