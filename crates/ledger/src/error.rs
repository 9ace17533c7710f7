//! What can go wrong.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use crate::format::MAX_ENTRY;

/// A file of the log that is not what was acknowledged: which, where in it, what is wrong, how to recover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    file: PathBuf,
    offset: u64,
    what: String,
}

impl Damage {
    pub(crate) fn new(file: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        Self { file: file.into(), offset, what: what.into() }
    }

    /// The file where it was found.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The first byte in it that is wrong.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What is wrong with it.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, what } = self;
        write!(f, "the ledger is damaged: {} at byte {offset}: {what}; ", file.display())?;
        let folder = file.parent().unwrap_or(file).display();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("tree") => f.write_str("to recover, stop the process that uses it and delete this file: it is made again from the entries beside it, and checked, at the next start"),
            _ => write!(f, "to recover, stop the process that uses it and restore the whole folder {folder} from a backup, or move that folder away to begin a new ledger (and keep the old one: it is the record of what was issued)"),
        }
    }
}

impl std::error::Error for Damage {}

/// Why a log did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process, or another part of this one, has it open.
    #[error("the ledger {} is already in use by another process; one process at a time may open it", path.display())]
    Locked {
        /// The log's folder.
        path: PathBuf,
    },
    /// It is not what was acknowledged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The disk refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(damage) => Self::Damaged(damage),
            ReadError::Io { path, source } => Self::Io { doing: "read", path, source },
            ReadError::Beyond { what, size } => {
                Self::Damaged(Damage::new(what, 0, format!("the ledger ends after {size} entries")))
            }
        }
    }
}

/// Why an entry was not appended. Whatever it is, nobody may be told that the entry is on record.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// An entry has at least one byte and at most [`MAX_ENTRY`].
    #[error("an entry of {0} bytes cannot be recorded: 1 to {MAX_ENTRY} are possible")]
    Size(usize),
    /// More entries wait for the disk than may.
    #[error("{waiting} entries wait for the disk already; try again shortly")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// There is no room. Nothing of the entry stays, and the log goes on when there is room again.
    #[error("no room for the ledger: {} cannot grow; free some space on its disk, or raise the quota or file size limit", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: Arc<io::Error>,
    },
    /// The disk refused before anything was recorded.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the disk said.
        source: Arc<io::Error>,
    },
    /// The disk failed in a way that leaves unknown what it has. It must be opened again, which looks.
    #[error("the ledger stopped after a failure of the disk and must be opened again (start the process anew)")]
    Stopped {
        /// The failure.
        source: Arc<io::Error>,
    },
    /// It was closed.
    #[error("the ledger is closed")]
    Closed,
}

impl AppendError {
    /// What the disk said of a file before anything was lost by it.
    pub(crate) fn refused(doing: &'static str, path: &Path, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let (path, source) = (path.to_owned(), Arc::new(source));
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::DiskFull { path, source },
            _ => Self::Io { doing, path, source },
        }
    }
}

/// Why something could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The log is not that long.
    #[error("the ledger has {size} entries: there is no {what}")]
    Beyond {
        /// What was asked for.
        what: String,
        /// How many entries there are.
        size: u64,
    },
    /// It is not what was acknowledged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The disk refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
}

impl ReadError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
