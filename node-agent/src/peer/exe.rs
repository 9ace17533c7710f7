//! The file that a process executes: where it is, and what is in it.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use alcazar_identity::{ExecutableDigest, ExecutablePath};

/// One file, told apart from every other and from its own earlier contents.
///
/// The time of its last change of any kind belongs to it: whoever owns a file can set the other one back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// A path that was believed once, and of which file: it stays its process' when the file is replaced by a newer version, as
/// long as the process goes on with the old one.
#[derive(Debug, Clone)]
pub(super) struct Believed {
    device: u64,
    inode: u64,
    /// Numbers of files are used again; the time at which one was made is not.
    born: SystemTime,
    path: ExecutablePath,
}

impl Believed {
    fn new(file: &Metadata, path: &ExecutablePath) -> Option<Self> {
        let born = file.created().ok()?;
        Some(Self { device: file.dev(), inode: file.ino(), born, path: path.clone() })
    }

    fn is(&self, file: &Metadata) -> bool {
        self.device == file.dev() && self.inode == file.ino() && file.created().is_ok_and(|born| born == self.born)
    }
}

/// The path of what a process executes, if that file is what everybody finds under this path.
///
/// A process may have a view of the file system of its own, in which anything lies anywhere: the path alone says nothing.
pub(super) fn path(exe: &Path, believed: &mut Option<Believed>) -> Result<ExecutablePath, String> {
    let runs = fs::metadata(exe).map_err(|error| cannot(&error))?;
    if let Some(earlier) = believed.as_ref().filter(|earlier| earlier.is(&runs)) {
        return Ok(earlier.path.clone());
    }
    let named = fs::read_link(exe).map_err(|error| cannot(&error))?;
    let shown = named.display();
    let here = fs::metadata(&named).map_err(|_| format!("it executes {shown:?}, which is not there for everybody"))?;
    if (here.dev(), here.ino()) != (runs.dev(), runs.ino()) {
        return Err(format!("it executes {shown:?} of its own, not the file that everybody finds there"));
    }
    let path = named.to_str().and_then(|path| path.parse::<ExecutablePath>().ok());
    let path = path.ok_or_else(|| format!("it executes {shown:?}, which is no path that a selector can have"))?;
    *believed = Believed::new(&runs, &path);
    Ok(path)
}

/// Digests of executables, each computed once.
#[derive(Debug, Default)]
pub(super) struct Digests {
    /// The latest last.
    known: Mutex<Vec<(FileId, ExecutableDigest)>>,
}

impl Digests {
    /// The digest of what a process executes.
    pub(super) fn of(&self, exe: &Path, now: SystemTime) -> Result<ExecutableDigest, String> {
        let mut file = File::open(exe).map_err(|error| cannot(&error))?;
        let before = file.metadata().map_err(|error| cannot(&error))?;
        let id = FileId::of(&before);
        if let Some(digest) = self.known(&id) {
            return Ok(digest);
        }
        if before.size() > MAX_FILE {
            return Err(format!("it executes a file of {} bytes; the agent reads at most {MAX_FILE}", before.size()));
        }
        let digest = digest(&mut file).map_err(|error| cannot(&error))?;
        let after = FileId::of(&file.metadata().map_err(|error| cannot(&error))?);
        if after != id {
            return Err("the file that it executes changed while it was read".to_owned());
        }
        if is_settled(&before, now) {
            self.remember(id, digest);
        }
        Ok(digest)
    }

    fn known(&self, id: &FileId) -> Option<ExecutableDigest> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(known, _)| known == id).map(|(_, digest)| *digest)
    }

    fn remember(&self, id: FileId, digest: ExecutableDigest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // An earlier content of the same file is not coming back.
        known.retain(|(known, _)| (known.device, known.inode) != (id.device, id.inode));
        if known.len() >= MOST_DIGESTS {
            known.remove(0);
        }
        known.push((id, digest));
    }
}

/// Whether a further change of a file would be seen in its times, which are only so exact.
fn is_settled(file: &Metadata, now: SystemTime) -> bool {
    let changed =
        u64::try_from(file.ctime()).ok().and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
    changed.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= SETTLED)
}

fn digest(file: &mut File) -> io::Result<ExecutableDigest> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    // It may grow while it is read.
    let mut file = file.take(MAX_FILE + 1);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        context.update(buffer.get(..read).unwrap_or_default());
    }
    let bytes = context.finish().as_ref().try_into().map_err(io::Error::other)?;
    Ok(ExecutableDigest::new(bytes))
}

fn cannot(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "the agent may not look at what it executes: that needs CAP_SYS_PTRACE, or the same user".to_owned()
        }
        _ => format!("what it executes cannot be looked at: {error}"),
    }
}

const MAX_FILE: u64 = 256 * 1024 * 1024;
const MOST_DIGESTS: usize = 256;
const SETTLED: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn later() -> SystemTime {
        alcazar_service::clock::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_path_is_believed_when_everybody_finds_the_same_file_there() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        // As `/proc/<pid>/exe` is: a link that leads to the file itself.
        let (program, exe) = (home.join("program"), home.join("exe"));
        fs::write(&program, "1").unwrap();
        symlink(&program, &exe).unwrap();
        let mut believed = None;
        assert_eq!(path(&exe, &mut believed).unwrap().as_str(), program.to_str().unwrap());
        // Everybody finds another one there by now, and the process is still the same.
        let kept = home.join("kept");
        fs::rename(&program, &kept).unwrap();
        fs::write(&program, "2").unwrap();
        fs::remove_file(&exe).unwrap();
        symlink(&kept, &exe).unwrap();
        if believed.is_some() {
            assert_eq!(path(&exe, &mut believed).unwrap().as_str(), program.to_str().unwrap());
        }
        // It executes another program.
        fs::remove_file(&exe).unwrap();
        let other = home.join("other");
        fs::write(&other, "3").unwrap();
        symlink(&other, &exe).unwrap();
        assert_eq!(path(&exe, &mut believed).unwrap().as_str(), other.to_str().unwrap());
        fs::remove_file(&other).unwrap();
        assert!(path(&exe, &mut None).unwrap_err().contains("cannot be looked at"));
    }

    #[test]
    fn a_digest_is_computed_once_and_again_when_the_file_is_another() {
        let home = tempfile::tempdir().unwrap();
        let program = home.path().join("program");
        let digests = Digests::default();
        let known = |digests: &Digests| digests.known.lock().unwrap().len();
        fs::write(&program, "").unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digests.of(&program, alcazar_service::clock::now()).unwrap().to_string(), empty);
        assert_eq!(known(&digests), 0, "it has changed just now, and a change to come might not be seen");
        assert_eq!(digests.of(&program, later()).unwrap().to_string(), empty);
        assert_eq!(known(&digests), 1);
        // The same length, and the time of its owner's choice.
        fs::write(&program, "a").unwrap();
        let a = digests.of(&program, later()).unwrap();
        let times = fs::metadata(&program).unwrap().modified().unwrap();
        fs::write(&program, "b").unwrap();
        File::options().write(true).open(&program).unwrap().set_modified(times).unwrap();
        assert_ne!(digests.of(&program, later()).unwrap(), a);
        assert_eq!(known(&digests), 1, "what it was before is forgotten");
        for number in 0..MOST_DIGESTS + 3 {
            let file = home.path().join(number.to_string());
            fs::write(&file, number.to_string()).unwrap();
            digests.of(&file, later()).unwrap();
        }
        assert_eq!(known(&digests), MOST_DIGESTS);
        File::create(&program).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(digests.of(&program, later()).unwrap_err().contains("at most"));
    }
}
