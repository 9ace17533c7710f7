//! The agent as workloads see it: real Unix sockets, a real SDS client, a CA behind real mutual TLS.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use alcazar_api::envoy::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use alcazar_api::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use alcazar_api::envoy::tls::Secret;
use alcazar_api::envoy::{SECRET_URL, Status as RpcStatus, unpack};
use alcazar_api::sds;
use alcazar_service::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use crate::support::ca::Ca;
use crate::support::{CaServer, Home, soon};

const REVIEWS: &str = "spiffe://td.example/ns/shop/sa/reviews";

async fn client(socket: &Path) -> SecretDiscoveryServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    SecretDiscoveryServiceClient::new(soon(endpoint.connect()).await.unwrap())
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn subscribe(to: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest { resource_names: names(to), type_url: SECRET_URL.into(), ..Default::default() }
}

/// One StreamSecrets, by hand.
struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(socket: &Path, to: &[&str]) -> Self {
        let (requests, outgoing) = mpsc::channel(4);
        requests.send(subscribe(to)).await.unwrap();
        let mut client = client(socket).await;
        let responses = soon(client.stream_secrets(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        soon(self.responses.message()).await.unwrap().expect("the stream ended")
    }

    async fn answer(&self, to: &[&str], response: &DiscoveryResponse, error: Option<&str>) {
        let request = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| RpcStatus { message: message.to_owned(), ..Default::default() }),
            ..subscribe(to)
        };
        self.requests.send(request).await.unwrap();
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|any| unpack::<Secret>(SECRET_URL, any).unwrap().name).collect()
}

fn serial(response: &DiscoveryResponse) -> String {
    let mut secrets = response.resources.iter().map(|any| unpack::<Secret>(SECRET_URL, any).unwrap());
    let secret = secrets.find(|secret| secret.name == "default").unwrap();
    sds::svid_from_secret(&secret).unwrap().serial().to_owned()
}

/// Makes the agent ask for new certificates now: another life is asked of them.
fn rotate(ca: &CaServer) {
    ca.change(|ca| ca.registrations.iter_mut().for_each(|registration| registration.ttl += 1));
}

