//! The data directory: who may use it, and what lies where.
//!
//! ```text
//!   .alcazar/            0700
//!     lock               held by the running `up`; its process id
//!     up.sock            where `alcazar status` asks
//!     ca/                root, intermediate, registrations, ledger
//!     agent/             the node's key and certificate
//!     sockets/           one SDS socket per workload
//!     addresses.json     the ports that were chosen
//!     decisions.jsonl    the decision log
//!     commands/          the processes that were started
//!     shop/              the sample mesh, yours to edit
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use alcazar_service::files::private_directory;

/// Past this size the decision log is set aside at the next start.
const DECISIONS_LIMIT: u64 = 64 * 1024 * 1024;

/// What the path of a Unix socket may have, the closing zero byte excluded (`sun_path`).
const SOCKET_PATH_LIMIT: usize = 107;

/// A data directory that this process alone uses, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    paths: Paths,
    /// The lock goes when the file is closed, however the process ends.
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenDataDirError> {
        let failed = |source| OpenDataDirError::Unusable { path: path.to_owned(), source };
        if is_foreign(path).map_err(failed)? {
            return Err(OpenDataDirError::Foreign { path: path.to_owned() });
        }
        private_directory(path).map_err(failed)?;
        let paths = Paths::of(path);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(paths.within("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: it may be a moment too early to read.
                let read = lock.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
                return Err(OpenDataDirError::Held { path: path.to_owned(), pid: read });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        for directory in [paths.sockets(), paths.commands()] {
            private_directory(&directory).map_err(failed)?;
        }
        set_aside(&paths.decisions(), DECISIONS_LIMIT).map_err(failed)?;
        Ok(Self { paths, _lock: lock })
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenDataDirError {
    #[error("the data directory {} is in use by another `alcazar up`{}; stop that one, or choose another with --data-dir",
        path.display(), pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held { path: PathBuf, pid: Option<u32> },
    #[error("{} has something else in it; choose a directory of its own for the mesh with --data-dir", path.display())]
    Foreign { path: PathBuf },
    #[error("cannot use the data directory {}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
}

/// What lies where. Looking does not touch anything.
#[derive(Debug, Clone)]
pub(crate) struct Paths(PathBuf);

impl Paths {
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self(data_dir.to_owned())
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.within("ca")
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.within("agent")
    }

    pub(crate) fn sockets(&self) -> PathBuf {
        self.within("sockets")
    }

    pub(crate) fn commands(&self) -> PathBuf {
        self.within("commands")
    }

    pub(crate) fn addresses(&self) -> PathBuf {
        self.within("addresses.json")
    }

    pub(crate) fn decisions(&self) -> PathBuf {
        self.within("decisions.jsonl")
    }

    pub(crate) fn status_socket(&self) -> PathBuf {
        self.within("up.sock")
    }

    pub(crate) fn sample(&self) -> PathBuf {
        self.within("shop")
    }

    /// The SDS socket of a registration.
    pub(crate) fn sds_socket(&self, registration: &str) -> Result<PathBuf, SocketPathTooLong> {
        let path = self.sockets().join(format!("{registration}.sock"));
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_LIMIT { Err(SocketPathTooLong { path, length }) } else { Ok(path) }
    }

    fn within(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// A path that the system cannot bind a Unix socket to.
#[derive(Debug, thiserror::Error)]
#[error(
    "the path {} has {length} bytes, and that of a Unix socket may have {SOCKET_PATH_LIMIT}; choose a shorter --data-dir",
    path.display()
)]
pub(crate) struct SocketPathTooLong {
    path: PathBuf,
    length: usize,
}

/// Whether a directory is in use for something else: its permissions are then not ours to change.
fn is_foreign(path: &Path) -> io::Result<bool> {
    let mut entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(entries.next().is_some() && !path.join("lock").try_exists()?)
}

/// Moves a file that has grown past the limit to `<name>.1`, in place of the one before.
fn set_aside(path: &Path, limit: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.len() > limit => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".1");
            fs::rename(path, aside)
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_user_is_refused_and_told_who_is_first() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        let first = DataDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let refused = DataDir::open(&path).unwrap_err();
        assert!(matches!(refused, OpenDataDirError::Held { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(refused.to_string().contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_of_somebody_else_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(temporary.path().join("thesis.tex"), "").unwrap();
        let refused = DataDir::open(temporary.path()).unwrap_err();
        assert!(matches!(refused, OpenDataDirError::Foreign { .. }), "{refused}");
        assert_eq!(fs::metadata(temporary.path()).unwrap().permissions().mode() & 0o777, 0o755);
        fs::remove_file(temporary.path().join("thesis.tex")).unwrap();
        DataDir::open(temporary.path()).unwrap();
    }

    #[test]
    fn a_large_log_is_set_aside() {
        let temporary = tempfile::tempdir().unwrap();
        let log = temporary.path().join("log");
        set_aside(&log, 3).unwrap();
        fs::write(&log, "abc").unwrap();
        set_aside(&log, 3).unwrap();
        assert!(log.exists());
        fs::write(&log, "abcd").unwrap();
        set_aside(&log, 3).unwrap();
        assert!(!log.exists());
        assert_eq!(fs::read(temporary.path().join("log.1")).unwrap(), b"abcd");
    }

    #[test]
    fn a_socket_path_that_the_system_cannot_bind_is_refused_with_advice() {
        let paths = Paths::of(Path::new(&"d".repeat(90)));
        assert!(paths.sds_socket("a.b").is_ok());
        let refused = paths.sds_socket("shop.reviews-v1").unwrap_err().to_string();
        assert!(refused.contains("--data-dir"), "{refused}");
    }
}
