//! Appending, proving, searching and opening again, against a list in memory.

use std::sync::Arc;

use alcazar_ledger::{
    AppendError, OpenError, Query, ReadError, Term,
    merkle::{Frontier, Hash, verify_consistency, verify_inclusion},
};
use proptest::prelude::*;

use crate::support::{append, found, open, text};

fn roots(n: u64) -> Vec<Hash> {
    let mut frontier = Frontier::default();
    let mut roots = vec![frontier.root()];
    for i in 0..n {
        frontier.push(Hash::leaf(text(i).as_bytes()));
        roots.push(frontier.root());
    }
    roots
}

#[tokio::test]
async fn heads_and_proofs_are_those_of_the_entries_while_it_grows_and_after_it_is_opened_again() {
    const N: u64 = 45;
    let folder = tempfile::tempdir().unwrap();
    let roots = roots(N);
    let mut ledger = open(folder.path()).unwrap();
    for n in 0..=N {
        let head = ledger.head();
        assert_eq!((head.size, head.root), (n, roots[n as usize]));
        if n % 11 == 0 {
            ledger.close().await;
            ledger = open(folder.path()).unwrap();
            assert_eq!((ledger.head(), ledger.repairs().len()), (head, 0));
        }
        if n < N {
            assert_eq!(append(&ledger, &text(n)).await, n);
        }
    }
    for size in 0..=N {
        let root = roots[size as usize];
        assert_eq!(ledger.root(size).unwrap(), root);
        for index in 0..size {
            let proof = ledger.inclusion(index, size).unwrap();
            let leaf = Hash::leaf(&ledger.entry(index).unwrap());
            verify_inclusion(leaf, index, size, &root, &proof).unwrap();
        }
        for old in 0..=size {
            let proof = ledger.consistency(old, size).unwrap();
            verify_consistency(old, &roots[old as usize], size, &root, &proof).unwrap();
        }
    }
    assert!((0..N).all(|n| ledger.entry(n).unwrap() == text(n).into_bytes()));
    for beyond in [
        ledger.entry(N).err(),
        ledger.root(N + 1).err(),
        ledger.inclusion(0, N + 1).err(),
        ledger.inclusion(7, 7).err(),
        ledger.consistency(5, 4).err(),
    ] {
        assert!(matches!(beyond, Some(ReadError::Beyond { .. })), "{beyond:?}");
    }
    let report = ledger.verify().unwrap();
    assert_eq!((report.damages, report.head, report.segments), (vec![], ledger.head(), 6));
}

#[tokio::test]
async fn entries_that_wait_together_are_all_recorded_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(open(folder.path()).unwrap());
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..500 {
        let ledger = ledger.clone();
        waiting.spawn(async move { (append(&ledger, &text(n)).await, n) });
    }
    let mut numbers: Vec<_> = waiting.join_all().await;
    numbers.sort_unstable();
    for (place, (index, n)) in numbers.into_iter().enumerate() {
        assert_eq!(index, place as u64);
        assert_eq!(ledger.entry(index).unwrap(), text(n).into_bytes());
    }
    assert_eq!(ledger.verify().unwrap().damages, []);
}

#[tokio::test]
async fn a_log_is_for_one_process_and_for_entries_of_a_size() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).unwrap();
    assert!(matches!(open(folder.path()), Err(OpenError::Locked { .. })));
    assert!(matches!(
        alcazar_ledger::verify_files(folder.path(), crate::support::describe),
        Err(OpenError::Locked { .. })
    ));
    let facts = crate::support::describe(text(0).as_bytes()).unwrap();
    for size in [0, alcazar_ledger::MAX_ENTRY + 1] {
        assert!(matches!(ledger.append(vec![b'x'; size], facts).await, Err(AppendError::Size(n)) if n == size));
    }
    ledger.close().await;
    assert!(matches!(ledger.append(text(0).into_bytes(), facts).await, Err(AppendError::Closed)));
    assert_eq!(open(folder.path()).unwrap().head().size, 0);
}

