//! The thread that owns the files: takes all that wait, writes once, syncs once, acknowledges.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use crate::{
    error::AppendError,
    facts::Facts,
    format::{self, FRAME, HEADER, MAX_ENTRY, Mark},
    health::{Health, chain},
    merkle::Hash,
    open::{MarkFile, Opened, create_segment},
    seal::Sealer,
    segment::{entries_file, tree_file},
    state::Shared,
};

/// Told of each step of each group of appends, on the thread that makes it, and of sealed segments, on another: for metrics,
/// and for tests that end a process at one. It must not block.
pub type Observe = Arc<dyn Fn(Step) + Send + Sync>;

/// Makes what was written to a file durable, as `File::sync_data` does: for tests of a disk that fails.
pub type SyncData = Arc<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

/// Who has a hand in appends. Nobody, by default.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Who is told of each step.
    pub observe: Option<Observe>,
    /// What makes a group of entries durable, where that is not the disk itself.
    pub sync: Option<SyncData>,
}

/// A step of a group of appends, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many entries are about to be written.
    Taken {
        /// How many.
        entries: usize,
    },
    /// They are written, and not yet durable.
    Written {
        /// How much was written.
        bytes: usize,
    },
    /// They are durable, and nobody knows it yet.
    Synced {
        /// How long the disk took for the sync.
        took: Duration,
    },
    /// Who appended them knows.
    Acknowledged,
    /// A full segment was sealed, while others may have been appended to the next.
    Sealed,
}

/// What can be asked of the thread.
pub(crate) enum Command {
    Append(Pending),
    /// Answered by the end of the channel.
    Close(oneshot::Sender<()>),
}

/// An entry that waits.
pub(crate) struct Pending {
    pub(crate) entry: Vec<u8>,
    pub(crate) leaf: Hash,
    pub(crate) facts: Facts,
    /// Who asked may have gone away meanwhile; then nobody needs the answer.
    pub(crate) reply: oneshot::Sender<Result<u64, AppendError>>,
}

/// Most entries in one write, so that the first to wait is not kept for ever.
const BATCH: usize = 4096;
/// Most bytes of entries in one write.
const BATCH_BYTES: usize = 4 << 20;
/// How long a group waits for those who were in the one before.
const NAP: Duration = Duration::from_micros(100);
/// How long nothing waits before the mark is synced.
const IDLE: Duration = Duration::from_millis(100);
/// How long after the disk refused it is asked again, though nobody appends: who would is told not to come.
const PROBE: Duration = Duration::from_millis(500);
/// So much must fit before entries are taken again: some of any size.
const PROBE_BYTES: usize = 4 * (MAX_ENTRY + FRAME);

