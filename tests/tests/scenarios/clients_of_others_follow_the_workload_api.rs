//! Workloads that know nothing of Alcazar, on go-spiffe and on the Rust crate `spiffe`, have their certificates, bundles and tokens
//! by the SPIFFE Workload API, and call each other while leaves, intermediate and root are exchanged: no call fails.

use std::path::Path;
use std::time::Duration;

use alcazar_api::ca::v1::{RotationKind, SetForeignBundleRequest, bundles_client::BundlesClient};
use alcazar_testkit::{AgentProcess, CaProcess, SpiffeClient, turn};
use serde_json::Value;
use spiffe::{JwtSource, WorkloadApiClient, X509Source};

/// Each wait of a rotation for clients that cannot acknowledge is ten seconds; a busy machine gets more.
const ROTATION: Duration = Duration::from_secs(180);
/// How long after it was taken what was pushed counts as used.
const GRACE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/caller";

async fn start(home: &Path) -> (CaProcess, AgentProcess) {
    let ca = CaProcess::start(home, "").unwrap();
    ca.wait_ready().unwrap();
    let agent = AgentProcess::start(home, &ca, "one").await.unwrap();
    (ca, agent)
}

fn text<'v>(said: &'v Value, field: &str) -> &'v str {
    said.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn roots(said: &Value) -> Option<u64> {
    said.pointer("/roots/cluster.local").and_then(Value::as_u64)
}

