//! The data folder of one replica: whose it is, and that no two processes use it.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use alcazar_service::files::write_atomic;
use thiserror::Error;

use crate::serial::{NoRandomness, random_bytes};

/// The name of a replica: 16 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(Box<str>);

impl ReplicaId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn random() -> Result<Self, NoRandomness> {
        Ok(Self(format!("{:016x}", u64::from_be_bytes(random_bytes()?)).into()))
    }
}

impl FromStr for ReplicaId {
    type Err = ParseReplicaIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(good) { Ok(Self(text.into())) } else { Err(ParseReplicaIdError) }
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the name of a replica is 16 lower-case hexadecimal digits")]
pub struct ParseReplicaIdError;

/// A data folder that this process has to itself until it lets go.
#[derive(Debug)]
pub(crate) struct DataFolder {
    pub(crate) replica: ReplicaId,
    lock: Mutex<Option<File>>,
}

impl DataFolder {
    /// Takes a folder, which is there, for this process alone. Blocks for the disk, and for another process no longer than a
    /// moment.
    pub(crate) fn take(dir: &Path) -> Result<Self, DataFolderError> {
        let path = dir.join(LOCK);
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| DataFolderError::Io { doing, path, source }
        };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io("open", &path))?;
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataFolderError::InUse(dir.into())),
            Err(TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
        }
        let path = dir.join(REPLICA);
        let replica = match fs::read(&path) {
            Ok(text) => String::from_utf8_lossy(&text)
                .trim_end()
                .parse()
                .map_err(|source| DataFolderError::Id { path, source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = ReplicaId::random()?;
                write_atomic(&path, format!("{id}\n").as_bytes(), 0o600).map_err(io("write", &path))?;
                id
            }
            Err(error) => return Err(io("read", &path)(error)),
        };
        Ok(Self { replica, lock: Mutex::new(Some(file)) })
    }

    /// Another process may take the folder when this returns.
    pub(crate) fn let_go(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Another program that this process starts holds the locked files of this one until it has become that program: a moment
/// is no reason to say that a folder is in use.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            outcome => return outcome,
        }
    }
    file.try_lock()
}

const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why a data folder is not this process's.
#[derive(Debug, Error)]
pub enum DataFolderError {
    /// Another process has it.
    #[error(
        "the data folder {} is already in use by another process; each replica needs a folder of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// The name of the replica cannot be read.
    #[error("the file {} is damaged; restore it from a backup, or remove it, and this replica gets another name", path.display())]
    Id {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ParseReplicaIdError,
    },
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
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Files of the data folder.
pub(crate) const LOCK: &str = "lock";
pub(crate) const REPLICA: &str = "replica";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_of_one_process_and_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataFolder::take(dir.path()).unwrap();
        assert!(matches!(DataFolder::take(dir.path()), Err(DataFolderError::InUse(_))));
        first.let_go();
        let again = DataFolder::take(dir.path()).unwrap();
        assert_eq!(again.replica, first.replica);
        assert_eq!(first.replica.as_str().parse::<ReplicaId>().unwrap(), first.replica);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(DataFolder::take(other.path()).unwrap().replica, first.replica);
    }

    #[test]
    fn a_damaged_name_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "0123", "0123456789ABCDEF", "0123456789abcdef0"] {
            fs::write(dir.path().join(REPLICA), text).unwrap();
            let error = DataFolder::take(dir.path()).unwrap_err();
            assert!(matches!(error, DataFolderError::Id { .. }), "{text:?}: {error}");
        }
    }
}
