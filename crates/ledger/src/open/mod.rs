//! Opening a log with suspicion: what was acknowledged must be there, a torn tail is cut, anything else is damage.

pub(crate) mod disk;
mod mark_file;
pub(crate) mod scan;

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use self::scan::{Scan, scan};
pub(crate) use self::{
    disk::{create_segment, seal, sync_folder},
    mark_file::{FILE as MARK, MarkFile},
};
use crate::{
    error::{Damage, OpenError},
    facts::Describe,
    format::Mark,
    ledger::{Head, LogId, Options},
    read,
    segment::{entries_file, tree_file},
    state::State,
};

/// What a start mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The end of a file that was never acknowledged was torn, and has been cut off.
    TornTail {
        /// The file.
        file: PathBuf,
        /// Where it ends now.
        offset: u64,
        /// How many bytes were cut off.
        bytes: u64,
        /// Why they were no entries.
        why: &'static str,
    },
    /// The file of hashes and indexes of a full segment was not there, and has been made again.
    Tree(PathBuf),
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TornTail { file, offset, bytes, why } => {
                let file = file.display();
                write!(
                    f,
                    "{file} ended in {bytes} bytes that are no whole entries ({why}), behind the last that is known to have been acknowledged; it was cut to {offset} bytes, which is whole"
                )
            }
            Self::Tree(file) => write!(f, "{} was made again from the entries beside it", file.display()),
        }
    }
}

/// A log that is open for appending.
pub(crate) struct Opened {
    pub(crate) state: State,
    /// The open segment's entries; `None` until it is begun.
    pub(crate) file: Option<File>,
    pub(crate) mark: MarkFile,
    pub(crate) repairs: Vec<Repair>,
    pub(crate) lock: File,
}

pub(crate) fn open(dir: &Path, options: &Options) -> Result<Opened, OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(OpenError::io("create", dir))?;
    let lock = lock(dir)?;
    let mark = MarkFile::open(dir)?;
    let found = Found::in_folder(dir)?;
    let mut repairs = Vec::new();
    let (mut state, file) = match found.entries.is_empty() {
        true => found.begin(dir, options, mark.as_ref())?,
        false => found.walk(dir, options.describe, mark.as_ref().map(|(_, mark)| mark), &mut repairs)?,
    };
    for folder in [Some(dir), dir.parent()].into_iter().flatten().filter(|folder| !folder.as_os_str().is_empty()) {
        sync_folder(folder).map_err(OpenError::io("sync", folder))?;
    }
    let head = state.publish();
    let mark = settle(dir, &state, mark, head)?;
    Ok(Opened { state, file, mark, repairs, lock })
}

/// The mark, at where the log is now: what is whole on the disk counts as acknowledged from here on.
fn settle(dir: &Path, state: &State, mark: Option<(MarkFile, Mark)>, head: Head) -> Result<MarkFile, OpenError> {
    let now = Mark { log: state.log, head };
    let Some((mut file, mark)) = mark else {
        if head.size == 0 {
            return MarkFile::create(dir, &now);
        }
        let what = "the file is missing, and the ledger beside it is not new";
        return Err(Damage::new(dir.join(MARK), 0, what).into());
    };
    if mark.head.size > head.size {
        let (file, at) = (entries_file(dir, state.growing.first), state.growing.bytes);
        let what = format!("the ledger ends after {} entries, and {} were acknowledged", head.size, mark.head.size);
        return Err(Damage::new(file, at, what).into());
    }
    let known = read::root_at(dir, state, mark.head.size)?;
    if known != mark.head.root {
        let size = mark.head.size;
        let what = format!("the first {size} entries have the root {known}, but {} was acknowledged", mark.head.root);
        return Err(Damage::new(dir.join(MARK), 0, what).into());
    }
    file.write(&now).and_then(|()| file.sync()).map_err(OpenError::io("write", dir.join(MARK)))?;
    Ok(file)
}

/// Which segments there are.
struct Found {
    entries: BTreeSet<u64>,
    trees: BTreeSet<u64>,
}

