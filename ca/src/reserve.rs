//! Room on its disk that a CA has to itself, for what it cannot do without when the disk is full.
//!
//! ```text
//! the disk fills  ──▶ nothing is issued, as everybody else finds no room
//! a start then    ──▶ the file is removed, the store and the ledger open, the CA's own certificate is put on record,
//!                     and what is left is taken again before anybody is served
//! a renewal of it ──▶ the same
//! ```
//!
//! So what a CA serves with is on record whatever the others did to the disk. It keeps nothing from anybody while there is little:
//! it grows only where plenty is left.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use alcazar_service::{Readiness, Shutdown};
use alcazar_store::SledStore;
use rustix::{fs::FallocateFlags, io::Errno};

use crate::config::Config;

/// The file whose blocks are kept.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    /// What a start needs.
    need: u64,
    /// How much was given back to the disk, to be taken again.
    lent: Mutex<u64>,
    /// Whether it was told that nothing can be held.
    told: AtomicBool,
}

impl Reserve {
    pub(crate) fn of(config: &Config) -> Self {
        // What is shared is elsewhere.
        let store = if config.store.is_shared() { 0 } else { SledStore::ROOM };
        Self {
            path: config.data_dir.join(FILE),
            need: store + LEDGER,
            lent: Mutex::default(),
            told: AtomicBool::default(),
        }
    }

    /// Before anything is opened: gives back what is held, where a start needs it. Blocks for the disk.
    pub(crate) fn open(&self) -> io::Result<()> {
        match room(&self.path) {
            Some(free) if free < self.need => self.lend(),
            _ => Ok(()),
        }
    }

    /// Gives back what is held until [`Reserve::keep`]. Blocks for the disk.
    pub(crate) fn lend(&self) -> io::Result<()> {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.held();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => *lent += held,
        }
        Ok(())
    }

    /// Holds what can be had, and tells once where nothing can. Blocks for the disk.
    pub(crate) fn keep(&self) {
        match self.try_keep() {
            Ok(()) => self.told.store(false, Ordering::Relaxed),
            Err(error) if !self.told.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, file = %self.path.display(), "no room is kept for the CA itself: on a full disk it would not start");
            }
            Err(_) => {}
        }
    }

    fn try_keep(&self) -> io::Result<()> {
        let lent = std::mem::take(&mut *self.lent.lock().unwrap_or_else(PoisonError::into_inner));
        let held = self.held();
        let Some(free) = room(&self.path) else { return Ok(()) };
        let target = target(held, free, lent, self.need);
        if target == held {
            return Ok(());
        }
        let file = fs::File::options().create(true).append(true).mode(0o600).open(&self.path)?;
        // The disk takes some for itself.
        for less in (0..target - held).step_by(STEP) {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), held, target - held - less) {
                Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return fill(file, target - held),
                outcome => return Ok(outcome?),
            }
        }
        Ok(())
    }

    /// What there is to do before a start can be; `None` where nothing is.
    fn lacking(&self) -> Option<String> {
        let free = room(&self.path)? + self.held();
        let (mib, need, dir) = (free >> 20, self.need >> 20, self.path.parent().unwrap_or(&self.path).display());
        (free < self.need).then(|| {
            format!(
                "no room on the disk of {dir}: {mib} MiB are left, and a start needs {need}; free some space on it, and the CA starts by itself"
            )
        })
    }

    fn held(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}

/// Waits until a CA can start on its disk, or the end, and says in readiness what it waits for.
pub async fn wait_for_room(config: &Config, readiness: &Readiness, shutdown: &Shutdown) {
    let reserve = Reserve::of(config);
    let mut said = None;
    while let Some(lacking) = reserve.lacking() {
        let (part, _) = said.get_or_insert_with(|| {
            tracing::error!(reason = lacking, "the CA cannot start yet");
            (readiness.part("disk"), readiness.register("certificate authority"))
        });
        part.not_ready(lacking);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// How many bytes are left on the disk of a file, which may not be there yet.
pub(crate) fn room(path: &Path) -> Option<u64> {
    let disk = path.ancestors().find_map(|there| rustix::fs::statvfs(there).ok())?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

/// Makes a file longer where the file system gives blocks to none but what is written.
fn fill(mut file: fs::File, by: u64) -> io::Result<()> {
    match io::copy(&mut io::repeat(0).take(by), &mut file) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Err(error),
        _ => file.sync_all(),
    }
}

/// How long the file is to be, which has `held`, where so much is left and `lent` was given away.
fn target(held: u64, free: u64, lent: u64, need: u64) -> u64 {
    // Once more than a start needs, for the starts that each take some of it.
    let missing = (need + SPARE).saturating_sub(held);
    match free.checked_sub(missing) {
        // More than what makes the store, or a person, take the disk for full.
        Some(left) if left > 2 * need => held + missing,
        _ => held + missing.min(lent).min(free),
    }
}

/// In the data folder.
pub(crate) const FILE: &str = "reserve";
/// A tree of a full segment, the next segment, and what follows.
const LEDGER: u64 = 4 << 20;
const SPARE: u64 = 12 << 20;
const STEP: usize = 1 << 20;
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const NEED: u64 = 20 * MIB;

    #[test]
    fn what_is_kept_grows_where_plenty_is_left_and_what_was_lent_comes_back() {
        for (held, free, lent, kept) in [
            (0, 1000, 0, 32),
            (32, 1000, 0, 32),
            (10, 1000, 0, 32),
            // Nobody else is to want for it.
            (0, 60, 0, 0),
            (10, 50, 0, 10),
            (32, 0, 0, 32),
            // After a start on a full disk, which took three of it.
            (0, 29, 32, 29),
            // Somebody has made room meanwhile.
            (0, 60, 32, 32),
            (0, 1000, 32, 32),
            // And somebody has taken it all.
            (0, 0, 32, 0),
        ] {
            assert_eq!(target(held * MIB, free * MIB, lent * MIB, NEED), kept * MIB, "{held} {free} {lent}");
        }
    }

    #[test]
    fn what_is_lent_is_on_the_disk_again_when_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(&Config::new(folder.path()));
        reserve.keep();
        let held = reserve.held();
        assert_eq!(held, NEED + SPARE);
        reserve.open().unwrap();
        assert_eq!(reserve.held(), held, "there is room without it");
        reserve.lend().unwrap();
        assert_eq!(reserve.held(), 0);
        reserve.lend().unwrap();
        assert_eq!(*reserve.lent.lock().unwrap(), held);
        reserve.keep();
        assert_eq!(reserve.held(), held);
        assert_eq!(reserve.lacking(), None);
        // Where blocks are given to what is written alone.
        fill(fs::File::options().append(true).open(&reserve.path).unwrap(), 10).unwrap();
        assert_eq!(reserve.held(), held + 10);
    }

    #[test]
    fn a_start_that_has_no_room_is_told_where_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/there/yet").join(FILE);
        let reserve = Reserve { path, need: u64::MAX, lent: Mutex::default(), told: AtomicBool::default() };
        let said = reserve.lacking().unwrap();
        assert!(said.contains("not/there/yet") && said.contains("free some space"), "{said}");
    }
}
