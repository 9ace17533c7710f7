//! The store on a real etcd does what the trait promises, and what it must when etcd fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use alcazar_store::{
    EtcdStore, Expected, Key, LeaseError, Prefix, Revision, Store, StoreError, WatchError, WriteError, conformance,
    etcd::{EtcdConfig, EtcdTls, EtcdUser, OpenEtcdError},
};
use alcazar_testkit::{DEADLINE, Etcd, free_port, until_ok};
use tokio::time::timeout;

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn config(etcd: &Etcd, prefix: &str) -> EtcdConfig {
    EtcdConfig::new([etcd.endpoint()], prefix.parse().unwrap())
}

async fn open(etcd: &Etcd) -> EtcdStore {
    EtcdStore::open(config(etcd, "test")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_passes_the_conformance_suite() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let count = AtomicUsize::new(0);
    let outcome = conformance::run(|| async {
        let name = format!("suite/{}", count.fetch_add(1, Ordering::Relaxed));
        Arc::new(EtcdStore::open(config(&etcd, &name)).await.unwrap()) as Arc<dyn Store>
    })
    .await;
    outcome.unwrap();
}

#[tokio::test]
async fn stores_of_two_prefixes_know_nothing_of_each_other() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let one = EtcdStore::open(config(&etcd, "one")).await.unwrap();
    let two = EtcdStore::open(config(&etcd, "one-more")).await.unwrap();
    one.put_if(&key("a/b"), Expected::Absent, vec![1]).await.unwrap();
    two.put_if(&key("a/b"), Expected::Absent, vec![2]).await.unwrap();
    for (store, value) in [(&one, 1), (&two, 2)] {
        let listing = store.list(&Prefix::all()).await.unwrap();
        assert_eq!(listing.entries.len(), 1);
        assert_eq!(listing.entries[0].value(), [value]);
    }
}

#[tokio::test]
async fn a_large_family_is_listed_whole_and_as_of_one_moment() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let store = open(&etcd).await;
    for n in 0..600 {
        store.put_if(&key(&format!("many/{n:04}")), Expected::Absent, vec![0; 100]).await.unwrap();
    }
    let listing = store.list(&"many".parse().unwrap()).await.unwrap();
    assert_eq!(listing.entries.len(), 600);
    assert!(listing.entries.is_sorted_by_key(|entry| entry.key().clone()));
    assert!(!listing.more);
    let page = store.page(&"many".parse().unwrap(), Some(&key("many/0299")), 300).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (300, false));
    let none = store.page(&"many".parse().unwrap(), None, 0).await.unwrap();
    assert_eq!((none.entries.len(), none.more), (0, true));
}

#[tokio::test]
async fn an_impossible_revision_is_a_conflict() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let store = open(&etcd).await;
    for expected in [0, u64::MAX] {
        let outcome = store.put_if(&key("k"), Expected::At(Revision::new(expected)), vec![]).await;
        assert!(matches!(outcome, Err(WriteError::Conflict { found: None, .. })), "{outcome:?}");
        let outcome = store.delete_if(&key("k"), Revision::new(expected)).await;
        assert!(matches!(outcome, Err(WriteError::Conflict { found: None, .. })), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_record_that_somebody_altered_is_refused_and_named() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let store = open(&etcd).await;
    let from = store.list(&Prefix::all()).await.unwrap().revision;
    let mut watch = store.watch(&Prefix::all(), from).await.unwrap();
    etcd.ctl(&["put", "test/a/b", "by hand"]).unwrap();
    let error = store.get(&key("a/b")).await.unwrap_err();
    assert!(matches!(error, StoreError::Record { .. }), "{error}");
    assert!(error.to_string().contains("test/a/b"), "{error}");
    assert!(store.list(&Prefix::all()).await.is_err());
    assert_eq!(watch.next().await, Err(WatchError::Lagged));
    // It does not pass for absent either.
    let outcome = store.put_if(&key("a/b"), Expected::Absent, vec![]).await;
    assert!(matches!(outcome, Err(WriteError::Conflict { .. })), "{outcome:?}");
}

#[tokio::test]
async fn an_etcd_that_hangs_is_a_typed_error_in_time_and_goes_on_afterwards() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let quick = EtcdConfig { deadline: Duration::from_secs(1), ..config(&etcd, "test") };
    let store = EtcdStore::open(quick).await.unwrap();
    let first = store.put_if(&key("a"), Expected::Absent, vec![1]).await.unwrap();
    let mut watch = store.watch(&Prefix::all(), first).await.unwrap();

    etcd.process().pause().unwrap();
    let silent = |error: &StoreError| matches!(error, StoreError::Silent { server, .. } if *server == etcd.endpoint());
    let error = timeout(Duration::from_secs(5), store.get(&key("a"))).await.unwrap().unwrap_err();
    assert!(silent(&error), "{error:?}");
    let outcome = timeout(Duration::from_secs(5), store.put_if(&key("a"), Expected::At(first), vec![2])).await.unwrap();
    assert!(matches!(&outcome, Err(WriteError::Store(error)) if silent(error)), "{outcome:?}");
    etcd.process().resume().unwrap();

    // What became of the write that was given up is what a read says; it may still be made after that.
    let last = loop {
        let entry = until_answered(&store, "a").await;
        assert!(entry.value() == [1] || entry.value() == [2]);
        match store.put_if(&key("a"), Expected::At(entry.revision()), vec![3]).await {
            Err(WriteError::Conflict { .. }) if entry.value() == [1] => {}
            outcome => break outcome.unwrap(),
        }
    };
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.push(timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap().revision());
    }
    assert!(seen.is_sorted() && seen.len() <= 2, "{seen:?}");
}

