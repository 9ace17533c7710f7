//! A sync that fails: nothing more is acknowledged, everybody can see it, and the next start does not believe the kernel.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use alcazar_ledger::{AppendError, Health, Hooks, Ledger, Options, Step};

use crate::support::{append, copy, describe, make, open, options, text};

const OPEN: &str = "000000000000.entries";

/// A log on a disk that fails at the sync of this number, and takes the bytes all the same.
fn failing(dir: &Path, at: usize) -> Ledger {
    let syncs = AtomicUsize::new(0);
    let sync = move |file: &File| match syncs.fetch_add(1, Ordering::SeqCst) {
        count if count == at => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
        _ => file.sync_data(),
    };
    let hooks = Hooks { sync: Some(Arc::new(sync)), ..Hooks::default() };
    Ledger::open(dir, Options { hooks, ..options() }).unwrap()
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_until_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = failing(folder.path(), 2);
    assert_eq!(ledger.health(), Health::Running);
    assert_eq!((append(&ledger, &text(0)).await, append(&ledger, &text(1)).await), (0, 1));
    let watching = async { ledger.health_other_than(&Health::Running).await };
    let failing = async {
        for _ in 0..3 {
            let facts = describe(text(2).as_bytes()).unwrap();
            let error = ledger.append(text(2).into_bytes(), facts).await.unwrap_err();
            assert!(matches!(error, AppendError::Stopped { .. }), "{error}");
        }
    };
    let (health, ()) = tokio::join!(watching, failing);
    assert!(matches!(&health, Health::Stopped(why) if why.contains("os error 5")), "{health:?}");
    assert_eq!((ledger.health(), ledger.head().size), (health, 2));
    ledger.close().await;
    drop(ledger);

    // The refused one is whole in what the kernel shows: it may stay, once it is durable.
    let ledger = open(folder.path()).unwrap();
    let size = ledger.head().size;
    assert!((2..=3).contains(&size), "{size}");
    assert_eq!((append(&ledger, &text(size)).await, ledger.health()), (size, Health::Running));
}

#[tokio::test]
async fn a_start_writes_again_what_is_behind_the_mark_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = failing(folder.path(), 2);
    for n in 0..2 {
        append(&ledger, &text(n)).await;
    }
    let facts = describe(text(2).as_bytes()).unwrap();
    ledger.append(text(2).into_bytes(), facts).await.unwrap_err();
    drop(ledger);
    let file = folder.path().join(OPEN);
    let (before, long_ago) = (fs::read(&file).unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    let touched = || {
        let touched = fs::metadata(&file).unwrap().modified().unwrap() != long_ago;
        File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
        touched
    };
    touched();
    assert_eq!(open(folder.path()).unwrap().head().size, 3);
    assert!(touched(), "the disk may have nothing of the entry that was refused");
    assert_eq!(fs::read(&file).unwrap(), before);
    // By now the mark is behind it.
    assert_eq!(open(folder.path()).unwrap().head().size, 3);
    assert!(!touched());
}

#[tokio::test]
async fn a_full_segment_that_was_not_sealed_is_written_again_too() {
    let (folder, longer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(folder.path(), 5).await;
    copy(folder.path(), longer.path());
    let ledger = open(longer.path()).unwrap();
    for n in 5..8 {
        append(&ledger, &text(n)).await;
    }
    drop(ledger);
    // Killed after the write of the last three, before anything else.
    fs::copy(longer.path().join(OPEN), folder.path().join(OPEN)).unwrap();
    let file = File::options().write(true).open(folder.path().join(OPEN)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(open(folder.path()).unwrap().head().size, 8);
    assert_ne!(file.metadata().unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
}

#[tokio::test]
async fn a_thread_that_panics_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let observe = |step| assert!(!matches!(step, Step::Synced { .. }), "the panic of this test");
    let hooks = Hooks { observe: Some(Arc::new(observe)), ..Hooks::default() };
    let ledger = Ledger::open(folder.path(), Options { hooks, ..options() }).unwrap();
    let facts = describe(text(0).as_bytes()).unwrap();
    assert!(matches!(ledger.append(text(0).into_bytes(), facts).await, Err(AppendError::Closed)));
    let health = ledger.health_other_than(&Health::Running).await;
    assert_eq!(health, Health::Stopped("its thread has ended".into()));
}

#[tokio::test]
async fn a_start_that_was_cut_short_anywhere_is_no_damage() {
    // The files of a new log, in the order in which they get their names.
    for (half, name) in [("000000000000.entries.new", None), ("acknowledged.new", Some(OPEN))] {
        let (folder, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(new.path(), 0).await;
        if let Some(name) = name {
            fs::copy(new.path().join(name), folder.path().join(name)).unwrap();
        }
        for length in [0, 40, 4096, 5000] {
            fs::write(folder.path().join(half), vec![0; length]).unwrap();
            let ledger = open(folder.path()).unwrap();
            assert_eq!(ledger.head().size, 0);
            drop(ledger);
            fs::remove_file(folder.path().join("acknowledged")).unwrap();
        }
    }
}