pub(crate) struct Writer {
    shared: Arc<Shared>,
    file: Option<File>,
    mark: MarkFile,
    sealer: Sealer,
    hooks: Hooks,
    /// Goes with the thread, however that ends.
    health: watch::Sender<Health>,
    /// After a failed sync nobody knows what the disk has.
    stopped: Option<Arc<io::Error>>,
    buffer: Vec<u8>,
    /// How many entries the last group had.
    last: usize,
    _lock: File,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        opened: (Option<File>, MarkFile, File),
        hooks: Hooks,
        health: watch::Sender<Health>,
    ) -> Self {
        let (file, mark, lock) = opened;
        let sealer = Sealer::new(shared.clone(), hooks.observe.clone());
        let (stopped, buffer, last) = (None, Vec::new(), 0);
        Self { shared, file, mark, sealer, hooks, health, stopped, buffer, last, _lock: lock }
    }

    /// Works until it is told to close or every handle is gone.
    pub(crate) fn run(mut self, queue: &Receiver<Command>) {
        let mut batch = Vec::new();
        let closing = loop {
            let patience = match (self.mark.is_unsynced(), self.is_refused()) {
                (true, _) => IDLE,
                (false, true) => PROBE,
                (false, false) => Duration::MAX,
            };
            let first = match queue.recv_timeout(patience) {
                Ok(command) => command,
                Err(RecvTimeoutError::Timeout) => {
                    if self.mark.is_unsynced() {
                        self.sync_mark();
                    } else {
                        self.probe();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            let mut closing = gather(Some(first), queue, &mut batch);
            // Who was answered with others a moment ago asks again with them: one sync for all, and no wake-up for each.
            if closing.is_none() && batch.len() < self.last {
                thread::sleep(NAP);
                closing = gather(queue.try_recv().ok(), queue, &mut batch);
            }
            self.last = batch.len();
            self.commit(&mut batch);
            if closing.is_some() {
                break closing;
            }
        };
        if self.mark.is_unsynced() {
            self.sync_mark();
        }
        self.sealer.finish();
        // Down with the files first: who waits for the reply may open them again.
        drop(self);
        drop(closing);
    }

    /// Records them all, in as many writes as there are segments for them.
    fn commit(&mut self, batch: &mut Vec<Pending>) {
        while !batch.is_empty() {
            if let Err(error) = self.make_room() {
                self.refused(&error);
                refuse(batch, &error);
                return;
            }
            let room = self.shared.read().room().min(batch.len());
            self.observe(Step::Taken { entries: room });
            let (part, rest) = batch.split_at(room);
            match self.record(part) {
                Ok(first) => {
                    let numbered = batch.drain(..room).zip(first..);
                    numbered.for_each(|(pending, index)| drop(pending.reply.send(Ok(index))));
                    self.observe(Step::Acknowledged);
                    self.well();
                }
                Err(error) => {
                    self.refused(&error);
                    tracing::error!(%error, entries = rest.len() + part.len(), "entries were not put on record");
                    refuse(batch, &error);
                    return;
                }
            }
            if self.mark.is_overdue() {
                self.sync_mark();
            }
        }
        // Between groups rather than before the next.
        if let Err(error) = self.make_room() {
            tracing::warn!(%error, "the ledger's next segment was not begun; the next append tries again");
        }
    }

    /// Makes entries durable together and publishes them; the number of the first.
    fn record(&mut self, part: &[Pending]) -> Result<u64, AppendError> {
        self.buffer.clear();
        for pending in part {
            format::frame(&mut self.buffer, &pending.entry, &pending.leaf);
        }
        let (path, at) = self.end();
        let Some(file) = &self.file else { return Err(AppendError::Closed) };
        if let Err(error) = file.write_all_at(&self.buffer, at) {
            // Part of it may be there. What was never acknowledged must not stand before what will be.
            let cut = file.set_len(at);
            let refused = AppendError::refused("write", &path, error);
            return Err(match cut {
                Ok(()) if matches!(refused, AppendError::DiskFull { .. }) => refused,
                Ok(()) => self.stop(io::Error::other(refused)),
                Err(error) => self.stop(error),
            });
        }
        self.observe(Step::Written { bytes: self.buffer.len() });
        let before = Instant::now();
        let synced = match &self.hooks.sync {
            Some(sync) => sync(file),
            None => file.sync_data(),
        };
        if let Err(error) = synced {
            // The kernel may have dropped what it could not write, and would say at the next sync that all is well.
            return Err(self.stop(error));
        }
        self.observe(Step::Synced { took: before.elapsed() });
        let (first, mark) = {
            let mut state = self.shared.write();
            let first = state.size();
            part.iter().for_each(|pending| state.push(pending.leaf, pending.entry.len(), &pending.facts));
            (first, Mark { log: state.log, head: state.publish() })
        };
        if let Err(error) = self.mark.write(&mark) {
            // These are durable. But without a mark damage to later ones could look like a tail that nobody was told of.
            tracing::error!(%error, "the ledger's mark of what is acknowledged cannot be written; no more is recorded");
            let _stopped = self.stop(error);
        }
        Ok(first)
    }

    /// Sees to an open segment with room in it.
    fn make_room(&mut self) -> Result<(), AppendError> {
        if let Some(source) = &self.stopped {
            return Err(AppendError::Stopped { source: source.clone() });
        }
        if self.shared.read().room() == 0 {
            self.sealer
                .seal()
                .map_err(|(first, error)| AppendError::refused("write", &tree_file(&self.shared.dir, first), error))?;
            self.file = None;
        }
        if self.file.is_none() {
            let state = self.shared.read();
            let path = entries_file(&self.shared.dir, state.growing.first);
            let file = create_segment(&self.shared.dir, &state);
            let file = file.map_err(|error| AppendError::refused("create", &path, error))?;
            debug_assert_eq!(state.growing.bytes, HEADER as u64, "a segment begins empty");
            drop(state);
            self.file = Some(file);
        }
        Ok(())
    }

    fn sync_mark(&mut self) {
        if let Err(error) = self.mark.sync() {
            tracing::error!(%error, "the ledger's mark of what is acknowledged cannot be synced; no more is recorded");
            let _stopped = self.stop(error);
        }
    }

    fn stop(&mut self, error: io::Error) -> AppendError {
        let source = self.stopped.get_or_insert_with(|| Arc::new(error)).clone();
        self.health.send_if_modified(|health| health.becomes(Health::Stopped(source.to_string())));
        AppendError::Stopped { source }
    }

    /// Entries are taken.
    fn well(&self) {
        if self.stopped.is_none() {
            self.health.send_if_modified(|health| health.becomes(Health::Running));
        }
    }

    /// Entries are not taken for now. What stopped stays so.
    fn refused(&self, error: &AppendError) {
        if self.stopped.is_none() {
            self.health.send_if_modified(|health| health.becomes(Health::Refused(chain(error))));
        }
    }

    fn is_refused(&self) -> bool {
        matches!(*self.health.borrow(), Health::Refused(_))
    }

    /// Looks whether entries can be taken again.
    fn probe(&mut self) {
        match self.make_room().and_then(|()| self.try_room()) {
            Ok(()) => {
                tracing::info!("the ledger's disk takes entries again");
                self.well();
            }
            Err(error) => self.refused(&error),
        }
    }

    /// Whether the file can grow. A process that is killed meanwhile leaves a tail that the next start cuts off.
    fn try_room(&mut self) -> Result<(), AppendError> {
        let (path, at) = self.end();
        let Some(file) = &self.file else { return Err(AppendError::Closed) };
        let written = file.write_all_at(&vec![0; PROBE_BYTES], at);
        if let Err(error) = file.set_len(at) {
            return Err(self.stop(error));
        }
        written.map_err(|error| AppendError::refused("write", &path, error))
    }

    /// Where the next entry goes.
    fn end(&self) -> (PathBuf, u64) {
        let state = self.shared.read();
        (entries_file(&self.shared.dir, state.growing.first), state.growing.bytes)
    }

    fn observe(&self, step: Step) {
        if let Some(observe) = &self.hooks.observe {
            observe(step);
        }
    }
}

impl Opened {
    /// What the writer takes over.
    pub(crate) fn files(self) -> (Option<File>, MarkFile, File) {
        (self.file, self.mark, self.lock)
    }
}

/// Takes all that wait, up to the bounds; who is to be told that the log is closed, where it is to be.
fn gather(
    mut next: Option<Command>,
    queue: &Receiver<Command>,
    batch: &mut Vec<Pending>,
) -> Option<oneshot::Sender<()>> {
    let mut bytes: usize = batch.iter().map(|pending| pending.entry.len()).sum();
    while let Some(command) = next {
        match command {
            Command::Close(reply) => return Some(reply),
            Command::Append(pending) => {
                bytes += pending.entry.len();
                batch.push(pending);
            }
        }
        next = if batch.len() < BATCH && bytes < BATCH_BYTES { queue.try_recv().ok() } else { None };
    }
    None
}

fn refuse(batch: &mut Vec<Pending>, error: &AppendError) {
    batch.drain(..).for_each(|pending| drop(pending.reply.send(Err(error.clone()))));
}
