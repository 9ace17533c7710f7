//! The files: opening them with suspicion, and making a batch durable.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    ops::Bound,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::mark::{self, Mark};
use crate::{
    Damage, Entry, Key, Listing, Prefix, Revision, StoreError,
    damage::guarded,
    record::{self, Tally},
};

/// sled's own key of the bookkeeping record. No [`Key`] can be equal to it: control characters are refused.
const BOOKS: &[u8] = b"\0books";

/// sled's page cache, in bytes. Values are small and hot ones few.
const CACHE: u64 = 16 << 20;

/// What must be left on the disk before anything is written: several of the largest commits, and what sled keeps beside them.
pub(super) const ROOM: u64 = 16 << 20;

const UNLOCK_TRIES: u32 = 1000;
const LOCK_TRIES: u32 = 20;
const UNLOCK_PAUSE: Duration = Duration::from_millis(5);

/// The open files of a store. Every call blocks.
pub(super) struct Disk {
    // Declared before the lock, so that sled is down before another process may come in.
    db: sled::Db,
    db_path: PathBuf,
    /// A second descriptor of sled's log: sled flushes into the page cache, and this one syncs it.
    log: File,
    blobs: PathBuf,
    synced_blobs: HashSet<OsString>,
    mark: Mark,
    books: Books,
    _lock: File,
}

/// What the store says of itself, written in the same batch as the change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Books {
    revision: Revision,
    tally: Tally,
}

