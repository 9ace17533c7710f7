//! No room: a clear error, nothing acknowledged that is not there, and on it goes when there is room again.

use std::{error::Error, path::PathBuf, process::Command, time::Duration};

use alcazar_ledger::{AppendError, Health, Ledger, Options, verify_files};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::support::{append, describe, open, text};

const FOLDER: &str = "ALCAZAR_TEST_LEDGER_FULL";

/// Not a test of its own: a process whose files may not grow beyond a limit, which it sets and lifts itself.
#[test]
fn child_meets_the_limit() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let limit = |bytes| setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let ledger = Ledger::open(&folder, Options { height: 10, ..crate::support::options() }).unwrap();
        // Enough for the mark, and for some hundred entries.
        limit(Some(12_345));
        let mut n = 0;
        let error = loop {
            let facts = describe(text(n).as_bytes()).unwrap();
            match ledger.append(text(n).into_bytes(), facts).await {
                Ok(index) => assert_eq!(index, n),
                Err(error) => break error,
            }
            n += 1;
        };
        assert!(matches!(error, AppendError::DiskFull { .. }), "{error}");
        assert!(error.to_string().contains("no room for the ledger") && error.source().is_some(), "{error}");
        assert!(n > 100 && ledger.head().size == n);
        // Nothing of the one that was refused stays in the way.
        let facts = describe(text(n).as_bytes()).unwrap();
        assert!(matches!(ledger.append(text(n).into_bytes(), facts).await, Err(AppendError::DiskFull { .. })));
        let health = ledger.health();
        assert!(matches!(&health, Health::Refused(why) if why.contains("no room for the ledger")), "{health:?}");
        limit(None);
        // Who would append is told not to come: it looks by itself.
        let well = tokio::time::timeout(Duration::from_secs(20), ledger.health_other_than(&health)).await;
        assert_eq!(well, Ok(Health::Running));
        for n in n..2000 {
            assert_eq!(append(&ledger, &text(n)).await, n);
        }
        assert_eq!(ledger.verify().unwrap().damages, []);

        // A segment that cannot be sealed: the log waits with it.
        let full = ledger.head().size;
        limit(Some(9_000));
        let facts = describe(text(full).as_bytes()).unwrap();
        assert!(matches!(ledger.append(text(full).into_bytes(), facts).await, Err(AppendError::DiskFull { .. })));
        limit(None);
        for n in full..2100 {
            assert_eq!(append(&ledger, &text(n)).await, n);
        }
        ledger.close().await;
    });
    println!("the child is done");
}

#[test]
fn without_room_nothing_is_acknowledged_and_with_room_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    // A process that does not ignore this signal is ended by the limit.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_is_told::child_meets_the_limit", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("the child is done"), "{output:?}");
    let report = verify_files(folder.path(), describe).unwrap();
    assert_eq!((report.damages, report.head.size), (vec![], 2100));
    let ledger = open(folder.path()).unwrap();
    assert!((0..2100).all(|n| ledger.entry(n).unwrap() == text(n).into_bytes()));
}
