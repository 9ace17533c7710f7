//! What can go wrong.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;

use crate::{Damage, Key, Revision, record::DecodeRecordError, store::MAX_VALUE};

/// Why the store as a whole did not answer.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// Another process, or another part of this one, has it open.
    #[error("the store {} is already in use by another process; one process at a time may open it", path.display())]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// It is not what was acknowledged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The disk refused. Whether a write that got this error is durable is unknown.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the disk said.
        source: Arc<io::Error>,
    },
    /// There is no room on its disk. Nothing was written; what is there is read, and it goes on by itself when there is room.
    #[error(
        "there is no room for the store {}: {free} bytes are left on its disk, and it writes nothing with less than {needed}",
        path.display()
    )]
    DiskFull {
        /// Its folder.
        path: PathBuf,
        /// How much is left, in bytes.
        free: u64,
        /// How much it wants to see left.
        needed: u64,
    },
    /// It stopped after an earlier failure and will not answer until it is opened again.
    #[error("the store stopped after an earlier failure and must be opened again")]
    Stopped {
        /// The failure.
        source: Arc<StoreError>,
    },
    /// A server that keeps the store refused, or could not be reached. Whether a write that got this error was made is unknown.
    #[error("cannot {doing} in the store at {server}")]
    Remote {
        /// What was being done, as a verb.
        doing: &'static str,
        /// Which server.
        server: String,
        /// What it said.
        source: RemoteError,
    },
    /// A server that keeps the store did not answer in time. Whether a write that got this error was made is unknown.
    #[error("the store at {server} did not answer within {after:?} when asked to {doing}")]
    Silent {
        /// What was being done, as a verb.
        doing: &'static str,
        /// Which server.
        server: String,
        /// How long was waited.
        after: Duration,
    },
    /// A server that keeps the store did not answer somebody else a moment ago, and nobody waits for it until it does. Whether
    /// a write that got this error was made is unknown.
    #[error("the store is away, and is not waited for until it answers again")]
    Away {
        /// What was found then.
        source: Arc<StoreError>,
    },
    /// A record that was altered where the server keeps it.
    #[error(
        "{place} holds a record that cannot be used; put back what was there, or remove it: what it remembered must then be made anew"
    )]
    Record {
        /// Where it stands.
        place: String,
        /// What is wrong with it.
        source: DecodeRecordError,
    },
    /// Something that no store wrote stands where the store is.
    #[error(
        "{place} stands where the store keeps its records, and is none; remove it, or give the store another place"
    )]
    Foreign {
        /// Where it stands.
        place: String,
    },
    /// It was closed.
    #[error("the store is closed")]
    Closed,
}

/// What a server said, in the terms of its own client.
pub type RemoteError = Arc<dyn std::error::Error + Send + Sync>;

impl StoreError {
    /// Whether nobody answered, so that what is in the store is neither known nor denied. A server that refuses has answered.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Away { .. } => true,
            #[cfg(any(feature = "etcd", feature = "kubernetes"))]
            Self::Remote { source, .. } => {
                #[cfg(feature = "etcd")]
                if crate::etcd::is_away(source) {
                    return true;
                }
                #[cfg(feature = "kubernetes")]
                if crate::kubernetes::is_away(source) {
                    return true;
                }
                false
            }
            _ => false,
        }
    }

    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { doing, path: path.into(), source: Arc::new(source) }
    }
}

/// Why a write was not made.
#[derive(Clone, Debug, Error)]
pub enum WriteError {
    /// The key is not in the state that the writer expected.
    #[error("the key {key} is not as expected: it is {}", found.map_or_else(|| "absent".to_owned(), |r| format!("at revision {r}")))]
    Conflict {
        /// The key.
        key: Key,
        /// Its revision now; `None` when absent.
        found: Option<Revision>,
    },
    /// The value is too large.
    #[error("the value of {key} has {size} bytes, more than {MAX_VALUE}")]
    TooLarge {
        /// The key.
        key: Key,
        /// The value's size in bytes.
        size: usize,
    },
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError {
    /// Whether nobody answered: the write was made, or not, or will be yet.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_away())
    }
}

/// An error and all its causes, in one line for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