/// Reads until the store answers.
async fn until_answered(store: &EtcdStore, name: &str) -> alcazar_store::Entry {
    until_ok("an answer", DEADLINE, async || store.get(&key(name)).await).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_watch_goes_on_over_a_restart_without_a_gap_and_says_when_history_is_gone() {
    let Some(mut etcd) = Etcd::start().unwrap() else { return };
    let store = open(&etcd).await;
    let mut at = store.put_if(&key("k"), Expected::Absent, vec![]).await.unwrap();
    let mut watch = store.watch(&Prefix::all(), at).await.unwrap();
    for round in 0..3 {
        let mut written = Vec::new();
        for n in 0..5 {
            at = store.put_if(&key("k"), Expected::At(at), vec![round, n]).await.unwrap();
            written.push(at);
        }
        etcd.kill().unwrap();
        etcd.start_again().unwrap();
        until_answered(&store, "k").await;
        for expected in written {
            let event = timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap();
            assert_eq!(event.revision(), expected);
        }
    }
    etcd.ctl(&["compact", &at.to_string()]).unwrap();
    let mut late = store.watch(&Prefix::all(), Revision::new(1)).await.unwrap();
    assert_eq!(timeout(Duration::from_secs(20), late.next()).await.unwrap(), Err(WatchError::Lagged));
    let listing = store.list(&Prefix::all()).await.unwrap();
    let mut again = store.watch(&Prefix::all(), listing.revision).await.unwrap();
    let last = store.put_if(&key("k"), Expected::At(at), vec![]).await.unwrap();
    assert_eq!(again.next().await.unwrap().revision(), last);
}

#[tokio::test]
async fn the_next_endpoint_is_asked_when_one_is_away() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let away = format!("http://127.0.0.1:{}", free_port().unwrap());
    let both = EtcdConfig::new([away.clone(), etcd.endpoint()], "test".parse().unwrap());
    let store = EtcdStore::open(both).await.unwrap();
    store.put_if(&key("a"), Expected::Absent, vec![]).await.unwrap();
    let alone = EtcdConfig::new([away.clone()], "test".parse().unwrap());
    let error = EtcdStore::open(alone).await.unwrap_err();
    assert!(error.to_string().contains(&away), "{error}");
}

