//! The store goes away, etcd or the API of Kubernetes: who is known, workload or pod, is served certificates and JWT-SVIDs, its node
//! renews, and whom nobody knew is told of the outage and when to come back. Nothing that was given is lost.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use alcazar_api::{
    istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
    spiffe::validate_jwt_svid,
};
use alcazar_identity::{CertificateDer, Credentials, SvidLeaf};
use alcazar_service::clock;
use alcazar_store::{KubernetesStore, Store, kubernetes::KubernetesStoreConfig};
use alcazar_testkit::{CaProcess, DEADLINE, Etcd, Kubernetes, eventually, until};
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::pem::PemObject;
use tonic::{Code, Status};

const AUDIENCE: &str = "reports";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

fn start(home: &Path, more: &str) -> CaProcess {
    alcazar_mtls::install_default_provider();
    let ca = CaProcess::start(home, more).unwrap();
    ca.wait_ready().unwrap();
    ca
}

async fn joined(ca: &CaProcess, node: &str) -> Arc<Credentials> {
    let (root, token) = (ca.root().await.unwrap(), ca.token(node).await.unwrap());
    ca.attest(root, &token, &key()).await.unwrap()
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// The name of a token that whoever has the node's bundles believes.
async fn token(ca: &CaProcess, node: &Arc<Credentials>, name: &str) -> String {
    let issued = ca.issue_jwt(node, name, AUDIENCE).await.unwrap();
    let checked = validate_jwt_svid(&issued.token, AUDIENCE, node.bundles(), clock::system()()).unwrap();
    assert_eq!(checked.id().to_string(), format!("spiffe://cluster.local/ns/shop/sa/{name}"));
    checked.claims().id().unwrap().to_owned()
}

/// The serial of a certificate that a node gets by Istio's API for an identity, registered or not.
async fn act_for(ca: &CaProcess, node: &Arc<Credentials>, id: &str) -> Result<String, Status> {
    let csr = CertificateParams::default().serialize_request(&key()).unwrap().pem().unwrap();
    let text = Value { kind: Some(Kind::StringValue(id.into())) };
    let metadata = Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), text)].into() });
    let mut client = IstioCertificateServiceClient::new(ca.channel(node).unwrap());
    let request = IstioCertificateRequest { csr, validity_duration: 600, metadata };
    let reply = client.create_certificate(request).await?.into_inner();
    let leaf = SvidLeaf::parse(&CertificateDer::from_pem_slice(reply.cert_chain[0].as_bytes()).unwrap()).unwrap();
    assert_eq!(leaf.id().to_string(), id);
    Ok(leaf.serial().to_string())
}

/// Refused for the outage, and told when to come back.
fn is_told<T: std::fmt::Debug>(what: &str, outcome: Result<T, Status>) {
    let status = outcome.expect_err(what);
    assert_eq!(status.code(), Code::Unavailable, "{what}: {status}");
    assert!(status.message().contains("the store is away"), "{what}: {status}");
    let hint = status.metadata().get("retry-after-ms").map(|hint| hint.to_str().unwrap().parse::<u64>().unwrap());
    assert!(hint.is_some_and(|hint| (1..=60_000).contains(&hint)), "{what}: {status:?}");
}

