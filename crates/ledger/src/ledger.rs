//! The handle of a log.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use tokio::sync::{oneshot, watch};

use crate::{
    append::{Command, Hooks, Pending, Writer},
    error::{AppendError, OpenError},
    facts::{Describe, Facts},
    format::MAX_ENTRY,
    health::Health,
    merkle::Hash,
    open::{self, Repair},
    segment::Layout,
    state::Shared,
};

/// An append-only log in a folder of the local disk, for one process at a time. Dropping it closes it.
#[derive(Debug)]
pub struct Ledger {
    pub(crate) shared: Arc<Shared>,
    queue: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
    health: watch::Receiver<Health>,
    repairs: Vec<Repair>,
}

/// How a log is opened.
#[derive(Clone)]
pub struct Options {
    /// How what an entry is found by is read from it.
    pub describe: Describe,
    /// The name of the log, where there is none yet: random.
    pub new_log: [u8; 16],
    /// A segment has 2^height entries, 1 to 15, where there is no log yet. [`Options::HEIGHT`] but in tests.
    pub height: u32,
    /// Who has a hand in it.
    pub hooks: Hooks,
}

impl Options {
    /// Segments of 16,384 entries: a tree of 1 MiB, and hundredths of a second to read the open one again.
    pub const HEIGHT: u32 = 14;

    /// Options as they are but in tests.
    pub fn new(describe: Describe, new_log: [u8; 16]) -> Self {
        Self { describe, new_log, height: Self::HEIGHT, hooks: Hooks::default() }
    }
}

/// The name of a log: random, the same for ever, in every file of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a log is at a moment, in one hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How many entries.
    pub size: u64,
    /// The root of the tree of them.
    pub root: Hash,
}

impl Ledger {
    /// Opens the log in `dir`, making it if there is none. What was acknowledged must be there; a tail that was not, and is
    /// torn, is cut off, and said in the log and by [`Ledger::repairs`].
    ///
    /// Blocks on the disk: at a process's start, or inside `spawn_blocking`.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when it is open already, [`OpenError::Damaged`] when it is not what was acknowledged.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let mut opened = open::open(dir, &options)?;
        let repairs = std::mem::take(&mut opened.repairs);
        for repair in &repairs {
            tracing::warn!(%repair, "the ledger was repaired");
        }
        let empty = crate::state::State::new(opened.state.log, opened.state.height);
        let state = std::mem::replace(&mut opened.state, empty);
        let shared = Arc::new(Shared::new(dir, options.describe, state));
        let (sender, health) = watch::channel(Health::Running);
        let writer = Writer::new(shared.clone(), opened.files(), options.hooks, sender);
        let (queue, commands) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("alcazar-ledger".into())
            .spawn(move || writer.run(&commands))
            .map_err(OpenError::io("start a thread for", dir))?;
        Ok(Self { shared, queue: Some(queue), thread: Some(thread), health, repairs })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Its name.
    pub fn id(&self) -> LogId {
        self.shared.read().log
    }

    /// What the start mended.
    pub fn repairs(&self) -> &[Repair] {
        &self.repairs
    }

    /// Whether it takes entries.
    pub fn health(&self) -> Health {
        // Its sender goes with the thread.
        match self.health.has_changed() {
            Ok(_) => self.health.borrow().clone(),
            Err(_) => Health::Stopped("its thread has ended".into()),
        }
    }

    /// Returns when [`Ledger::health`] is another than `known`.
    pub async fn health_other_than(&self, known: &Health) -> Health {
        let mut health = self.health.clone();
        drop(health.wait_for(|health| health != known).await);
        self.health()
    }

    /// How much its files hold, in bytes.
    pub fn bytes(&self) -> u64 {
        let state = self.shared.read();
        let sealed = state.sealed.iter().map(|header| header.bytes + Layout::new(header.height).size());
        sealed.sum::<u64>() + state.in_memory().map(|(_, segment)| segment.bytes).sum::<u64>()
    }

    /// What it is now. All of it is durable.
    pub fn head(&self) -> Head {
        self.shared.read().head
    }

    /// Appends an entry; its number. The entry is durable when this returns, and not before.
    ///
    /// # Errors
    /// When it is not on record, and why. A caller that goes away does not take its entry back.
    pub async fn append(&self, entry: Vec<u8>, facts: Facts) -> Result<u64, AppendError> {
        if entry.is_empty() || entry.len() > MAX_ENTRY {
            return Err(AppendError::Size(entry.len()));
        }
        debug_assert_eq!((self.shared.describe)(&entry), Some(facts), "facts are those of their entry");
        let (reply, answer) = oneshot::channel();
        let leaf = Hash::leaf(&entry);
        let queue = self.queue.as_ref().ok_or(AppendError::Closed)?;
        queue.try_send(Command::Append(Pending { entry, leaf, facts, reply })).map_err(|refused| match refused {
            TrySendError::Full(_) => AppendError::Busy { waiting: QUEUE },
            TrySendError::Disconnected(_) => AppendError::Closed,
        })?;
        answer.await.map_err(|_gone| AppendError::Closed)?
    }

    /// Closes the files after what was appended before; when this returns, they may be opened again.
    pub async fn close(&self) {
        let Some(queue) = self.queue.clone() else { return };
        let (reply, closed) = oneshot::channel();
        // The queue may be full: then this waits for room like nobody else, off the runtime.
        let sent = tokio::task::spawn_blocking(move || queue.send(Command::Close(reply)).is_ok());
        if matches!(sent.await, Ok(true)) {
            drop(closed.await);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // The thread ends when its last sender is gone; waiting for it means that the files are free after the drop.
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(dir = %self.shared.dir.display(), "the ledger's thread panicked");
        }
    }
}

/// Entries that may wait for the disk. Who comes when there are so many is refused.
const QUEUE: usize = 8192;
