//! The store in the objects of a real Kubernetes API does what the trait promises, and what it must when the API fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use alcazar_store::{
    Event, Expected, Key, KubernetesStore, Prefix, Revision, Store, StoreError, WatchError, WriteError, conformance,
    kubernetes::{KubernetesStoreConfig, OpenKubernetesError},
};
use alcazar_testkit::{Kubernetes, until_ok};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::time::timeout;

const NAMESPACE: &str = "alcazar-system";

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

/// As the CA makes its own: a request is not repeated behind the store's back.
async fn client(path: &std::path::Path) -> Client {
    let file = Kubeconfig::read_from(path).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn open(kubernetes: &Kubernetes, name: &str) -> KubernetesStore {
    let config = KubernetesStoreConfig::new(NAMESPACE, name, kubernetes.server());
    KubernetesStore::open(client(&kubernetes.kubeconfig()).await, config).await.unwrap()
}

async fn started() -> Option<Kubernetes> {
    let kubernetes = Kubernetes::start().await.unwrap()?;
    kubernetes.namespace(NAMESPACE, &[]).await.unwrap();
    Some(kubernetes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_passes_the_conformance_suite() {
    let Some(kubernetes) = started().await else { return };
    let count = AtomicUsize::new(0);
    let outcome = conformance::run(|| async {
        let name = format!("suite-{}", count.fetch_add(1, Ordering::Relaxed));
        Arc::new(open(&kubernetes, &name).await) as Arc<dyn Store>
    })
    .await;
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_others_touch_are_told_apart() {
    let Some(kubernetes) = started().await else { return };
    let secrets: Api<Secret> = Api::namespaced(kubernetes.client().await.unwrap(), NAMESPACE);
    deletions_leave_nothing(&open(&kubernetes, "sweep").await, &secrets).await;
    a_removed_object_is_a_deletion(&open(&kubernetes, "removed").await, &secrets).await;
    an_altered_object_is_refused(&open(&kubernetes, "altered").await, &secrets).await;
    of_two_racers_one_wins(&open(&kubernetes, "race").await, &open(&kubernetes, "race").await).await;
    what_a_deletion_left_behind_is_no_value(&open(&kubernetes, "left").await, &secrets).await;
    what_a_deletion_left_behind_is_swept_away(&open(&kubernetes, "swept").await, &secrets).await;
    a_family_larger_than_an_answer_is_listed_whole(&open(&kubernetes, "large").await).await;
    a_missing_namespace_is_no_conflict(&kubernetes).await;
}

async fn objects(secrets: &Api<Secret>, store: &str) -> Vec<Secret> {
    secrets.list(&ListParams::default().labels(&format!("alcazar.dev/store={store}"))).await.unwrap().items
}

async fn deletions_leave_nothing(store: &KubernetesStore, secrets: &Api<Secret>) {
    let at = store.put_if(&key("a/b"), Expected::Absent, vec![1]).await.unwrap();
    assert_eq!(objects(secrets, "sweep").await.len(), 1);
    let deleted = store.delete_if(&key("a/b"), at).await.unwrap();
    assert_eq!(objects(secrets, "sweep").await, []);
    // The revision of a deletion is no state that a write can expect.
    let outcome = store.put_if(&key("a/b"), Expected::At(deleted), vec![]).await;
    assert!(matches!(outcome, Err(WriteError::Conflict { found: None, .. })), "{outcome:?}");
}

async fn a_removed_object_is_a_deletion(store: &KubernetesStore, secrets: &Api<Secret>) {
    let at = store.put_if(&key("a/b"), Expected::Absent, vec![1]).await.unwrap();
    let mut watch = store.watch(&Prefix::all(), at).await.unwrap();
    let name = objects(secrets, "removed").await[0].metadata.name.clone().unwrap();
    secrets.delete(&name, &DeleteParams::default()).await.unwrap();
    match timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap() {
        Event::Deleted { key: deleted, revision } => assert!(deleted == key("a/b") && revision > at, "{revision}"),
        event @ Event::Put(_) => panic!("{event:?}"),
    }
    assert_eq!(store.get(&key("a/b")).await.unwrap(), None);
    let outcome = store.put_if(&key("a/b"), Expected::At(at), vec![]).await;
    assert!(matches!(outcome, Err(WriteError::Conflict { found: None, .. })), "{outcome:?}");
}

async fn an_altered_object_is_refused(store: &KubernetesStore, secrets: &Api<Secret>) {
    let at = store.put_if(&key("a/b"), Expected::Absent, vec![1]).await.unwrap();
    let mut watch = store.watch(&Prefix::all(), at).await.unwrap();
    let mut object = objects(secrets, "altered").await.remove(0);
    let name = object.metadata.name.clone().unwrap();
    object.data.as_mut().unwrap().get_mut("record").unwrap().0[9] ^= 1;
    secrets.replace(&name, &PostParams::default(), &object).await.unwrap();
    let error = store.get(&key("a/b")).await.unwrap_err();
    assert!(matches!(error, StoreError::Record { .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    assert!(store.list(&Prefix::all()).await.is_err());
    assert_eq!(timeout(Duration::from_secs(20), watch.next()).await.unwrap(), Err(WatchError::Lagged));
}

async fn of_two_racers_one_wins(ann: &KubernetesStore, bob: &KubernetesStore) {
    for round in 0..30 {
        let name = key(&format!("race/{round}"));
        let (a, b) =
            tokio::join!(ann.put_if(&name, Expected::Absent, vec![1]), bob.put_if(&name, Expected::Absent, vec![2]),);
        let (Ok(at), Err(WriteError::Conflict { .. })) = (if a.is_ok() { (a, b) } else { (b, a) }) else {
            panic!("both, or neither")
        };
        let (a, b) = tokio::join!(ann.delete_if(&name, at), bob.put_if(&name, Expected::At(at), vec![3]));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert_eq!(ann.get(&name).await.unwrap().is_some(), b.is_ok());
    }
}

/// As a process leaves it that is killed between the two halves of a deletion.
async fn what_a_deletion_left_behind_is_no_value(store: &KubernetesStore, secrets: &Api<Secret>) {
    let at = store.put_if(&key("a/b"), Expected::Absent, vec![1]).await.unwrap();
    let mut object = objects(secrets, "left").await.remove(0);
    let name = object.metadata.name.clone().unwrap();
    object.data = None;
    object.metadata.annotations.as_mut().unwrap().insert("alcazar.dev/deleted".into(), at.to_string());
    let left = secrets.replace(&name, &PostParams::default(), &object).await.unwrap();
    let deleted = Revision::new(left.metadata.resource_version.unwrap().parse().unwrap());

    assert_eq!(store.get(&key("a/b")).await.unwrap(), None);
    assert_eq!(store.list(&Prefix::all()).await.unwrap().entries, []);
    for at in [at, deleted] {
        let outcome = store.delete_if(&key("a/b"), at).await;
        assert!(matches!(outcome, Err(WriteError::Conflict { found: None, .. })), "{outcome:?}");
    }
    let mut watch = store.watch(&Prefix::all(), at).await.unwrap();
    let again = store.put_if(&key("a/b"), Expected::Absent, vec![2]).await.unwrap();
    assert!(again > deleted);
    let events = [watch.next().await.unwrap(), watch.next().await.unwrap()];
    assert_eq!(events[0], Event::Deleted { key: key("a/b"), revision: deleted });
    assert_eq!(events[1].revision(), again);
}

/// What nobody sweeps away goes with the next listing.
async fn what_a_deletion_left_behind_is_swept_away(store: &KubernetesStore, secrets: &Api<Secret>) {
    let at = store.put_if(&key("c"), Expected::Absent, vec![1]).await.unwrap();
    let mut object = objects(secrets, "swept").await.remove(0);
    let name = object.metadata.name.clone().unwrap();
    object.data = None;
    object.metadata.annotations.as_mut().unwrap().insert("alcazar.dev/deleted".into(), at.to_string());
    secrets.replace(&name, &PostParams::default(), &object).await.unwrap();
    assert_eq!(store.list(&Prefix::all()).await.unwrap().entries, []);
    let start = tokio::time::Instant::now();
    while !objects(secrets, "swept").await.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_family_larger_than_an_answer_is_listed_whole(store: &KubernetesStore) {
    for n in 0..520 {
        store.put_if(&key(&format!("many/{n:04}")), Expected::Absent, vec![1; 10]).await.unwrap();
    }
    store.put_if(&key("other/1"), Expected::Absent, vec![]).await.unwrap();
    let listing = store.list(&"many".parse().unwrap()).await.unwrap();
    assert_eq!((listing.entries.len(), listing.more), (520, false));
    let page = store.page(&"many".parse().unwrap(), Some(&key("many/0509")), 5).await.unwrap();
    assert_eq!((page.entries[0].key().as_str(), page.entries.len(), page.more), ("many/0510", 5, true));
}

async fn a_missing_namespace_is_no_conflict(kubernetes: &Kubernetes) {
    let config = KubernetesStoreConfig::new("nowhere", "test", kubernetes.server());
    let store = KubernetesStore::open(client(&kubernetes.kubeconfig()).await, config).await.unwrap();
    let outcome = store.put_if(&key("a"), Expected::Absent, vec![]).await;
    assert!(matches!(outcome, Err(WriteError::Store(StoreError::Remote { .. }))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_role_is_enough_and_a_missing_permission_is_said() {
    let Some(kubernetes) = started().await else { return };
    kubernetes.service_account(NAMESPACE, "ca").await.unwrap();
    let token = kubernetes.token(NAMESPACE, "ca", &[], None).await.unwrap();
    let path = kubernetes.kubeconfig_for("ca", &token).unwrap();
    let config = KubernetesStoreConfig::new(NAMESPACE, "test", kubernetes.server());
    let error = KubernetesStore::open(client(&path).await, config.clone()).await.unwrap_err();
    let OpenKubernetesError::Store(StoreError::Remote { source, .. }) = error else { panic!("{error}") };
    assert!(source.to_string().contains("cannot list resource \"secrets\""), "{source}");

    let admin = kubernetes.client().await.unwrap();
    create(&admin, "roles", json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "alcazar-store"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch", "create", "update", "delete"]}],
    }))
    .await;
    create(
        &admin,
        "rolebindings",
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "alcazar-store"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "alcazar-store"},
            "subjects": [{"kind": "ServiceAccount", "name": "ca", "namespace": NAMESPACE}],
        }),
    )
    .await;
    // The API learns of a role a moment after it has acknowledged it.
    let start = tokio::time::Instant::now();
    let store = loop {
        match KubernetesStore::open(client(&path).await, config.clone()).await {
            Ok(store) => break store,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let at = store.put_if(&key("a"), Expected::Absent, vec![1]).await.unwrap();
    let mut watch = store.watch(&Prefix::all(), at).await.unwrap();
    let at = store.put_if(&key("a"), Expected::At(at), vec![2]).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision(), at);
    store.delete_if(&key("a"), at).await.unwrap();
    let left = objects(&Api::namespaced(admin, NAMESPACE), "test").await;
    assert_eq!(left, []);
}

async fn create(client: &Client, what: &str, object: serde_json::Value) {
    let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/{what}");
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(serde_json::to_vec(&object).unwrap()).unwrap();
    client.request::<serde_json::Value>(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_hangs_or_restarts_loses_no_event_and_says_when_history_is_gone() {
    let Some(mut kubernetes) = started().await else { return };
    let config = KubernetesStoreConfig {
        deadline: Duration::from_secs(2),
        ..KubernetesStoreConfig::new(NAMESPACE, "test", kubernetes.server())
    };
    let store = KubernetesStore::open(client(&kubernetes.kubeconfig()).await, config).await.unwrap();
    let first = store.put_if(&key("k"), Expected::Absent, vec![1]).await.unwrap();
    let mut watch = store.watch(&Prefix::all(), first).await.unwrap();

    kubernetes.process().pause().unwrap();
    let error = timeout(Duration::from_secs(10), store.get(&key("k"))).await.unwrap().unwrap_err();
    assert!(matches!(&error, StoreError::Silent { server, .. } if *server == kubernetes.server()), "{error:?}");
    let outcome =
        timeout(Duration::from_secs(10), store.put_if(&key("k"), Expected::At(first), vec![2])).await.unwrap();
    assert!(matches!(outcome, Err(WriteError::Store(StoreError::Silent { .. }))), "{outcome:?}");
    kubernetes.process().resume().unwrap();
    let mut at = until_answered(&store).await;
    let mut seen = Vec::new();
    for round in 0..2 {
        for n in 0..3 {
            at = store.put_if(&key("k"), Expected::At(at), vec![round, n]).await.unwrap();
            seen.push(at);
        }
        kubernetes.kill().unwrap();
        kubernetes.start_again().await.unwrap();
        at = until_answered(&store).await;
    }
    // A write that nobody heard of may have been made before those. An API server that has just started may not know what was
    // before, and then the watch says so: whoever lists knows all there is.
    let (mut told, mut lagged) = (Vec::new(), false);
    while told.last() != seen.last() {
        match timeout(Duration::from_secs(30), watch.next()).await.unwrap() {
            Ok(event) => told.push(event.revision()),
            Err(WatchError::Lagged) => {
                lagged = true;
                let listing = store.list(&Prefix::all()).await.unwrap();
                told.extend(listing.entries.iter().map(alcazar_store::Entry::revision));
                watch = store.watch(&Prefix::all(), listing.revision).await.unwrap();
            }
            Err(error @ WatchError::Closed) => panic!("{error}"),
        }
    }
    assert!(told.is_sorted(), "{told:?}");
    assert!(lagged || (told.ends_with(&seen) && told.len() <= seen.len() + 1), "{told:?} {seen:?}");

    kubernetes.kill().unwrap();
    kubernetes.etcd().ctl(&["compact", &at.to_string()]).unwrap();
    kubernetes.start_again().await.unwrap();
    until_answered(&store).await;
    for forgotten in [Revision::default(), first] {
        let mut late = store.watch(&Prefix::all(), forgotten).await.unwrap();
        let end = timeout(Duration::from_secs(30), late.next()).await.unwrap();
        assert_eq!(end, Err(WatchError::Lagged), "from {forgotten}");
    }
    let from = store.list(&Prefix::all()).await.unwrap().revision;
    let mut last = store.watch(&Prefix::all(), from).await.unwrap();
    store.close().await;
    assert_eq!(timeout(Duration::from_secs(5), last.next()).await.unwrap(), Err(WatchError::Closed));
    assert!(matches!(store.get(&key("k")).await, Err(StoreError::Closed)));
}

/// Reads until the API answers; the revision.
async fn until_answered(store: &KubernetesStore) -> Revision {
    let read = until_ok("an answer", Duration::from_secs(60), async || store.get(&key("k")).await);
    read.await.unwrap().unwrap().revision()
}
