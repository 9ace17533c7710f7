//! The thread that owns the files: takes all that wait, decides each, makes them durable together, replies.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::{mpsc, oneshot, watch};

use super::disk::Disk;
use crate::{
    Entry, Event, Expected, Feed, Key, Listing, Prefix, Revision, StoreError, Watch, WriteError, store::MAX_VALUE,
};

/// Where an answer goes. Who asked may have gone away meanwhile; then nobody needs it.
pub(super) type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// What can be asked of the thread.
pub(super) enum Command {
    Get {
        key: Key,
        reply: Reply<Option<Entry>, StoreError>,
    },
    Put {
        key: Key,
        expected: Expected,
        value: Vec<u8>,
        reply: Reply<Revision, WriteError>,
    },
    Delete {
        key: Key,
        expected: Revision,
        reply: Reply<Revision, WriteError>,
    },
    Page {
        prefix: Prefix,
        after: Option<Key>,
        limit: usize,
        reply: Reply<Listing, StoreError>,
    },
    Watch {
        prefix: Prefix,
        after: Revision,
        reply: Reply<Watch, StoreError>,
    },
    /// Answered by the end of the channel.
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// Most commands in one commit, so that the first to wait is not kept for ever.
const BATCH: usize = 1024;
/// Most value bytes in one commit.
const BATCH_BYTES: usize = 4 << 20;
/// Unread events a watcher may have.
const WATCH_CAPACITY: usize = 1024;

pub(super) struct Committer {
    disk: Disk,
    /// After a failure nothing more is done: what is in memory may no longer be what is on the disk.
    stopped: Option<StoreError>,
    /// Says so to whoever waits for it. Goes with the thread, however that ends.
    failed: watch::Sender<Option<StoreError>>,
    /// Whether the last commit found no room.
    full: bool,
    pending: Pending,
    history: History,
    feeds: Vec<Feed>,
}

/// Told how the commit went.
type Outcome = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What was decided since the last commit and waits for the next.
#[derive(Default)]
struct Pending {
    revision: Revision,
    changes: BTreeMap<Key, Option<Entry>>,
    events: Vec<Event>,
    bytes: usize,
    replies: Vec<Outcome>,
}

impl Committer {
    pub(super) fn new(disk: Disk, failed: watch::Sender<Option<StoreError>>) -> Self {
        let revision = disk.revision();
        let pending = Pending { revision, ..Pending::default() };
        Self {
            disk,
            stopped: None,
            failed,
            full: false,
            pending,
            history: History { floor: revision, ..History::default() },
            feeds: Vec::new(),
        }
    }

