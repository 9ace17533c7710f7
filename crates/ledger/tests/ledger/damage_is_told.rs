//! Whatever happens to the files: an acknowledged entry is there, or its loss is an error that says where.

use std::{fs, io::Write, ops::ControlFlow, path::Path};

use alcazar_ledger::{Damage, Ledger, OpenError, Query, Repair, Term, verify_files};

use crate::support::{append, copy, describe, files, found, make, open, text};

/// Two sealed segments and five entries more.
const N: u64 = 21;

fn damages(dir: &Path) -> Vec<Damage> {
    match verify_files(dir, describe) {
        Ok(report) => report.damages,
        Err(OpenError::Damaged(damage)) => vec![damage],
        Err(error) => panic!("{error}"),
    }
}

/// A start either refuses, or has all `N` entries, however they are.
fn never_loses(dir: &Path, case: &str) -> Option<Ledger> {
    match open(dir) {
        Ok(ledger) => {
            assert_eq!(ledger.head().size, N, "{case}");
            Some(ledger)
        }
        Err(OpenError::Damaged(_)) => None,
        Err(error) => panic!("{case}: {error}"),
    }
}

#[tokio::test]
async fn one_flipped_bit_anywhere_is_found_and_named() {
    let (folder, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(folder.path(), N).await;
    assert_eq!(damages(folder.path()), []);
    let names = files(folder.path());
    let expected = [
        "000000000000.entries",
        "000000000000.tree",
        "000000000008.entries",
        "000000000008.tree",
        "000000000016.entries",
        "acknowledged",
    ];
    assert_eq!(names, expected);
    for name in names {
        let good = fs::read(folder.path().join(&name)).unwrap();
        for at in 0..good.len() {
            // In the empty space of this file one byte is like another.
            if name == "acknowledged" && at % 4096 > 100 && at % 97 != 0 {
                continue;
            }
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(folder.path().join(&name), bytes).unwrap();
            let found = damages(folder.path());
            let named = found.iter().any(|damage| damage.file().ends_with(&name) && damage.offset() <= at as u64);
            assert!(named, "{name} at {at}: {found:?}");
            // A start reads little of what is sealed; what it has read then says the same.
            if at % 37 == 0 {
                copy(folder.path(), broken.path());
                let opened = never_loses(broken.path(), &format!("{name} at {at}"));
                // The file of the mark is written anew by a start.
                if let Some(ledger) = opened.filter(|_| name != "acknowledged") {
                    assert_ne!(ledger.verify().unwrap().damages, [], "{name} at {at}");
                }
            }
        }
        fs::write(folder.path().join(&name), good).unwrap();
    }
}

#[tokio::test]
async fn a_proof_from_a_damaged_tree_or_entry_is_refused_or_true() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), N).await;
    let path = folder.path().join("000000000008.entries");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let ledger = open(folder.path()).unwrap();
    let error = ledger.entry(15).unwrap_err().to_string();
    assert!(
        error.contains("000000000008.entries") && error.contains("entry 15") && error.contains("restore"),
        "{error}"
    );
    assert_eq!(ledger.entry(14).unwrap(), text(14).into_bytes());
}

#[tokio::test]
async fn one_flipped_bit_in_a_tree_gives_no_wrong_proof_and_hides_nothing() {
    let (good, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(good.path(), N).await;
    let name = "000000000000.tree";
    let bytes = fs::read(good.path().join(name)).unwrap();
    // All but what a start reads, which refuses it: the offsets, the moments, the postings, the hashes.
    for at in (160..bytes.len()).step_by(7) {
        copy(good.path(), folder.path());
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(folder.path().join(name), bytes).unwrap();
        let ledger = open(folder.path()).unwrap();
        let wanted = |n: u64| Query { term: Some((0, Term::of(format!("name-{n}").as_bytes()))), ..Query::default() };
        let search = |n| ledger.search(&wanted(n), |_, _| ControlFlow::Continue(()));
        for error in [
            search(3).unwrap_err(),
            ledger.entry(3).unwrap_err(),
            ledger.inclusion(3, N).unwrap_err(),
            ledger.consistency(3, N).unwrap_err(),
            ledger.root(3).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains(name) && error.contains("delete this file"), "{at}: {error}");
        }
        // What needs nothing of it is told.
        let mut seen = None;
        let visit = |n, entry: &[u8]| {
            seen = Some((n, entry.to_vec()));
            ControlFlow::Break(())
        };
        ledger.search(&wanted(9), visit).unwrap();
        assert_eq!(seen, Some((9, text(9).into_bytes())));
        drop(ledger);
        fs::remove_file(folder.path().join(name)).unwrap();
        let ledger = open(folder.path()).unwrap();
        assert_eq!(found(&ledger, &wanted(3)), [(3, text(3))]);
        assert!(ledger.inclusion(3, N).is_ok());
    }
}

#[tokio::test]
async fn a_bit_that_flips_while_it_runs_gives_no_wrong_proof() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), N).await;
    let path = folder.path().join("000000000000.tree");
    let ledger = open(folder.path()).unwrap();
    ledger.inclusion(3, N).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // The hash of the leaf beside it: from the second of 15 hashes at the end.
    let at = bytes.len() - 15 * 32 + 2 * 32;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = ledger.inclusion(3, N).unwrap_err().to_string();
    assert!(error.contains("000000000000.tree"), "{error}");
}

