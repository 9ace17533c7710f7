//! The SDS client against a real gRPC server on a real Unix socket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn what they need and end with their runtime")]

use std::path::Path;
use std::time::Duration;

use alcazar_api::envoy::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use alcazar_api::envoy::secret::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use alcazar_api::envoy::tls::Secret;
use alcazar_api::envoy::{SECRET_URL, pack};
use alcazar_api::sds::{self, DEFAULT, REVOCATIONS, ROOT_CA, bundle_secret, svid_secret};
use alcazar_identity::{SvidKey, TrustBundle, X509Svid};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Requests = mpsc::Receiver<DiscoveryRequest>;
type Responses = mpsc::Sender<Result<DiscoveryResponse, Status>>;

/// An agent whose answers the test writes itself: each stream is handed to the test.
struct Agent {
    streams: mpsc::Sender<(Requests, Responses)>,
}

#[tonic::async_trait]
impl SecretDiscoveryService for Agent {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let mut incoming = request.into_inner();
        let (requests, test_requests) = mpsc::channel(8);
        let (test_responses, responses) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok(Some(request)) = incoming.message().await {
                requests.send(request).await.unwrap();
            }
        });
        self.streams.send((test_requests, test_responses)).await.unwrap();
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

fn serve(socket: &Path) -> (mpsc::Receiver<(Requests, Responses)>, tokio::task::JoinHandle<()>) {
    let (streams, accepted) = mpsc::channel(1);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(SecretDiscoveryServiceServer::new(Agent { streams }))
        .serve_with_incoming(incoming);
    (accepted, tokio::spawn(async move { server.await.unwrap() }))
}

fn svid(path: &str) -> X509Svid {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://td/{path}").try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let der = params.self_signed(&key).unwrap().der().clone();
    X509Svid::new(vec![der], SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap()
}

fn bundle() -> TrustBundle {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    TrustBundle::new("td".parse().unwrap(), 1, [root.der().clone()]).unwrap()
}

fn response(version: &str, secrets: &[Secret]) -> Result<DiscoveryResponse, Status> {
    Ok(DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: format!("n{version}"),
        type_url: SECRET_URL.to_owned(),
        resources: secrets.iter().map(|secret| pack(SECRET_URL, secret)).collect(),
        ..DiscoveryResponse::default()
    })
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

#[tokio::test]
async fn from_the_first_certificate_through_a_bad_one_to_an_agent_that_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    // The client starts before the agent has made the socket.
    let client = tokio::spawn(sds::connect(
        socket.clone(),
        std::sync::Arc::new(|| std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
    ));
    let (mut streams, server) = serve(&socket);
    let (mut requests, responses) = soon(streams.recv()).await.unwrap();

    let first = soon(requests.recv()).await.unwrap();
    assert_eq!(first.resource_names, [DEFAULT, ROOT_CA, REVOCATIONS]);
    assert_eq!((first.type_url.as_str(), first.version_info.as_str()), (SECRET_URL, ""));

    // Half of the credentials is not enough.
    let (old, roots) = (svid("old"), bundle());
    responses.send(response("1", &[svid_secret(DEFAULT, &old)])).await.unwrap();
    assert_eq!(soon(requests.recv()).await.unwrap().version_info, "1");
    assert!(!client.is_finished());
    responses.send(response("2", &[bundle_secret(ROOT_CA, &roots)])).await.unwrap();
    let (mut credentials, driver) = soon(client).await.unwrap();
    let driver = tokio::spawn(driver);
    assert_eq!(credentials.borrow_and_update().svid().serial(), old.serial());
    let td = old.id().trust_domain().clone();
    assert_eq!(credentials.borrow().bundles().get(&td).unwrap().to_pem(), roots.to_pem());
    let acknowledged = soon(requests.recv()).await.unwrap();
    assert_eq!((acknowledged.response_nonce.as_str(), acknowledged.error_detail), ("n2", None));

    // A certificate without its own key is refused, and what was held stays.
    let mut broken = svid_secret(DEFAULT, &svid("broken"));
    let other = svid_secret(DEFAULT, &svid("other"));
    if let (
        Some(alcazar_api::envoy::tls::secret::Type::TlsCertificate(broken)),
        Some(alcazar_api::envoy::tls::secret::Type::TlsCertificate(other)),
    ) = (&mut broken.r#type, other.r#type)
    {
        broken.private_key = other.private_key;
    }
    responses.send(response("3", &[broken])).await.unwrap();
    let refused = soon(requests.recv()).await.unwrap();
    assert!(refused.error_detail.unwrap().message.contains("private key"));
    assert_eq!((refused.version_info.as_str(), refused.response_nonce.as_str()), ("", "n3"));
    assert!(!credentials.has_changed().unwrap());

    // A rotation arrives.
    let new = svid("new");
    responses.send(response("4", &[svid_secret(DEFAULT, &new)])).await.unwrap();
    soon(credentials.changed()).await.unwrap();
    assert_eq!(credentials.borrow_and_update().svid().serial(), new.serial());

    // The agent goes; the credentials stay; it comes back and the next rotation arrives.
    drop((requests, responses, streams));
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    std::fs::remove_file(&socket).unwrap();
    let (mut streams, _server) = serve(&socket);
    let (_requests, responses) = soon(streams.recv()).await.unwrap();
    assert_eq!(credentials.borrow().svid().serial(), new.serial());
    let newest = svid("newest");
    let both = [svid_secret(DEFAULT, &newest), bundle_secret(ROOT_CA, &bundle())];
    responses.send(response("1", &both)).await.unwrap();
    soon(credentials.changed()).await.unwrap();
    assert_eq!(credentials.borrow_and_update().svid().serial(), newest.serial());

    // Nobody listens any more: the driver ends.
    drop(credentials);
    soon(driver).await.unwrap();
}