    /// Works until it is told to close or every handle is gone.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut closing = None;
        while let Some(first) = commands.blocking_recv() {
            let mut next = Some(first);
            let mut taken = 0;
            while let Some(command) = next {
                if let Command::Close { reply } = command {
                    closing = Some(reply);
                    break;
                }
                self.take(command);
                taken += 1;
                let room = taken < BATCH && self.pending.bytes < BATCH_BYTES;
                next = if room { commands.try_recv().ok() } else { None };
            }
            self.commit();
            if closing.is_some() {
                break;
            }
        }
        // Down with the files first: who waits for the reply may open them again.
        drop(self);
        drop(closing);
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Get { key, reply } => {
                let found = self.running().and_then(|()| self.current(&key));
                // What it sees may be of this batch: the answer waits until that is durable.
                self.pending.replies.push(Box::new(move |durable| drop(reply.send(durable.and(found)))));
            }
            Command::Put { key, expected, value, reply } => {
                let done = self.put(key, expected, value);
                self.after_commit(done, reply);
            }
            Command::Delete { key, expected, reply } => {
                let done = self.delete(key, expected);
                self.after_commit(done, reply);
            }
            Command::Page { prefix, after, limit, reply } => {
                self.commit();
                drop(reply.send(self.running().and_then(|()| self.disk.page(&prefix, after.as_ref(), limit))));
            }
            Command::Watch { prefix, after, reply } => {
                self.commit();
                drop(reply.send(self.running().map(|()| self.watch(prefix, after))));
            }
            Command::Close { reply } => drop(reply),
        }
    }

    fn after_commit(&mut self, done: Result<Revision, WriteError>, reply: Reply<Revision, WriteError>) {
        self.pending.replies.push(Box::new(move |durable| {
            drop(reply.send(match durable {
                Ok(()) => done,
                Err(error) => Err(error.into()),
            }));
        }));
    }

    fn put(&mut self, key: Key, expected: Expected, value: Vec<u8>) -> Result<Revision, WriteError> {
        self.running()?;
        if value.len() > MAX_VALUE {
            return Err(WriteError::TooLarge { key, size: value.len() });
        }
        self.check(&key, expected)?;
        let revision = self.pending.revision.next();
        self.pending.bytes += value.len();
        let entry = Entry::new(key.clone(), value, revision);
        self.pending.record(revision, key, Some(entry.clone()), Event::Put(entry));
        Ok(revision)
    }

    fn delete(&mut self, key: Key, expected: Revision) -> Result<Revision, WriteError> {
        self.running()?;
        self.check(&key, Expected::At(expected))?;
        let revision = self.pending.revision.next();
        self.pending.record(revision, key.clone(), None, Event::Deleted { key, revision });
        Ok(revision)
    }

    fn check(&self, key: &Key, expected: Expected) -> Result<(), WriteError> {
        let found = self.current(key)?.map(|entry| entry.revision());
        let as_expected = match expected {
            Expected::Absent => found.is_none(),
            Expected::At(revision) => found == Some(revision),
        };
        if as_expected { Ok(()) } else { Err(WriteError::Conflict { key: key.clone(), found }) }
    }

    fn current(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        match self.pending.changes.get(key) {
            Some(pending) => Ok(pending.clone()),
            None => self.disk.get(key),
        }
    }

    fn running(&self) -> Result<(), StoreError> {
        match &self.stopped {
            None => Ok(()),
            Some(error) => Err(StoreError::Stopped { source: std::sync::Arc::new(error.clone()) }),
        }
    }

    fn commit(&mut self) {
        let revision = self.pending.revision;
        let Pending { changes, events, replies, .. } =
            std::mem::replace(&mut self.pending, Pending { revision, ..Pending::default() });
        let durable = if changes.is_empty() { Ok(()) } else { self.disk.commit(&changes, revision) };
        match &durable {
            Ok(()) => {
                if !events.is_empty() && std::mem::take(&mut self.full) {
                    tracing::info!("the store has room again");
                }
                for event in &events {
                    self.feeds.retain(|feed| feed.offer(event));
                }
                self.history.extend(events);
            }
            Err(error @ StoreError::DiskFull { .. }) => {
                // What was decided is forgotten.
                self.pending.revision = self.disk.revision();
                if !std::mem::replace(&mut self.full, true) {
                    tracing::error!(%error, "nothing is written to the store until there is room again");
                }
            }
            Err(error) => {
                tracing::error!(error = %crate::error::chain(error), "the store stopped: a commit failed");
                self.stopped = Some(error.clone());
                self.failed.send_replace(Some(error.clone()));
            }
        }
        for reply in replies {
            reply(durable.clone());
        }
    }

    fn watch(&mut self, prefix: Prefix, after: Revision) -> Watch {
        // Whoever watches and goes, again and again, must not pile up in a store where nothing changes.
        self.feeds.retain(|feed| !feed.is_closed());
        let (feed, watch) = Watch::channel(prefix, WATCH_CAPACITY);
        let Some(past) = self.history.since(after) else {
            feed.lag();
            return watch;
        };
        if past.into_iter().all(|event| feed.offer(event)) {
            self.feeds.push(feed);
        }
        watch
    }
}

impl Pending {
    fn record(&mut self, revision: Revision, key: Key, change: Option<Entry>, event: Event) {
        self.revision = revision;
        self.changes.insert(key, change);
        self.events.push(event);
    }
}

/// The last events, for watchers that begin a little in the past.
#[derive(Default)]
struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// Everything after this revision is here.
    floor: Revision,
}

impl History {
    const EVENTS: usize = 4096;
    const BYTES: usize = 2 << 20;

    fn extend(&mut self, events: Vec<Event>) {
        self.bytes += events.iter().map(weight).sum::<usize>();
        self.events.extend(events);
        while self.events.len() > Self::EVENTS || self.bytes > Self::BYTES {
            let Some(event) = self.events.pop_front() else { break };
            self.bytes -= weight(&event);
            self.floor = event.revision();
        }
    }

    /// The events after `after`; `None` when some of them are forgotten.
    fn since(&self, after: Revision) -> Option<impl IntoIterator<Item = &Event>> {
        let first = self.events.partition_point(|event| event.revision() <= after);
        (after >= self.floor).then(|| self.events.range(first..))
    }
}

fn weight(event: &Event) -> usize {
    let value = match event {
        Event::Put(entry) => entry.value().len(),
        Event::Deleted { .. } => 0,
    };
    event.key().as_str().len() + value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_that_have_gone_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut committer = Committer::new(Disk::open(folder.path()).unwrap(), watch::Sender::default());
        let kept = committer.watch(Prefix::all(), Revision::default());
        for _ in 0..100 {
            drop(committer.watch(Prefix::all(), Revision::default()));
        }
        assert!(committer.feeds.len() <= 2, "{}", committer.feeds.len());
        drop(kept);
    }
}
