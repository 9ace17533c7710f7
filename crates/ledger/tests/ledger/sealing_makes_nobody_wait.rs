//! A full segment is sealed beside the appends to the next one; until then everything is answered from memory.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use alcazar_ledger::{
    Hooks, Ledger, Options, Query, Step, Term,
    merkle::{Hash, verify_inclusion},
};

use crate::support::{append, describe, found, open, options, text};

/// Everything that is asked of a log of `n` entries has its right answer.
fn check(ledger: &Ledger, n: u64) {
    let head = ledger.head();
    assert_eq!(head.size, n);
    for i in 0..n {
        assert_eq!(ledger.entry(i).unwrap(), text(i).as_bytes());
        let proof = ledger.inclusion(i, n).unwrap();
        verify_inclusion(Hash::leaf(text(i).as_bytes()), i, n, &head.root, &proof).unwrap();
        let name = Query { term: Some((0, Term::of(format!("name-{i}").as_bytes()))), ..Query::default() };
        assert_eq!(found(ledger, &name), [(i, text(i))]);
    }
    let all = Query { term: Some((2, Term::of(b"all"))), ..Query::default() };
    assert!(found(ledger, &all).into_iter().map(|(index, _)| index).eq((0..n).rev()));
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_and_answers_go_on_while_a_segment_is_sealed() {
    let folder = tempfile::tempdir().unwrap();
    // The thread that seals is held where it says that it has.
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let observe = move |step: Step| {
        if step == Step::Sealed {
            // The sender ends with the test.
            let _held = wait.lock().unwrap().recv();
        }
    };
    let hooks = Hooks { observe: Some(Arc::new(observe)), ..Hooks::default() };
    let ledger = Ledger::open(folder.path(), Options { hooks, ..options() }).unwrap();
    let appended = async {
        for i in 0..15 {
            assert_eq!(append(&ledger, &text(i)).await, i);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), appended).await.expect("nobody waits for the seal");
    check(&ledger, 15);
    drop(go);
    ledger.close().await;
    assert_eq!(open(folder.path()).unwrap().repairs(), []);
}

#[tokio::test]
async fn a_segment_that_cannot_be_sealed_is_read_from_memory_and_sealed_later() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).unwrap();
    // Where its file would be begun.
    let obstacle = folder.path().join("000000000000.tree.new");
    std::fs::create_dir(&obstacle).unwrap();
    for i in 0..16 {
        assert_eq!(append(&ledger, &text(i)).await, i);
    }
    check(&ledger, 16);
    // Two are not kept back.
    let facts = describe(text(16).as_bytes()).unwrap();
    let refused = ledger.append(text(16).into_bytes(), facts).await.unwrap_err();
    assert!(refused.to_string().contains("000000000000.tree"), "{refused}");
    std::fs::remove_dir(&obstacle).unwrap();
    for i in 16..20 {
        assert_eq!(append(&ledger, &text(i)).await, i);
    }
    check(&ledger, 20);
    assert_eq!(ledger.verify().unwrap().damages, []);
    ledger.close().await;
    let ledger = open(folder.path()).unwrap();
    assert_eq!(ledger.repairs(), []);
    check(&ledger, 20);
}