#[tokio::test]
async fn a_tree_of_an_earlier_version_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), N).await;
    let path = folder.path().join("000000000000.tree");
    let bytes = fs::read(&path).unwrap();
    let mut before = bytes.clone();
    before[7] = 1;
    fs::write(&path, before).unwrap();
    assert_eq!(open(folder.path()).unwrap().repairs(), [Repair::Tree(path.clone())]);
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn a_file_cut_at_any_length_is_found() {
    let (folder, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(folder.path(), N).await;
    for name in files(folder.path()) {
        let good = fs::read(folder.path().join(&name)).unwrap();
        for length in (0..good.len()).filter(|length| name != "acknowledged" || length % 64 == 0) {
            fs::write(folder.path().join(&name), &good[..length]).unwrap();
            assert_ne!(damages(folder.path()), [], "{name} at {length}");
            if length % 23 == 0 {
                copy(folder.path(), broken.path());
                never_loses(broken.path(), &format!("{name} cut to {length}"));
            }
        }
        fs::write(folder.path().join(&name), good).unwrap();
    }
}

#[tokio::test]
async fn a_missing_file_is_named_and_a_missing_tree_is_made_again() {
    let (folder, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(folder.path(), N).await;
    for name in files(folder.path()) {
        copy(folder.path(), broken.path());
        fs::remove_file(broken.path().join(&name)).unwrap();
        match open(broken.path()) {
            Ok(ledger) => {
                assert!(name.ends_with(".tree"), "{name}");
                assert_eq!(ledger.repairs(), [Repair::Tree(broken.path().join(&name))]);
                assert_eq!((ledger.head().size, ledger.verify().unwrap().damages), (N, vec![]));
                let again = fs::read(broken.path().join(&name)).unwrap();
                assert_eq!(again, fs::read(folder.path().join(&name)).unwrap());
            }
            Err(OpenError::Damaged(damage)) => {
                assert!(damage.file().ends_with(&name), "{damage}");
                assert!(damage.to_string().contains("restore the whole folder"), "{damage}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
    // All of them: not a new log, but the loss of one.
    copy(folder.path(), broken.path());
    for name in files(broken.path()).iter().filter(|name| *name != "acknowledged") {
        fs::remove_file(broken.path().join(name)).unwrap();
    }
    assert!(matches!(open(broken.path()), Err(OpenError::Damaged(_))));
}

#[tokio::test]
async fn a_torn_tail_that_nobody_was_told_of_is_cut_and_said() {
    let whole = {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), N + 1).await;
        fs::read(folder.path().join("000000000016.entries")).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), N).await;
    let good = fs::read(folder.path().join("000000000016.entries")).unwrap();
    let broken = tempfile::tempdir().unwrap();
    // The power went while entry N was being written: some of it is there, or something else in its place.
    let torn: Vec<(String, Vec<u8>)> = (good.len() + 1..whole.len())
        .map(|length| (format!("{length} bytes"), whole[..length].to_vec()))
        .chain([
            ("zeros".into(), [&good[..], &[0; 500]].concat()),
            ("noise".into(), [&good[..], &[0xa5; 500]].concat()),
        ])
        .collect();
    for (case, bytes) in torn {
        copy(folder.path(), broken.path());
        fs::write(broken.path().join("000000000016.entries"), &bytes).unwrap();
        let report = verify_files(broken.path(), describe).unwrap();
        assert_eq!((report.damages, report.torn), (vec![], (bytes.len() - good.len()) as u64), "{case}");
        let ledger = open(broken.path()).unwrap();
        assert_eq!(ledger.head().size, N, "{case}");
        let [Repair::TornTail { offset, bytes: cut, .. }] = ledger.repairs() else {
            panic!("{case}: {:?}", ledger.repairs())
        };
        assert_eq!((*offset, *cut), (good.len() as u64, (bytes.len() - good.len()) as u64), "{case}");
        assert_eq!(append(&ledger, &text(N)).await, N);
        ledger.close().await;
        assert_eq!(fs::read(broken.path().join("000000000016.entries")).unwrap(), whole, "{case}");
    }
}

#[tokio::test]
async fn a_whole_entry_behind_the_mark_is_kept() {
    let (folder, longer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(folder.path(), N).await;
    make(longer.path(), N + 2).await;
    // The mark of the shorter log: the power went after entries were durable and before the mark was.
    fs::copy(folder.path().join("acknowledged"), longer.path().join("acknowledged")).unwrap();
    let ledger = open(longer.path()).unwrap();
    assert_eq!((ledger.head().size, ledger.repairs().len()), (N + 2, 0));
}

#[tokio::test]
async fn files_of_another_log_are_not_taken_for_ones_own() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(folder.path(), N).await;
    let options = alcazar_ledger::Options { new_log: [9; 16], ..crate::support::options() };
    let ledger = Ledger::open(other.path(), options).unwrap();
    for n in 0..N {
        append(&ledger, &text(n)).await;
    }
    ledger.close().await;
    for name in files(folder.path()) {
        let mixed = tempfile::tempdir().unwrap();
        copy(folder.path(), mixed.path());
        fs::copy(other.path().join(&name), mixed.path().join(&name)).unwrap();
        let error = open(mixed.path()).map(|ledger| ledger.head()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged(_)), "{name}: {error}");
    }
}

#[tokio::test]
async fn entries_that_this_version_cannot_read_are_not_cut() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), 3).await;
    let options = alcazar_ledger::Options { describe: |_| None, ..crate::support::options() };
    let error = Ledger::open(folder.path(), options).map(|ledger| ledger.head()).unwrap_err().to_string();
    assert!(error.contains("entry 0 is whole, but this version"), "{error}");
    assert_eq!(open(folder.path()).unwrap().head().size, 3);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::File::create(&file).unwrap().write_all(b"x").unwrap();
    let error = open(&file.join("ledger")).map(|ledger| ledger.head()).unwrap_err().to_string();
    assert!(error.contains("file/ledger"), "{error}");
}