/// What it said that it should not have.
fn errors(said: &[Value]) -> Vec<&Value> {
    said.iter().filter(|said| said.get("error").is_some()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_workloads_call_each_other_while_leaves_intermediate_and_root_are_exchanged() {
    let _turn = turn();
    let home = tempfile::tempdir().unwrap();
    let (ca, agent) = start(home.path()).await;
    for name in ["reviews", "caller"] {
        ca.register_as(name, "one", &format!("socket:shop.{name}"), Duration::from_secs(10)).await.unwrap();
    }
    let (reviews, caller) = (agent.socket("shop.reviews").unwrap(), agent.socket("shop.caller").unwrap());
    let run = |socket: &Path, arguments: &[&str], log: &str| {
        SpiffeClient::start(socket, arguments, home.path().join(log)).unwrap()
    };
    let Some(server) = run(&reviews, &["serve", "127.0.0.1:0", CALLER], "server") else { return };
    let said = server.until_it_says("where it listens", |said| said.get("address").is_some()).unwrap();
    let client = run(&caller, &["call", text(&said, "address"), REVIEWS], "client").unwrap();
    let watcher = run(&caller, &["watch"], "watcher").unwrap();
    // Each certificate that the server shows is another one: three of them are two rotations.
    let serials = |client: &SpiffeClient| client.said().iter().filter(|said| said.get("serial").is_some()).count();
    client.until_it_says("an answer", |said| said.get("serial").is_some()).unwrap();
    let begun = std::time::Instant::now();
    while serials(&client) < 3 {
        assert!(begun.elapsed() < PATIENCE, "{:?}\n{}", client.said(), agent.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ca.rotate(RotationKind::Intermediate, ROTATION).await.unwrap();
    let begun = std::time::Instant::now();
    ca.rotate(RotationKind::Root, ROTATION).await.unwrap();
    // Nobody acknowledges here: the rotation gives them the time to apply both roots, the new certificate, and the new root alone.
    assert!(begun.elapsed() > 2 * GRACE, "the clients were not waited for: {:?}", begun.elapsed());
    watcher.until_it_says("both roots", |said| roots(said) == Some(2)).unwrap();
    let last = watcher.said().pop().unwrap();
    assert_eq!((roots(&last), last.pointer("/ids/0").and_then(Value::as_str)), (Some(1), Some(CALLER)), "{last}");
    // Somebody who was not meant is refused by go-spiffe itself.
    let stranger = run(&reviews, &["call", text(&said, "address"), REVIEWS], "stranger").unwrap();
    stranger.until_it_says("a refusal", |said| said.get("error").is_some()).unwrap();
    stranger.finish().unwrap();

    let said = client.finish().unwrap();
    assert!(errors(&said).is_empty(), "{said:#?}\n{}", agent.log());
    let answered = said.last().and_then(|said| said.get("answered")).and_then(Value::as_u64);
    assert!(answered.is_some_and(|answered| answered > 500), "{answered:?}");
    assert!(errors(&watcher.finish().unwrap()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_workload_is_let_in_once_it_is_registered_and_has_tokens() {
    let home = tempfile::tempdir().unwrap();
    let (ca, agent) = start(home.path()).await;
    let shared = agent.socket("agent").unwrap();
    let run = |arguments: &[&str], log: &str| SpiffeClient::start(&shared, arguments, home.path().join(log)).unwrap();
    let Some(watcher) = run(&["watch"], "watcher") else { return };
    watcher.until_it_says("a refusal", |said| text(said, "error").contains("PermissionDenied")).unwrap();
    // The client tries again by itself.
    ca.register_as("reviews", "one", &format!("uid:{}", own_uid()), Duration::ZERO).await.unwrap();
    let said = watcher.until_it_says("its identity", |said| said.get("ids").is_some()).unwrap();
    assert_eq!(said.pointer("/ids/0").and_then(Value::as_str), Some(REVIEWS));
    assert!(agent.log().contains("no registration matches a caller"));
    // A partner is believed from now on.
    let request = SetForeignBundleRequest { trust_domain: "partner.example".into(), bundle: root() };
    BundlesClient::new(ca.operator().await.unwrap()).set_foreign_bundle(request).await.unwrap();
    watcher.until_it_says("the partner", |said| said.pointer("/roots/partner.example").is_some()).unwrap();

    let (good, said, log) = run(&["bundles"], "bundles").unwrap().end().unwrap();
    assert!(good && roots(&said[0]) == Some(1) && said[0].pointer("/keys/cluster.local").is_some(), "{log}");
    let (good, said, log) = run(&["jwt", "db"], "jwt").unwrap().end().unwrap();
    assert!(good && said.len() == 1 && text(&said[0], "id") == REVIEWS, "{log}");
    let token = text(&said[0], "token").to_owned();
    let (good, said, log) = run(&["validate", "db", &token], "validate").unwrap().end().unwrap();
    assert!(good && text(&said[0], "id") == REVIEWS, "{log}");
    assert_eq!(said[0].pointer("/claims/sub").and_then(Value::as_str), Some(REVIEWS));
    for (arguments, what) in
        [(["validate", "queue", &token], "InvalidArgument"), (["jwt", "db", CALLER], "PermissionDenied")]
    {
        let (good, _, log) = run(&arguments, what).unwrap().end().unwrap();
        assert!(!good && log.contains(what), "{log}");
    }
    watcher.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_crate_follows_rotations_and_has_tokens() {
    let home = tempfile::tempdir().unwrap();
    let (ca, agent) = start(home.path()).await;
    ca.register_as("reviews", "one", "socket:shop.reviews", Duration::from_secs(4)).await.unwrap();
    let endpoint = format!("unix://{}", agent.socket("shop.reviews").unwrap().display());
    let source = X509Source::builder().endpoint(&endpoint).build().await.unwrap();
    let mut updates = source.updated();
    let serial = || source.svid().unwrap().cert_chain()[0].as_bytes().to_vec();
    assert_eq!(source.svid().unwrap().spiffe_id().to_string(), REVIEWS);
    for _ in 0..2 {
        let before = serial();
        while serial() == before {
            tokio::time::timeout(PATIENCE, updates.changed()).await.unwrap().unwrap();
        }
    }
    let trust_domain = spiffe::TrustDomain::new("cluster.local").unwrap();
    assert_eq!(source.bundle_set().unwrap().get(&trust_domain).unwrap().authorities().len(), 1);

    let tokens = JwtSource::builder().endpoint(&endpoint).build().await.unwrap();
    let token = tokens.fetch_jwt_svid(["db"]).await.unwrap();
    assert_eq!(token.spiffe_id().to_string(), REVIEWS);
    assert!(tokens.try_bundle_for_trust_domain(&trust_domain).is_some());
    let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
    client.validate_jwt_token("db", token.token()).await.unwrap();
    client.validate_jwt_token("queue", token.token()).await.unwrap_err();
    tokens.shutdown().await;
    source.shutdown().await;
}

/// Somebody's root, in PEM.
fn root() -> Vec<u8> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem().into_bytes()
}

/// What the kernel says of this process, and so of its children.
fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid()
}