/// What nodes were given that the store has not heard of.
fn pending(ca: &CaProcess) -> usize {
    fs::read_dir(ca.data().join("renewals")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_issued_while_etcd_is_away_and_none_is_lost() {
    let Some(mut etcd) = Etcd::start().unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let store = format!("store: {{etcd: {{endpoints: ['{}'], deadline: 2s}}}}\n", etcd.endpoint());
    let mut ca = start(home.path(), &store);
    let node = joined(&ca, "one").await;
    ca.register("web", "one").await.unwrap();
    let noted = |etcd: &Etcd| {
        let key = "alcazar/cluster.local/local/ca/rotation/tokens";
        !etcd.ctl(&["get", key, "--keys-only"]).unwrap().trim().is_empty()
    };
    assert!(!noted(&etcd), "nobody has a token");
    etcd.kill().unwrap();

    // Whoever finds out waits for it; nobody else does.
    let mut given = BTreeSet::from([token(&ca, &node, "web").await]);
    let begun = Instant::now();
    for _ in 0..10 {
        assert!(given.insert(token(&ca, &node, "web").await));
        assert!(given.insert(ca.issue(&node, "web").await.unwrap()));
        is_told("a token of nobody", ca.issue_jwt(&node, "ghost", AUDIENCE).await);
        is_told("a certificate of nobody", ca.issue(&node, "ghost").await);
    }
    let each = begun.elapsed() / 40;
    assert!(each < Duration::from_millis(500), "{each:?} for each");
    // A rotation of their keys is to know of them: on this disk, until the store does.
    assert!(ca.data().join("unreported").exists());

    // It dies, and loses nothing.
    ca.process().kill().unwrap();
    etcd.start_again().unwrap();
    ca.start_again().unwrap();
    ca.wait_ready().unwrap();
    let ledger = ca.ledger().await.unwrap();
    assert!(given.is_subset(&ledger), "{given:?} {ledger:?}");
    until("the store hears of the tokens", DEADLINE, || noted(&etcd).then_some(())).unwrap();
    until("nothing is owed", DEADLINE, || (!ca.data().join("unreported").exists()).then_some(())).unwrap();
    // Now it is known who is nobody, and that can be mended.
    assert_eq!(ca.issue_jwt(&node, "ghost", AUDIENCE).await.unwrap_err().code(), Code::PermissionDenied);
    ca.register("ghost", "one").await.unwrap();
    token(&ca, &node, "ghost").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_workloads_and_pods_go_on_while_the_kubernetes_api_is_away() {
    let Some(mut cluster) = Kubernetes::start().await.unwrap() else { return };
    for namespace in ["shop", "alcazar-system"] {
        cluster.namespace(namespace, &[]).await.unwrap();
    }
    for (account, node) in [("web", "a"), ("db", "b")] {
        cluster.service_account("shop", account).await.unwrap();
        cluster.pod("shop", &format!("{account}-1"), account, node).await.unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    let more = format!(
        "kubernetes: {{kubeconfig: {}}}\nstore: {{kubernetes: {{namespace: alcazar-system, deadline: 20s}}}}\n\
         callers: {{kubernetes: {{nodeAgents: [alcazar-system/agent]}}}}\n",
        cluster.kubeconfig().display()
    );
    let mut ca = start(home.path(), &more);
    let node = joined(&ca, "a").await;
    ca.register("jobs", "a").await.unwrap();
    until_so("the pods are known", async || act_for(&ca, &node, WEB).await.is_ok()).await;
    assert_eq!(act_for(&ca, &node, DB).await.unwrap_err().code(), Code::PermissionDenied);
    cluster.kill().unwrap();

    let renewed = ca.renew(&node, &key()).await.unwrap();
    assert_eq!(pending(&ca), 1, "the store has not heard of it");
    assert_eq!(ca.renew(&node, &key()).await.unwrap_err().code(), Code::Unauthenticated, "it is superseded");
    let mut given = BTreeSet::from([renewed.svid().serial().to_owned()]);
    for _ in 0..3 {
        assert!(given.insert(act_for(&ca, &renewed, WEB).await.unwrap()), "a pod without a registration");
        assert!(given.insert(ca.issue(&renewed, "jobs").await.unwrap()));
        assert!(given.insert(token(&ca, &renewed, "jobs").await));
        is_told("a pod that is elsewhere", act_for(&ca, &renewed, DB).await);
        is_told("a certificate of nobody", ca.issue(&renewed, "ghost").await);
        is_told("a token of nobody", ca.issue_jwt(&renewed, "ghost", AUDIENCE).await);
    }
    assert_eq!(ca.token("late").await.unwrap_err().code(), Code::Unavailable);
    assert!(given.is_subset(&ca.ledger().await.unwrap()));

    cluster.start_again().await.unwrap();
    until_so("the store has heard of it", async || pending(&ca) == 0).await;
    assert_eq!(in_the_store(&cluster, "a").await, renewed.svid().serial());
    until_so("the pods are followed again", async || {
        act_for(&ca, &renewed, DB).await.is_err_and(|status| status.code() == Code::PermissionDenied)
    })
    .await;
    let next = ca.renew(&renewed, &key()).await.unwrap();
    assert_eq!(in_the_store(&cluster, "a").await, next.svid().serial());
    act_for(&ca, &next, WEB).await.unwrap();
    // Now that the store is asked, a copy of what was renewed shows two holders, and neither goes on.
    assert_eq!(ca.renew(&node, &key()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(ca.renew(&next, &key()).await.unwrap_err().code(), Code::Unauthenticated);
    ca.wait_ready().unwrap();
    assert!(ca.process().terminate().unwrap().success());
}

/// The serial of the latest certificate of a node, as the Secrets have it.
async fn in_the_store(cluster: &Kubernetes, node: &str) -> String {
    let config = KubernetesStoreConfig::new("alcazar-system", "alcazar", cluster.server());
    let store = KubernetesStore::open(cluster.client().await.unwrap(), config).await.unwrap();
    let key = format!("ca/nodes/cluster.local/node/local/{node}").parse().unwrap();
    let found = store.get(&key).await.unwrap().unwrap();
    store.close().await;
    let record: serde_json::Value = serde_json::from_slice(found.value()).unwrap();
    record["latest"]["serial"].as_str().unwrap().to_owned()
}

/// An API server takes its time to come back.
async fn until_so(what: &str, is_so: impl AsyncFnMut() -> bool) {
    eventually(what, 4 * DEADLINE, is_so).await.unwrap();
}