impl Disk {
    /// Opens the store in `folder`, making it if there is none, and checks every record of it.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        // What is kept is for this process alone; a folder that is there already is as its owner made it.
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        created.map_err(|error| StoreError::io("create", folder, error))?;
        let lock = lock(folder)?;
        let db_path = folder.join("db");
        let mark = Mark::open(folder)?;
        match mark {
            Some(_) if !db_path.exists() => return Err(Damage::new(db_path, "the file is missing").into()),
            Some(_) => made(folder)?,
            None => begin(folder)?,
        }
        for path in [db_path.clone()].into_iter().chain(files(&folder.join("blobs"))?) {
            write_again(&path).map_err(|error| StoreError::io("write again", &path, error))?;
        }
        let db = open_db(folder, &db_path)?;
        let books = audit(&db, &db_path)?;
        let mark = match mark {
            Some((mark, acknowledged)) if acknowledged <= books.revision => mark,
            Some((_, acknowledged)) => {
                let what = format!(
                    "it ends at revision {}, but revision {acknowledged} was acknowledged as durable",
                    books.revision
                );
                return Err(Damage::new(db_path, what).into());
            }
            None if books == Books::default() => {
                let mark = Mark::create(folder, Revision::default())?;
                made(folder)?;
                mark
            }
            None => {
                return Err(Damage::new(
                    folder.join(mark::FILE),
                    "the file is missing, and the database beside it is not new",
                )
                .into());
            }
        };
        let log = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&db_path)
            .map_err(|error| StoreError::io("open", &db_path, error))?;
        let disk = Self {
            db,
            db_path,
            log,
            blobs: folder.join("blobs"),
            synced_blobs: HashSet::new(),
            mark,
            books,
            _lock: lock,
        };
        disk.log.sync_all().map_err(|error| StoreError::io("sync", &disk.db_path, error))?;
        for dir in [Some(folder), folder.parent()].into_iter().flatten().filter(|dir| !dir.as_os_str().is_empty()) {
            sync_folder(dir).map_err(|error| StoreError::io("sync", dir, error))?;
        }
        Ok(disk)
    }

    pub(super) fn revision(&self) -> Revision {
        self.books.revision
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let found =
            guarded(&self.db_path, || self.db.get(key.as_str()))?.map_err(|error| trouble(&self.db_path, error))?;
        found.map(|bytes| self.decode(key, &bytes)).transpose()
    }

    pub(super) fn page(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Listing, StoreError> {
        let start = match after {
            Some(key) if key.as_str() >= prefix.as_str() => Bound::Excluded(key.as_str().as_bytes()),
            // The bookkeeping record sorts before every key.
            _ if prefix.as_str().is_empty() => Bound::Excluded(BOOKS),
            _ => Bound::Included(prefix.as_str().as_bytes()),
        };
        let mut listing = Listing { entries: Vec::new(), revision: self.books.revision, more: false };
        guarded(&self.db_path, || {
            for pair in self.db.range::<&[u8], _>((start, Bound::Unbounded)) {
                let (key, bytes) = pair.map_err(|error| trouble(&self.db_path, error))?;
                let key = key_of(&self.db_path, &key)?;
                if !prefix.contains(&key) {
                    break;
                }
                if listing.entries.len() >= limit {
                    listing.more = true;
                    break;
                }
                listing.entries.push(self.decode(&key, &bytes)?);
            }
            Ok(listing)
        })?
    }

    /// Makes all `changes` durable together: after `Ok` they survive anything, after [`StoreError::DiskFull`] nothing was
    /// written, after any other error nobody knows.
    pub(super) fn commit(
        &mut self,
        changes: &BTreeMap<Key, Option<Entry>>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.check_room()?;
        let mut books = Books { revision, tally: self.books.tally };
        let mut batch = sled::Batch::default();
        for (key, change) in changes {
            if let Some(old) = self.get(key)? {
                books.tally.remove(&record::encode(&old));
            }
            match change {
                Some(entry) => {
                    let bytes = record::encode(entry);
                    books.tally.add(&bytes);
                    batch.insert(key.as_str(), bytes);
                }
                None => batch.remove(key.as_str()),
            }
        }
        batch.insert(BOOKS, books.encode());
        guarded(&self.db_path, || self.db.apply_batch(batch).and_then(|()| self.db.flush().map(drop)))?
            .map_err(|error| trouble(&self.db_path, error))?;
        self.sync_blobs()?;
        self.log.sync_data().map_err(|error| StoreError::io("sync", &self.db_path, error))?;
        self.mark.raise(revision)?;
        self.books = books;
        Ok(())
    }

    /// sled does not bear a disk that refuses it in the middle of a write, so it is given nothing that may not fit.
    fn check_room(&self) -> Result<(), StoreError> {
        // Where the system does not say, the disk itself will.
        let Ok(disk) = rustix::fs::fstatvfs(&self.log) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= ROOM {
            return Ok(());
        }
        let path = self.db_path.parent().unwrap_or(&self.db_path).to_owned();
        Err(StoreError::DiskFull { path, free, needed: ROOM })
    }

    /// sled puts very large pages into files of their own, and syncs those neither. Mostly there are none.
    fn sync_blobs(&mut self) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("sync", &self.blobs, error);
        let mut seen = HashSet::new();
        let mut fresh = false;
        for file in fs::read_dir(&self.blobs).map_err(failed)? {
            let name = file.map_err(failed)?.file_name();
            if !self.synced_blobs.contains(&name) {
                match File::open(self.blobs.join(&name)).and_then(|file| file.sync_all()) {
                    // Replaced by a later page meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    outcome => outcome.map_err(failed)?,
                }
                fresh = true;
            }
            seen.insert(name);
        }
        if fresh {
            File::open(&self.blobs).and_then(|dir| dir.sync_all()).map_err(failed)?;
        }
        self.synced_blobs = seen;
        Ok(())
    }

    fn decode(&self, key: &Key, bytes: &[u8]) -> Result<Entry, StoreError> {
        record::decode(key, bytes)
            .map_err(|error| Damage::new(&self.db_path, format!("the record {key}: {error}")).into())
    }
}

impl Books {
    fn encode(self) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&self.revision.get().to_be_bytes());
        bytes.extend_from_slice(&self.tally.count.to_be_bytes());
        bytes.extend_from_slice(&self.tally.sum.to_be_bytes());
        let sum = record::seal(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<16>()?;
        let (&version, rest) = body.split_first()?;
        let (revision, rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let total = rest.first_chunk::<16>()?;
        let tally = Tally { count: u64::from_be_bytes(*count), sum: u128::from_be_bytes(*total) };
        (version == 1 && record::seal(body) == *sum)
            .then(|| Self { revision: Revision::new(u64::from_be_bytes(*revision)), tally })
    }
}