#[tokio::test]
async fn what_is_searched_is_found_newest_first_and_in_pages() {
    let folder = tempfile::tempdir().unwrap();
    crate::support::make(folder.path(), 30).await;
    let ledger = open(folder.path()).unwrap();
    let term = |place, word: &str| Query { term: Some((place, Term::of(word.as_bytes()))), ..Query::default() };
    assert_eq!(found(&ledger, &term(0, "name-4")), [(4, text(4))]);
    assert_eq!(found(&ledger, &term(0, "name-29")), [(29, text(29))]);
    assert_eq!(found(&ledger, &term(0, "name-30")), []);
    // The same word in another place is another thing.
    assert_eq!(found(&ledger, &term(1, "name-4")), []);
    let mut query = Query { before: None, ..term(1, "group-2") };
    let mut paged = Vec::new();
    loop {
        let mut page = Vec::new();
        let visit = |index, _: &[u8]| {
            page.push(index);
            if page.len() == 4 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
        };
        ledger.search(&query, visit).unwrap();
        let Some(last) = page.last() else { break };
        query.before = Some(*last);
        paged.extend(page);
    }
    assert_eq!(paged, (0..30).rev().filter(|n| n % 3 == 2).collect::<Vec<_>>());
}

#[derive(Clone, Debug)]
struct Sought {
    term: Option<(usize, u64)>,
    since: Option<u64>,
    until: Option<u64>,
    before: Option<u64>,
}

fn sought() -> impl Strategy<Value = Sought> {
    let moment = || prop::option::of(995u64..1060);
    let term = prop::option::of((0usize..3, 0u64..50));
    (term, moment(), moment(), prop::option::of(0u64..60)).prop_map(|(term, since, until, before)| Sought {
        term,
        since,
        until,
        before,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_search_finds_what_a_list_would(moments in prop::collection::vec(1000u64..1050, 0..40), sought in prop::collection::vec(sought(), 20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(folder.path()).unwrap();
        // The clock goes back and forth.
        let texts: Vec<_> = moments.iter().enumerate()
            .map(|(n, at)| format!("{at} {} name-{n} group-{} all-{}", at + 5, n % 3, n % 2)).collect();
        runtime.block_on(async { for text in &texts { append(&ledger, text).await; } });
        for sought in sought {
            let word = |place: usize, n: u64| match place { 0 => format!("name-{n}"), 1 => format!("group-{}", n % 3), _ => format!("all-{}", n % 2) };
            let word = sought.term.map(|(place, n)| (place, word(place, n)));
            let query = Query {
                term: word.as_ref().map(|(place, word)| (*place, Term::of(word.as_bytes()))),
                since: sought.since, until: sought.until, lasting: None, before: sought.before,
            };
            let expected: Vec<_> = texts.iter().enumerate().rev()
                .filter(|(n, text)| {
                    let (words, at) = (text.split(' ').collect::<Vec<_>>(), moments[*n]);
                    word.as_ref().is_none_or(|(place, word)| words[place + 2] == word)
                        && sought.since.is_none_or(|since| at >= since)
                        && sought.until.is_none_or(|until| at < until)
                        && sought.before.is_none_or(|before| (*n as u64) < before)
                })
                .map(|(n, text)| (n as u64, text.clone())).collect();
            prop_assert_eq!(found(&ledger, &query), expected);
        }
    }

    #[test]
    fn what_matters_longer_is_never_passed_over(untils in prop::collection::vec(2000u64..2050, 1..40), moment in 1990u64..2060) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(folder.path()).unwrap();
        runtime.block_on(async {
            for (n, until) in untils.iter().enumerate() { append(&ledger, &format!("1000 {until} n-{n} g all")).await; }
        });
        let query = Query { term: Some((2, Term::of(b"all"))), lasting: Some(moment), ..Query::default() };
        let numbers: Vec<_> = found(&ledger, &query).into_iter().map(|(n, _)| n).collect();
        for (n, until) in untils.iter().enumerate() {
            prop_assert!(*until <= moment || numbers.contains(&(n as u64)));
        }
    }
}
