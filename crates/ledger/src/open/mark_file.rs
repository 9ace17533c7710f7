//! The file of the mark.
//!
//! It is written after each group of appends, once these are durable, and synced a little later: when nothing waits, and once
//! a second where something always does. So it never says more than the disk has, and says all but the last second after a
//! power cut. What it is for is damage: a file that was cut or altered is known from a tail that was never acknowledged.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    error::{Damage, OpenError},
    format::{MARK_BYTES, Mark, SLOT_BYTES},
};

/// The file's name.
pub(crate) const FILE: &str = "acknowledged";

/// How far an entry that was acknowledged may be ahead of the synced mark, while appends keep coming.
const BEHIND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct MarkFile {
    file: File,
    turn: u64,
    /// Since when it says something that is not synced.
    unsynced: Option<Instant>,
}

impl MarkFile {
    /// The file of the log in `dir` and what it says; `None` where there is none.
    pub(super) fn open(dir: &Path) -> Result<Option<(Self, Mark)>, OpenError> {
        let path = dir.join(FILE);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::Io { doing: "open", path, source }),
        };
        let slots = [0, 1].map(|slot| read(&file, slot));
        let newest = slots.into_iter().enumerate().filter_map(|(slot, mark)| mark.map(|mark| (slot, mark)));
        let Some((slot, mark)) = newest.max_by_key(|(_, mark)| mark.head.size) else {
            let what = "neither of its two copies of the last acknowledged head can be read";
            return Err(Damage::new(path, 0, what).into());
        };
        // The other one is written next.
        Ok(Some((Self { file, turn: slot as u64 + 1, unsynced: None }, mark)))
    }

    /// The file of a new log, whole from the moment on at which it has its name.
    pub(super) fn create(dir: &Path, mark: &Mark) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        let mut bytes = Vec::with_capacity(2 * SLOT_BYTES as usize);
        for slot in 1..=2 {
            bytes.extend(mark.encode());
            bytes.resize(slot * SLOT_BYTES as usize, 0);
        }
        let file = super::disk::write_whole(dir, &path, &bytes).map_err(OpenError::io("create", &path))?;
        Ok(Self { file, turn: 0, unsynced: None })
    }

    /// Says that all up to `mark` is durable, which it must be.
    pub(crate) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        let at = (self.turn % 2) * SLOT_BYTES;
        self.turn = self.turn.wrapping_add(1);
        self.file.write_all_at(&mark.encode(), at)?;
        self.unsynced.get_or_insert_with(Instant::now);
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.unsynced = None;
        Ok(())
    }

    /// Whether it says something that is not synced.
    pub(crate) fn is_unsynced(&self) -> bool {
        self.unsynced.is_some()
    }

    /// Whether it must be synced although more waits.
    pub(crate) fn is_overdue(&self) -> bool {
        self.unsynced.is_some_and(|since| since.elapsed() >= BEHIND)
    }
}

fn read(file: &File, slot: u64) -> Option<Mark> {
    let mut bytes = [0; MARK_BYTES];
    file.read_exact_at(&mut bytes, slot * SLOT_BYTES).ok()?;
    Mark::decode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Head, LogId, merkle::Hash};

    #[test]
    fn the_mark_survives_the_loss_of_either_copy_and_not_of_both() {
        let mark = |size| Mark { log: LogId([3; 16]), head: Head { size, root: Hash::leaf(b"root") } };
        for slot in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            let mut file = MarkFile::create(folder.path(), &mark(0)).unwrap();
            file.write(&mark(6)).unwrap();
            file.write(&mark(7)).unwrap();
            file.file.write_all_at(&[0xff; 40], slot * SLOT_BYTES).unwrap();
            let (mut again, found) = MarkFile::open(folder.path()).unwrap().unwrap();
            assert!(found.head.size >= 6, "{found:?}");
            // The copy that is left is not the one that is written next.
            again.write(&mark(8)).unwrap();
            again.file.write_all_at(&[0xff; 40], slot * SLOT_BYTES).unwrap();
            assert!(MarkFile::open(folder.path()).unwrap().is_some());
            again.file.write_all_at(&[0xff; 40], (1 - slot) * SLOT_BYTES).unwrap();
            assert!(matches!(MarkFile::open(folder.path()), Err(OpenError::Damaged(_))));
        }
    }
}
