//! The high-water mark: which revision was last acknowledged, in a file of its own.
//!
//! sled's recovery drops what it cannot read at the end of its log, without a word. The mark is written and
//! synced after each commit and before its acknowledgement, so a database that comes back older than the mark
//! has lost something that somebody was told is safe. One more fdatasync of one sector for each group
//! commit is the price; writers that wait together share it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{Damage, Revision, StoreError, record};

/// The file's name in the store's folder.
pub(super) const FILE: &str = "acknowledged";

/// What it is called until it is whole.
const UNFINISHED: &str = "acknowledged.new";

/// Two slots, written in turn, so that a torn write spoils one and leaves the other.
const SLOTS: u64 = 2;
const SLOT_BYTES: u64 = 4096;
const MAGIC: [u8; 8] = *b"alcazar\x01";
const BYTES: usize = 8 + 8 + 16;

/// The open file of the mark.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    turn: u64,
}

impl Mark {
    /// The mark of the store in `folder`, and the revision it holds; `None` when there is no such file.
    pub(super) fn open(folder: &Path) -> Result<Option<(Self, Revision)>, StoreError> {
        let path = folder.join(FILE);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", path, error)),
        };
        let readable = (0..SLOTS).filter_map(|slot| read(&file, slot).map(|revision| (revision, slot)));
        let Some((revision, slot)) = readable.max() else {
            return Err(
                Damage::new(path, "neither of its two copies of the last acknowledged revision can be read").into()
            );
        };
        // The other one is written next: a torn write must not leave the older one alone.
        Ok(Some((Self { path, file, turn: slot + 1 }, revision)))
    }

    /// A new mark at `revision`, whole from the moment on at which it has its name.
    pub(super) fn create(folder: &Path, revision: Revision) -> Result<Self, StoreError> {
        let (path, unfinished) = (folder.join(FILE), folder.join(UNFINISHED));
        let write = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
            file.set_len(SLOTS * SLOT_BYTES)?;
            for slot in 0..SLOTS {
                file.write_all_at(&encode(revision), slot * SLOT_BYTES)?;
            }
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(folder)?.sync_all()?;
            Ok(file)
        };
        let file = write().map_err(|error| StoreError::io("create", &path, error))?;
        Ok(Self { path, file, turn: 0 })
    }

    /// Raises the mark to `revision`, durably.
    pub(super) fn raise(&mut self, revision: Revision) -> Result<(), StoreError> {
        let at = (self.turn % SLOTS) * SLOT_BYTES;
        self.turn = self.turn.wrapping_add(1);
        self.file
            .write_all_at(&encode(revision), at)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| StoreError::io("write", &self.path, error))
    }
}

fn read(file: &File, slot: u64) -> Option<Revision> {
    let mut bytes = [0; BYTES];
    file.read_exact_at(&mut bytes, slot * SLOT_BYTES).ok()?;
    decode(&bytes)
}

fn encode(revision: Revision) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&revision.get().to_be_bytes());
    let sum = record::seal(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Revision> {
    let (body, sum) = bytes.split_last_chunk::<16>()?;
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let revision = rest.first_chunk::<8>()?;
    (*magic == MAGIC && record::seal(body) == *sum).then(|| Revision::new(u64::from_be_bytes(*revision)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_survives_the_loss_of_either_copy() {
        for slot in 0..SLOTS {
            let folder = tempfile::tempdir().unwrap();
            let mut mark = Mark::create(folder.path(), Revision::new(6)).unwrap();
            mark.raise(Revision::new(7)).unwrap();
            mark.file.write_all_at(&[0xff; 40], slot * SLOT_BYTES).unwrap();
            let (_, revision) = Mark::open(folder.path()).unwrap().unwrap();
            assert!(revision >= Revision::new(6), "{revision}");
        }
    }

    #[test]
    fn after_a_start_a_torn_write_leaves_what_was_acknowledged_last() {
        for (raised, newest) in [(7, 0), (8, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let mut mark = Mark::create(folder.path(), Revision::new(6)).unwrap();
            (7..=raised).for_each(|revision| mark.raise(Revision::new(revision)).unwrap());
            let (mut mark, _) = Mark::open(folder.path()).unwrap().unwrap();
            mark.raise(Revision::new(9)).unwrap();
            // It was torn: what it replaced must have been the older one.
            mark.file.write_all_at(&[0xff; 40], (1 - newest) * SLOT_BYTES).unwrap();
            let (_, revision) = Mark::open(folder.path()).unwrap().unwrap();
            assert_eq!(revision, Revision::new(raised));
        }
    }

    #[test]
    fn a_mark_without_a_readable_copy_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), b"nothing of the kind").unwrap();
        assert!(matches!(Mark::open(folder.path()), Err(StoreError::Damaged(_))));
    }
}