/// Waits until a socket is there, or is not: a client knows it by looking, as it is the file that is promised.
async fn exists(socket: &Path, there: bool) {
    soon(async {
        while socket.exists() != there {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_workloads_own_socket_gives_its_certificate_and_every_rotation() {
    let ca = CaServer::start().await;
    ca.ca().workload_ttl = Duration::from_secs(4);
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(token)).await;

    // The project's own client, as proxy and control use it: it waits for the socket by itself.
    let socket = home.socket("shop.reviews");
    let (mut credentials, driver) = soon(sds::connect(socket.clone(), alcazar_service::clock::system())).await;
    let clients = Shutdown::new();
    clients.spawn("sds client", driver);
    let first = credentials.borrow_and_update().clone();
    assert_eq!(first.svid().id().as_str(), REVIEWS);
    assert_eq!(first.svid().chain().len(), 2);
    let mode = fs::metadata(&socket).unwrap();
    assert!(mode.file_type().is_socket());
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let shared = fs::metadata(home.socket("agent")).unwrap();
    assert_eq!(shared.permissions().mode() & 0o777, 0o666);

    for _ in 0..2 {
        let before = credentials.borrow_and_update().svid().serial().to_owned();
        soon(credentials.wait_for(|now| now.svid().serial() != before)).await.unwrap();
    }
    let status = agent.registration("shop.reviews", |r| r.certificate.is_some()).await;
    assert_eq!((status.spiffe_id.as_str(), status.socket.clone()), (REVIEWS, Some(socket.clone())));

    // A new root is pushed without a new certificate having to come.
    let root = Ca::new(alcazar_service::clock::now()).root_der();
    ca.change(|ca| ca.add_root(root));
    let td = first.svid().id().trust_domain().clone();
    let two_roots =
        |now: &std::sync::Arc<alcazar_identity::Credentials>| now.bundles().get(&td).unwrap().roots().len() == 2;
    soon(credentials.wait_for(two_roots)).await.unwrap();

    // When the registration goes, so does the socket.
    ca.change(|ca| ca.registrations.clear());
    agent.until(|status| status.registrations.is_empty()).await;
    exists(&socket, false).await;
    agent.stop().await;
    assert!(!home.socket("agent").exists(), "nothing is left behind");
    drop(credentials);
    soon(clients.finished(crate::support::PATIENCE)).await.unwrap();
}

#[tokio::test]
async fn a_stream_follows_the_protocol() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(token)).await;
    agent.registration("shop.reviews", |r| r.certificate.is_some()).await;
    let socket = home.socket("shop.reviews");
    exists(&socket, true).await;

    let mut stream = Stream::open(&socket, &["default"]).await;
    let first = stream.next().await;
    assert_eq!((secrets(&first), first.type_url.as_str()), (names(&["default"]), SECRET_URL));
    stream.answer(&["default"], &first, None).await;

    // More names on the same stream, one of them unknown: answered, with the reason.
    stream.answer(&["default", "ROOTCA", REVIEWS, "spiffe://td.example", "nonsense"], &first, None).await;
    let more = stream.next().await;
    assert_eq!(secrets(&more).len(), 4, "{:?}", secrets(&more));
    let missing = &more.resource_errors[0];
    assert_eq!(missing.resource_name.as_ref().unwrap().name, "nonsense");

    // A rejected response is not sent again; the next rotation is.
    let all = ["default", "ROOTCA", REVIEWS, "spiffe://td.example", "nonsense"];
    stream.answer(&all, &more, Some("no thanks")).await;
    rotate(&ca);
    let rotated = stream.next().await;
    assert_ne!(rotated.version_info, more.version_info);
    assert_ne!(serial(&rotated), serial(&more));

    // A fetch is one answer; a delta stream tells what is there and what is not.
    let mut client = client(&socket).await;
    let fetched = soon(client.fetch_secrets(subscribe(&["ROOTCA"]))).await.unwrap().into_inner();
    assert_eq!(secrets(&fetched), names(&["ROOTCA"]));
    let wrong = DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    assert_eq!(soon(client.fetch_secrets(wrong)).await.unwrap_err().code(), Code::InvalidArgument);
    let (requests, outgoing) = mpsc::channel(4);
    let ask = DeltaDiscoveryRequest { resource_names_subscribe: names(&["default", "x"]), ..Default::default() };
    requests.send(ask).await.unwrap();
    let mut delta = soon(client.delta_secrets(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
    let told = soon(delta.message()).await.unwrap().unwrap();
    assert_eq!((told.resources.len(), told.resources[0].name.as_str()), (1, "default"));
    assert_eq!(told.removed_resources, names(&["x"]));
    rotate(&ca);
    let pushed = soon(delta.message()).await.unwrap().unwrap();
    assert_ne!(pushed.resources[0].version, told.resources[0].version);
    agent.stop().await;
}

#[tokio::test]
async fn the_shared_socket_knows_its_callers_by_their_process() {
    let ca = CaServer::start().await;
    let home = Home::new();
    let token = ca.ca().token();
    // The test's own user is the owner of what it makes.
    let uid = std::os::unix::fs::MetadataExt::uid(
        &fs::metadata(home.socket("x").parent().unwrap().parent().unwrap()).unwrap(),
    );
    ca.ca().register("shop.other", "other", &[&format!("uid:{}", uid + 1)]);
    let mut agent = home.agent(ca.address, Some(token)).await;
    agent.registration("shop.other", |r| r.certificate.is_some()).await;
    let shared = home.socket("agent");
    let mut client = client(&shared).await;
    let refused = soon(client.fetch_secrets(subscribe(&["default"]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(!refused.message().contains("other"), "a stranger learns nothing of others: {}", refused.message());

    ca.change(|ca| ca.register("shop.reviews", "reviews", &[&format!("uid:{uid}")]));
    agent.registration("shop.reviews", |r| r.certificate.is_some()).await;
    let mut stream = Stream::open(&shared, &["default"]).await;
    assert_eq!(secrets(&stream.next().await), names(&["default"]));

    // Whoever is registered no more is served no more, on open streams too.
    ca.change(|ca| ca.registrations.retain(|registration| registration.id != "shop.reviews"));
    let ended = soon(stream.responses.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    agent.stop().await;
}

#[tokio::test]
async fn an_outage_and_a_restart_are_survived_with_the_same_identity() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(token)).await;
    let held = agent.registration("shop.reviews", |r| r.certificate.is_some()).await;

    ca.stop().await;
    agent.until(|status| status.node.ca_error.is_some()).await;
    let during = agent.registration("shop.reviews", |_| true).await;
    assert_eq!(during.certificate, held.certificate);
    let ca = ca.restart().await;
    agent.until(|status| status.node.ca_error.is_none()).await;
    agent.stop().await;

    // No token any more: the saved identity is enough, and a socket of a crashed run is in nobody's way.
    let crashed = home.socket("shop.reviews");
    drop(std::os::unix::net::UnixListener::bind(&crashed).unwrap());
    let mut agent = home.agent(ca.address, None).await;
    agent.registration("shop.reviews", |r| r.certificate.is_some()).await;
    let (credentials, _driver) = soon(sds::connect(crashed, alcazar_service::clock::system())).await;
    assert_eq!(credentials.borrow().svid().id().as_str(), REVIEWS);
    assert_eq!(ca.ca().node_log, ["token"]);
    agent.stop().await;
}

#[tokio::test]
async fn a_ca_with_another_root_gets_no_token_and_is_no_ca() {
    let (ca, impostor) = (CaServer::start().await, CaServer::start().await);
    let home = Home::new();
    // The token pins the root of the real one.
    let token = ca.ca().token();
    let mut agent = home.agent(impostor.address, Some(token)).await;
    let status = agent.until(|status| status.node.last_error.is_some()).await;
    let error = status.node.last_error.clone().unwrap();
    let expected =
        "no certificate of this node is saved; by its join token: the CA and this node do not trust each other";
    assert!(error.starts_with(expected), "{error}");
    assert!(status.node.certificate.is_none());
    agent.stop().await;
}

#[tokio::test]
async fn a_node_renews_over_real_tls_by_the_latest_of_its_lineage() {
    let ca = CaServer::start().await;
    ca.ca().node_ttl = Duration::from_secs(3);
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(token)).await;
    for _ in 0..3 {
        let now = agent.until(|status| status.node.certificate.is_some()).await.node.certificate.clone();
        agent.until(|status| status.node.certificate.is_some() && status.node.certificate != now).await;
    }
    // The connections of the earlier certificates are gone; what is asked for now comes by the latest.
    ca.change(|ca| ca.register("shop.ratings", "ratings", &["socket:shop.ratings"]));
    agent.registration("shop.ratings", |r| r.certificate.is_some()).await;
    let log = ca.ca().node_log.clone();
    assert!(log.len() >= 4 && log[0] == "token" && log[1..].iter().all(|way| *way == "svid"), "{log:?}");
    agent.stop().await;
}

#[tokio::test]
async fn what_was_revoked_is_in_force_after_a_restart_whatever_the_ca_says_no_more() {
    use alcazar_identity::{Credentials, ListIssuer, Revocation, RevocationList, RevocationReason};

    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let agent = home.agent(ca.address, Some(token)).await;
    let (socket, clients) = (home.socket("shop.reviews"), Shutdown::new());
    let follow = async || {
        let (credentials, driver) = soon(sds::connect(socket.clone(), alcazar_service::clock::system())).await;
        clients.spawn("sds client", driver);
        credentials
    };
    let mut credentials = follow().await;
    let revokes = |now: &std::sync::Arc<Credentials>| now.revocations().lists().any(|list| list.len() == 1);
    assert!(!revokes(&credentials.borrow()));

    let now = alcazar_service::clock::now();
    let issuer = ListIssuer::Cluster("east".into());
    let mut list = RevocationList::new(crate::support::ca::TRUST_DOMAIN.parse().unwrap(), issuer, 7);
    let until = now + Duration::from_secs(3600);
    assert!(list.revoke_serial("77", None, Revocation { reason: RevocationReason::Superseded, since: now, until }));
    ca.change(|ca| ca.revoked = vec![ca.signed(&list, now)]);
    soon(credentials.wait_for(revokes)).await.unwrap();
    drop(credentials);

    // The agent starts while there is no CA, and the one that comes then says nothing of it.
    agent.stop().await;
    ca.stop().await;
    let agent = home.agent(ca.address, None).await;
    let ca = ca.restart().await;
    ca.change(|ca| ca.revoked.clear());
    let mut credentials = follow().await;
    soon(credentials.wait_for(revokes)).await.unwrap();
    agent.stop().await;
    drop(credentials);
    soon(clients.finished(crate::support::PATIENCE)).await.unwrap();
}
