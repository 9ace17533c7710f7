//! What can go wrong.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

use crate::{Damage, Key, Revision, store::MAX_VALUE};

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
    /// It stopped after an earlier failure and will not answer until it is opened again.
    #[error("the store stopped after an earlier failure and must be opened again")]
    Stopped {
        /// The failure.
        source: Arc<StoreError>,
    },
    /// It was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
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
