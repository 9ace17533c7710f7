//! Following changes: what a watcher reads, and what a back end feeds it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use thiserror::Error;
use tokio::sync::mpsc;

use crate::{Entry, Key, Prefix, Revision};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A value was put.
    Put(Entry),
    /// A key was deleted.
    Deleted {
        /// The key.
        key: Key,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => entry.key(),
            Self::Deleted { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision(),
            Self::Deleted { revision, .. } => *revision,
        }
    }
}

/// Why a watch ended. Events come in order and without a gap up to that point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WatchError {
    /// Events were lost between the last one and now: list again, then watch from the listing's revision.
    #[error("the watch fell behind the store; list again")]
    Lagged,
    /// The store was closed.
    #[error("the store was closed")]
    Closed,
}

/// The reading end of a watch.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
    lagged: Arc<AtomicBool>,
}

impl Watch {
    /// A watch and the end that feeds it, with room for `capacity` events that are not yet read.
    pub fn channel(prefix: Prefix, capacity: usize) -> (Feed, Self) {
        let (sender, events) = mpsc::channel(capacity.max(1));
        let lagged = Arc::new(AtomicBool::new(false));
        (Feed { prefix, sender, lagged: lagged.clone() }, Self { events, lagged })
    }

    /// The next change; waits for it. Cancel safe.
    ///
    /// # Errors
    /// When the watch has ended; it stays ended.
    pub async fn next(&mut self) -> Result<Event, WatchError> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None if self.lagged.load(Ordering::Acquire) => Err(WatchError::Lagged),
            None => Err(WatchError::Closed),
        }
    }
}

/// The feeding end of a watch, held by a back end.
#[derive(Debug)]
pub struct Feed {
    prefix: Prefix,
    sender: mpsc::Sender<Event>,
    lagged: Arc<AtomicBool>,
}

impl Feed {
    /// Passes an event on if it is under the prefix. `false` when the watch is over: drop the feed then.
    #[must_use]
    pub fn offer(&self, event: &Event) -> bool {
        if !self.prefix.contains(event.key()) {
            return !self.sender.is_closed();
        }
        match self.sender.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lag();
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Whether nobody reads any more: drop the feed then.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until nobody reads any more.
    #[cfg(any(feature = "etcd", feature = "kubernetes"))]
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Says that events are missing from here on. Drop the feed then.
    pub fn lag(&self) {
        self.lagged.store(true, Ordering::Release);
    }
}
