//! The sled store does what the trait promises, as the conformance suite and a model see it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_store::{
    Expected, Key, Prefix, Revision, SledStore, Store, StoreError, WatchError, WriteError, conformance,
};
use proptest::prelude::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_passes_the_conformance_suite() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let outcome = conformance::run(|| {
        let name = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        let store: Arc<dyn Store> = Arc::new(SledStore::open(folder.path().join(name)).unwrap());
        async move { store }
    })
    .await;
    outcome.unwrap();
}

#[tokio::test]
async fn a_second_opening_is_refused_until_the_first_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = SledStore::open(folder.path()).unwrap();
    let error = SledStore::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("already in use"), "{error}");

    let mut watch = store.watch(&Prefix::all(), Revision::default()).await.unwrap();
    store.close().await;
    assert_eq!(watch.next().await, Err(WatchError::Closed));
    assert!(matches!(store.get(&"a".parse().unwrap()).await, Err(StoreError::Closed)));
    SledStore::open(folder.path()).unwrap();
}

#[tokio::test]
async fn a_lease_may_be_asked_for_beyond_all_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = SledStore::open(folder.path()).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let lease = store.acquire_lease("leader", "ann", Duration::MAX, now).await.unwrap();
    assert!(lease.holds(now + Duration::from_secs(1 << 40)));
    assert!(store.acquire_lease("leader", "bob", Duration::from_secs(1), now).await.is_err());
}

#[test]
fn a_new_folder_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/store");
    drop(SledStore::open(&path).unwrap());
    for made in [path.as_path(), path.parent().unwrap()] {
        assert_eq!(std::fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700, "{}", made.display());
    }
}

#[tokio::test]
async fn a_watch_from_a_forgotten_time_says_list_again() {
    let folder = tempfile::tempdir().unwrap();
    let key: Key = "a/b".parse().unwrap();
    let store = SledStore::open(folder.path()).unwrap();
    store.put_if(&key, Expected::Absent, vec![]).await.unwrap();
    drop(store);

    let store = SledStore::open(folder.path()).unwrap();
    let mut watch = store.watch(&Prefix::all(), Revision::default()).await.unwrap();
    assert_eq!(watch.next().await, Err(WatchError::Lagged));
    let from = store.list(&Prefix::all()).await.unwrap();
    assert_eq!(from.revision, Revision::new(1));
    let mut watch = store.watch(&Prefix::all(), from.revision).await.unwrap();
    store.delete_if(&key, from.revision).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision(), Revision::new(2));
}

/// Values as large as they may be fill sled's pages until it moves them to files of their own.
#[tokio::test]
async fn many_large_values_survive_a_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let store = SledStore::open(folder.path()).unwrap();
    let value = |n: u8| vec![n; 60_000];
    for n in 0..40 {
        store.put_if(&format!("large/{n:02}").parse().unwrap(), Expected::Absent, value(n)).await.unwrap();
    }
    assert!(std::fs::read_dir(folder.path().join("blobs")).unwrap().count() > 0, "this test is about those files");
    drop(store);
    let store = SledStore::open(folder.path()).unwrap();
    let listing = store.list(&Prefix::all()).await.unwrap();
    assert_eq!(listing.entries.len(), 40);
    assert!(listing.entries.iter().zip(0..).all(|(entry, n)| entry.value() == value(n)));
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, expect: Guess, value: Vec<u8> },
    Delete { key: u8, expect: Guess },
    Page { after: Option<u8>, limit: usize },
    Reopen,
}

/// What a step believes of the key: the truth, that it is absent, or a revision from anywhere.
#[derive(Clone, Copy, Debug)]
enum Guess {
    Right,
    Absent,
    Any(u64),
}

fn guesses() -> impl Strategy<Value = Guess> {
    prop_oneof![3 => Just(Guess::Right), 1 => Just(Guess::Absent), 1 => (0..20u64).prop_map(Guess::Any)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = proptest::collection::vec(any::<u8>(), 0..40);
    let step = prop_oneof![
        8 => (0..24u8, guesses(), value).prop_map(|(key, expect, value)| Step::Put { key, expect, value }),
        4 => (0..24u8, guesses()).prop_map(|(key, expect)| Step::Delete { key, expect }),
        2 => (proptest::option::of(0..24u8), 0..30usize).prop_map(|(after, limit)| Step::Page { after, limit }),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

fn key(n: u8) -> Key {
    // Two families, so that listings have something to leave out.
    format!("{}/{n:02}", if n.is_multiple_of(3) { "other" } else { "family" }).parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sled_behaves_as_a_map_with_revisions(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(model(steps));
    }
}

async fn model(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let mut store = SledStore::open(folder.path()).unwrap();
    let mut model: BTreeMap<Key, (u64, Vec<u8>)> = BTreeMap::new();
    let mut revision = 0;
    let family: Prefix = "family".parse().unwrap();
    for step in steps {
        match step {
            Step::Put { key: k, expect, value } => {
                let k = key(k);
                let now = model.get(&k).map(|(revision, _)| *revision);
                let expected = match (expect, now) {
                    (Guess::Absent, _) | (Guess::Right, None) => Expected::Absent,
                    (Guess::Right, Some(revision)) => Expected::At(Revision::new(revision)),
                    (Guess::Any(revision), _) => Expected::At(Revision::new(revision)),
                };
                let outcome = store.put_if(&k, expected, value.clone()).await;
                if expected == now.map_or(Expected::Absent, |revision| Expected::At(Revision::new(revision))) {
                    revision += 1;
                    assert_eq!(outcome.unwrap().get(), revision);
                    model.insert(k, (revision, value));
                } else {
                    assert!(
                        matches!(outcome, Err(WriteError::Conflict { found, .. }) if found.map(Revision::get) == now)
                    );
                }
            }
            Step::Delete { key: k, expect } => {
                let k = key(k);
                let now = model.get(&k).map(|(revision, _)| *revision);
                let guess = match expect {
                    Guess::Right => now.unwrap_or(1),
                    Guess::Absent => 0,
                    Guess::Any(revision) => revision,
                };
                let outcome = store.delete_if(&k, Revision::new(guess)).await;
                if Some(guess) == now {
                    revision += 1;
                    assert_eq!(outcome.unwrap().get(), revision);
                    model.remove(&k);
                } else {
                    assert!(
                        matches!(outcome, Err(WriteError::Conflict { found, .. }) if found.map(Revision::get) == now)
                    );
                }
            }
            Step::Page { after, limit } => {
                let after = after.map(key).filter(|key| family.contains(key));
                let page = store.page(&family, after.as_ref(), limit).await.unwrap();
                let rest: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| family.contains(key) && after.as_ref().is_none_or(|after| *key > after))
                    .collect();
                assert_eq!(page.more, rest.len() > limit);
                let found: Vec<_> =
                    page.entries.iter().map(|e| (e.key().clone(), e.revision().get(), e.value().to_vec())).collect();
                let expected: Vec<_> = rest
                    .into_iter()
                    .take(limit)
                    .map(|(key, (revision, value))| (key.clone(), *revision, value.clone()))
                    .collect();
                assert_eq!(found, expected);
            }
            Step::Reopen => {
                store.close().await;
                store = SledStore::open(folder.path()).unwrap();
            }
        }
    }
    let all: Vec<_> = store
        .list(&Prefix::all())
        .await
        .unwrap()
        .entries
        .iter()
        .map(|e| (e.key().clone(), e.revision().get()))
        .collect();
    assert_eq!(all, model.iter().map(|(key, (revision, _))| (key.clone(), *revision)).collect::<Vec<_>>());
}