#[tokio::test]
async fn an_endpoint_of_another_cluster_is_refused() {
    let (Some(mut one), Some(two)) = (Etcd::start().unwrap(), Etcd::start().unwrap()) else { return };
    let both = EtcdConfig::new([one.endpoint(), two.endpoint()], "test".parse().unwrap());
    let store = EtcdStore::open(both).await.unwrap();
    store.put_if(&key("a"), Expected::Absent, vec![]).await.unwrap();
    one.kill().unwrap();
    // Never "absent", which the other cluster would say.
    for _ in 0..3 {
        assert!(store.get(&key("a")).await.is_err());
    }
    one.start_again().unwrap();
    until_answered(&store, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_racing_for_a_key_or_a_lease_one_wins() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let (ann, bob) = (open(&etcd).await, open(&etcd).await);
    for round in 0..50 {
        let name = key(&format!("race/{round}"));
        let (a, b) =
            tokio::join!(ann.put_if(&name, Expected::Absent, vec![1]), bob.put_if(&name, Expected::Absent, vec![2]),);
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        let won = ann.get(&name).await.unwrap().unwrap();
        assert_eq!(won.value(), if a.is_ok() { [1] } else { [2] });
    }
    let (ttl, now) = (Duration::from_secs(10), SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let (a, b) = tokio::join!(ann.acquire_lease("l", "ann", ttl, now), bob.acquire_lease("l", "bob", ttl, now));
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    let lost = a.err().or(b.err()).unwrap();
    assert!(matches!(lost, LeaseError::Held { .. }), "{lost}");
}

fn tls(etcd: &Etcd) -> EtcdTls {
    let client = Some((etcd.pem("cert.pem"), etcd.pem("key.pem")));
    EtcdTls { ca: etcd.pem("ca.pem"), client, server_name: None }
}

/// Has etcd know users from here on; the one whose place is `test`, with its password in a file.
fn with_users(etcd: &Etcd) -> EtcdUser {
    for command in [
        &["user", "add", "root:rootpw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "ca:secret"],
        &["role", "add", "ca"],
        &["role", "grant-permission", "ca", "--prefix=true", "readwrite", "test/"],
        &["user", "grant-role", "ca", "ca"],
        &["auth", "enable"],
    ] {
        etcd.ctl(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }
    let password = etcd.pem("password");
    std::fs::write(&password, "secret\n").unwrap();
    EtcdUser { name: "ca".into(), password }
}

#[tokio::test]
async fn tls_and_users_are_checked_both_ways() {
    alcazar_mtls::install_default_provider();
    let Some(etcd) = Etcd::start_with_tls().unwrap() else { return };
    let tls = tls(&etcd);
    let good = EtcdConfig { tls: Some(tls.clone()), ..config(&etcd, "test") };
    let store = EtcdStore::open(good.clone()).await.unwrap();
    let at = store.put_if(&key("a"), Expected::Absent, vec![1]).await.unwrap();

    let nobody = EtcdConfig { tls: Some(EtcdTls { client: None, ..tls.clone() }), ..good.clone() };
    assert!(matches!(EtcdStore::open(nobody).await, Err(OpenEtcdError::Store(_))));
    let elsewhere =
        EtcdConfig { tls: Some(EtcdTls { server_name: Some("other.example".into()), ..tls }), ..good.clone() };
    assert!(matches!(EtcdStore::open(elsewhere).await, Err(OpenEtcdError::Store(_))));

    // etcd takes the name in a certificate for a user, but for a client with a token: so the users decide from here on.
    let user = with_users(&etcd);
    let password = user.password.clone();
    let user = EtcdConfig { user: Some(user), ..good.clone() };
    let store = EtcdStore::open(user.clone()).await.unwrap();
    let mut watch = store.watch(&Prefix::all(), at).await.unwrap();
    let next = store.put_if(&key("a"), Expected::At(at), vec![2]).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision(), next);
    // Another's place in etcd is not this user's.
    let strange = EtcdConfig { prefix: "elsewhere".parse().unwrap(), ..user.clone() };
    assert!(EtcdStore::open(strange).await.is_err());
    std::fs::write(&password, "wrong").unwrap();
    assert!(EtcdStore::open(user).await.is_err());
}

#[tokio::test]
async fn a_change_of_users_or_roles_stops_no_store_that_is_open() {
    alcazar_mtls::install_default_provider();
    let Some(etcd) = Etcd::start_with_signed_tokens().unwrap() else { return };
    let user = with_users(&etcd);
    let certified = EtcdConfig { tls: Some(tls(&etcd)), user: Some(user), ..config(&etcd, "test") };
    let store = EtcdStore::open(certified).await.unwrap();
    let mut at = store.put_if(&key("a"), Expected::Absent, vec![0]).await.unwrap();
    for round in 1..4u8 {
        // The token that the store has is of an earlier state of the users from here on.
        etcd.ctl(&["--user=root:rootpw", "role", "add", &format!("role-{round}")]).unwrap();
        let mut watch = store.watch(&Prefix::all(), at).await.unwrap();
        assert_eq!(store.get(&key("a")).await.unwrap().unwrap().revision(), at);
        at = store.put_if(&key("a"), Expected::At(at), vec![round]).await.unwrap();
        assert_eq!(watch.next().await.unwrap().revision(), at);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_comes_however_large_it_is() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let store = open(&etcd).await;
    let first = store.put_if(&key("large/0"), Expected::Absent, vec![0; 60 << 10]).await.unwrap();
    // 6 MB, which etcd sends as one message: more than a client takes by default.
    for n in 1..100 {
        store.put_if(&key(&format!("large/{n}")), Expected::Absent, vec![n; 60 << 10]).await.unwrap();
    }
    let mut watch = store.watch(&Prefix::all(), first).await.unwrap();
    for n in 1..100 {
        let event = timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap();
        assert_eq!(event.key().as_str(), format!("large/{n}"));
    }
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let store = open(&etcd).await;
    let mut watch = store.watch(&Prefix::all(), Revision::new(1)).await.unwrap();
    store.close().await;
    assert_eq!(watch.next().await, Err(WatchError::Closed));
    assert!(matches!(store.get(&key("a")).await, Err(StoreError::Closed)));
    assert!(matches!(store.watch(&Prefix::all(), Revision::new(1)).await, Err(StoreError::Closed)));
}