/// Says that a store is being made, so that a start that is cut short is told from damage. What an earlier one had made is
/// removed: nobody was told of anything in it.
fn begin(folder: &Path) -> Result<(), StoreError> {
    let (making, lock) = (folder.join(MAKING), folder.join(LOCK));
    let parts: Vec<_> = files(folder)?.into_iter().filter(|path| *path != lock).collect();
    if parts.contains(&making) {
        for path in parts.into_iter().filter(|path| *path != making) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|error| StoreError::io("remove", &path, error))?;
        }
    } else if parts.is_empty() {
        let written = File::create(&making).and_then(|file| file.sync_all()).and_then(|()| sync_folder(folder));
        written.map_err(|error| StoreError::io("create", &making, error))?;
    }
    Ok(())
}

/// The store is made: from now on what is missing is damage.
fn made(folder: &Path) -> Result<(), StoreError> {
    let making = folder.join(MAKING);
    match fs::remove_file(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", making, error)),
        _ => Ok(()),
    }
}

/// What is in a folder; nothing, where there is none.
fn files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("list", folder, error);
    match fs::read_dir(folder) {
        Ok(found) => found.map(|file| file.map(|file| file.path()).map_err(failed)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Writes a file again with the bytes that it has, and syncs it; nothing, where there is none.
///
/// After a failed sync the kernel keeps what the disk never took, as if it were there, and says at the next sync that all is well. So
/// what is read proves nothing of the disk; what is written again and synced does, and a disk that is still broken says so.
fn write_again(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        outcome => outcome?,
    };
    let (mut buffer, mut at) = (vec![0; AGAIN], 0);
    loop {
        let read = match file.read_at(&mut buffer, at) {
            Ok(0) => return file.sync_all(),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        file.write_all_at(buffer.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

const AGAIN: usize = 256 << 10;

/// The file that is there while a store is being made.
const MAKING: &str = "making";
const LOCK: &str = "lock";

/// Opens sled. A database that this process has just closed may for a moment still be locked by sled's own
/// threads; another process cannot be the reason, because the store's lock is ours by now.
fn open_db(folder: &Path, db_path: &Path) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new().path(folder).cache_capacity(CACHE).flush_every_ms(None);
    let mut tries = 0;
    loop {
        match guarded(db_path, || config.open())? {
            Err(sled::Error::Io(error))
                if tries < UNLOCK_TRIES && error.to_string().starts_with("could not acquire lock") =>
            {
                tries += 1;
                thread::sleep(UNLOCK_PAUSE);
            }
            outcome => return outcome.map_err(|error| trouble(db_path, error)),
        }
    }
}

/// Reads every record and holds the sum against the books.
fn audit(db: &sled::Db, db_path: &Path) -> Result<Books, StoreError> {
    guarded(db_path, || {
        let mut books = Books::default();
        let mut tally = Tally::default();
        for pair in db.iter() {
            let (key, bytes) = pair.map_err(|error| trouble(db_path, error))?;
            if key == BOOKS {
                books = Books::decode(&bytes)
                    .ok_or_else(|| Damage::new(db_path, "its bookkeeping record cannot be read"))?;
                continue;
            }
            let key = key_of(db_path, &key)?;
            record::decode(&key, &bytes).map_err(|error| Damage::new(db_path, format!("the record {key}: {error}")))?;
            tally.add(&bytes);
        }
        if tally != books.tally {
            let what = format!(
                "it holds {} records that do not add up to the {} it should hold at revision {}",
                tally.count, books.tally.count, books.revision
            );
            return Err(Damage::new(db_path, what).into());
        }
        Ok(books)
    })?
}

fn key_of(db_path: &Path, bytes: &[u8]) -> Result<Key, StoreError> {
    let key = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    key.ok_or_else(|| Damage::new(db_path, "it holds a key that this program cannot have written").into())
}

fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| StoreError::io("create", &path, error))?;
    match try_lock(&file) {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked { path: folder.into() }),
        Err(fs::TryLockError::Error(error)) => Err(StoreError::io("lock", path, error)),
    }
}

/// Another program that this process starts holds the locked files of this one until it has become that program: a moment
/// is no reason to say that a store is in use.
fn try_lock(file: &File) -> Result<(), fs::TryLockError> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => thread::sleep(UNLOCK_PAUSE),
            outcome => return outcome,
        }
    }
    file.try_lock()
}

fn trouble(db_path: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) => StoreError::io("use", db_path, error),
        sled::Error::Corruption { .. } => {
            Damage::new(db_path, "the database engine found a part whose checksum does not match").into()
        }
        other => Damage::new(db_path, format!("the database engine cannot read it ({other})")).into(),
    }
}