impl Found {
    fn in_folder(dir: &Path) -> Result<Self, OpenError> {
        let mut found = Self { entries: BTreeSet::new(), trees: BTreeSet::new() };
        for file in fs::read_dir(dir).map_err(OpenError::io("list", dir))? {
            let path = file.map_err(OpenError::io("list", dir))?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            match (path.extension().and_then(|end| end.to_str()), stem.and_then(|stem| stem.parse().ok())) {
                (Some("entries"), Some(first)) => drop(found.entries.insert(first)),
                (Some("tree"), Some(first)) => drop(found.trees.insert(first)),
                // What a process that was killed had not finished.
                (Some("new"), _) => fs::remove_file(&path).map_err(OpenError::io("remove", &path))?,
                _ => {}
            }
        }
        Ok(found)
    }

    /// A log where there is none. One that had entries once is not made anew.
    fn begin(
        &self,
        dir: &Path,
        options: &Options,
        mark: Option<&(MarkFile, Mark)>,
    ) -> Result<(State, Option<File>), OpenError> {
        if mark.is_some() || !self.trees.is_empty() {
            return Err(Damage::new(entries_file(dir, 0), 0, "the file is missing").into());
        }
        let state = State::new(LogId(options.new_log), options.height);
        let file = create_segment(dir, &state).map_err(OpenError::io("create", entries_file(dir, 0)))?;
        Ok((state, Some(file)))
    }

    /// Takes in the sealed segments by their headers, and the open one entry by entry.
    fn walk(
        &self,
        dir: &Path,
        describe: Describe,
        mark: Option<&Mark>,
        repairs: &mut Vec<Repair>,
    ) -> Result<(State, Option<File>), OpenError> {
        let last = self.entries.last().copied().unwrap_or_default();
        let header = disk::header(&self.entries(dir, 0)?, &entries_file(dir, 0))?;
        let mut state = State::new(mark.map_or(header.log, |mark| mark.log), header.height);
        loop {
            let first = state.size();
            // Sealed, and the next not begun.
            if first > last {
                return Ok((state, None));
            }
            let (file, path) = (self.entries(dir, first)?, entries_file(dir, first));
            disk::expect(&path, &state, &disk::header(&file, &path)?)?;
            if self.trees.contains(&first) && !disk::is_outdated(dir, first)? {
                state.adopt(disk::tree_header(dir, &file, &state)?);
                continue;
            }
            let Scan { offset, trouble } = scan(&file, &path, &mut state, describe, u64::MAX, &mut |_| {})?;
            let length = file.metadata().map_err(OpenError::io("look at", &path))?.len();
            let marked = state.growing.offset_of(mark.map_or(0, |mark| mark.head.size));
            if state.room() == 0 {
                if length > offset {
                    return Err(Damage::new(path, offset, "there is something behind the last entry").into());
                }
                disk::write_again(&file, marked).map_err(OpenError::io("write again", &path))?;
                let sealed = seal(dir, &state.growing, state.log, state.height)
                    .map_err(OpenError::io("write", tree_file(dir, first)))?;
                state.sealed(sealed);
                repairs.push(Repair::Tree(tree_file(dir, first)));
                continue;
            }
            let acknowledged = if first == last { mark.map_or(0, |mark| mark.head.size) } else { last };
            if state.size() < acknowledged {
                let (what, at) = (trouble.unwrap_or("the file ends here"), state.size());
                let what = format!("{what}; this should be entry {at}, and {acknowledged} entries were acknowledged");
                return Err(Damage::new(path, offset, what).into());
            }
            if let Some(why) = trouble {
                file.set_len(offset).map_err(OpenError::io("cut", &path))?;
                let (file, bytes) = (path.clone(), length.saturating_sub(offset));
                repairs.push(Repair::TornTail { file, offset, bytes, why });
            }
            disk::write_again(&file, marked).map_err(OpenError::io("write again", &path))?;
            return Ok((state, Some(file)));
        }
    }

    fn entries(&self, dir: &Path, first: u64) -> Result<File, OpenError> {
        let path = entries_file(dir, first);
        if !self.entries.contains(&first) {
            return Err(Damage::new(path, 0, "the file is missing").into());
        }
        OpenOptions::new().read(true).write(true).open(&path).map_err(OpenError::io("open", &path))
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(OpenError::io("open", &path))?;
    match try_lock(&file) {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(OpenError::Io { doing: "lock", path, source }),
    }
}

/// Another program that this process starts holds the locked files of this one until it has become that program: a moment
/// is no reason to say that a log is in use.
pub(crate) fn try_lock(file: &File) -> Result<(), fs::TryLockError> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            outcome => return outcome,
        }
    }
    file.try_lock()
}

const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The name of the file that one process locks.
pub(crate) const LOCK: &str = "lock";
