//! The SDS client against a real gRPC server on a real Unix socket.
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
use alcazar_api::revocations::{encode_list, to_be_signed};
use alcazar_api::sds::{
    self, ALL, DEFAULT, REVOCATIONS, ROOT_CA, bundle_secret, bundles_secret, revocations_secret, svid_secret,
};
use alcazar_identity::{
    Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason, SvidKey, TrustBundle, TrustBundles, X509Svid,
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType, SigningKey};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Requests = mpsc::Receiver<DiscoveryRequest>;
type Responses = mpsc::Sender<Result<DiscoveryResponse, Status>>;

/// An agent whose answers the test writes itself: each stream for a certificate is handed to the test, and those for the lists of
/// revocations are told what the test says of them.
struct Agent {
    streams: mpsc::Sender<(Requests, Responses)>,
    lists: Lists,
}

/// `None`: the agent does not answer for them.
type Said = Option<Result<Vec<Secret>, Status>>;
type Lists = watch::Receiver<Said>;

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
        let first = incoming.message().await?.expect("a first request");
        if first.resource_names == [REVOCATIONS] {
            let mut lists = self.lists.clone();
            tokio::spawn(async move {
                for version in 1.. {
                    let said = lists.borrow_and_update().clone();
                    if let Some(said) = said {
                        let answer = said.and_then(|secrets| response(&version.to_string(), &secrets));
                        let failed = answer.is_err();
                        if test_responses.send(answer).await.is_err() || failed {
                            return;
                        }
                    }
                    if lists.changed().await.is_err() {
                        return;
                    }
                }
            });
            return Ok(Response::new(ReceiverStream::new(responses)));
        }
        requests.send(first).await.unwrap();
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

fn serve(socket: &Path, lists: Lists) -> (mpsc::Receiver<(Requests, Responses)>, tokio::task::JoinHandle<()>) {
    let (streams, accepted) = mpsc::channel(1);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(SecretDiscoveryServiceServer::new(Agent { streams, lists }))
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
    bundle_of("td", &KeyPair::generate().unwrap())
}

fn bundle_of(trust_domain: &str, key: &KeyPair) -> TrustBundle {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(key).unwrap();
    TrustBundle::new(trust_domain.parse().unwrap(), 1, [root.der().clone()]).unwrap()
}

fn clock() -> sds::Clock {
    std::sync::Arc::new(|| std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

/// No lists, and the agent says so.
fn none() -> (watch::Sender<Said>, Lists) {
    watch::channel(Some(Ok(Vec::new())))
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
    let client = tokio::spawn(sds::connect(socket.clone(), clock()));
    let (_said, lists) = none();
    let (mut streams, server) = serve(&socket, lists.clone());
    let (mut requests, responses) = soon(streams.recv()).await.unwrap();

    let first = soon(requests.recv()).await.unwrap();
    assert_eq!(first.resource_names, [DEFAULT, ROOT_CA, ALL]);
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

    // CRLs beside the roots are for others: no bundle is new because of one.
    let sequence = |held: &alcazar_identity::Credentials| held.bundles().iter().map(TrustBundle::sequence).max();
    let before = sequence(&credentials.borrow());
    let (mut checked, next) = (bundle_secret(ROOT_CA, &roots), svid("next"));
    match &mut checked.r#type {
        Some(alcazar_api::envoy::tls::secret::Type::ValidationContext(context)) => {
            use alcazar_api::envoy::core::{DataSource, data_source::Specifier};
            let specifier = Some(Specifier::InlineBytes(b"a CRL".to_vec()));
            context.crl = Some(DataSource { specifier, ..DataSource::default() });
            context.only_verify_leaf_cert_crl = true;
        }
        other => panic!("{other:?}"),
    }
    responses.send(response("5", &[svid_secret(DEFAULT, &next), checked])).await.unwrap();
    soon(credentials.changed()).await.unwrap();
    assert_eq!(credentials.borrow_and_update().svid().serial(), next.serial());
    assert_eq!(sequence(&credentials.borrow()), before);
    let new = next;

    // The agent goes; the credentials stay; it comes back and the next rotation arrives.
    drop((requests, responses, streams));
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    std::fs::remove_file(&socket).unwrap();
    let (mut streams, _server) = serve(&socket, lists);
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

#[tokio::test]
async fn the_bundles_of_other_trust_domains_come_and_change_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let (_said, lists) = none();
    let (mut streams, _server) = serve(&socket, lists);
    let client = tokio::spawn(sds::connect(socket, clock()));
    let (_requests, responses) = soon(streams.recv()).await.unwrap();
    let key = || KeyPair::generate().unwrap();
    let (own, two, three) = (bundle(), bundle_of("two", &key()), bundle_of("three", &key()));
    let all = |bundles: &[&TrustBundle]| {
        let bundles: TrustBundles = bundles.iter().map(|bundle| (*bundle).clone()).collect();
        bundles_secret(ALL, &bundles)
    };
    // Nobody but `ROOTCA` says what the own trust domain's bundle is.
    let other_own = bundle();
    let first = [svid_secret(DEFAULT, &svid("one")), bundle_secret(ROOT_CA, &own), all(&[&other_own, &two, &three])];
    responses.send(response("1", &first)).await.unwrap();
    let (mut credentials, driver) = soon(client).await.unwrap();
    tokio::spawn(driver);
    let held = |credentials: &watch::Receiver<std::sync::Arc<alcazar_identity::Credentials>>| {
        let credentials = credentials.borrow();
        let mut pems: Vec<_> = credentials.bundles().iter().map(TrustBundle::to_pem).collect();
        pems.sort();
        pems
    };
    let pems = |bundles: &[&TrustBundle]| {
        let mut pems: Vec<_> = bundles.iter().map(|bundle| bundle.to_pem()).collect();
        pems.sort();
        pems
    };
    assert_eq!(held(&credentials), pems(&[&own, &two, &three]));

    // One rotates its roots; another's cannot be read, and is believed no more; nobody else is touched.
    let new_two = bundle_of("two", &key());
    let spoilt = {
        use alcazar_api::envoy::tls::{SpiffeCertValidatorConfig, secret::Type};
        let mut secret = all(&[&new_two, &three]);
        let Some(Type::ValidationContext(context)) = &mut secret.r#type else { panic!("a validation context") };
        let any = context.custom_validator_config.as_mut().unwrap().typed_config.as_mut().unwrap();
        let mut config = SpiffeCertValidatorConfig::decode(any.value.as_slice()).unwrap();
        config.trust_domains.iter_mut().find(|one| one.name == "three").unwrap().trust_bundle = None;
        any.value = config.encode_to_vec();
        secret
    };
    responses.send(response("2", &[spoilt])).await.unwrap();
    soon(credentials.wait_for(|now| now.bundles().get(&"three".parse().unwrap()).is_none())).await.unwrap();
    assert_eq!(held(&credentials), pems(&[&own, &new_two]));
    responses.send(response("3", &[all(&[])])).await.unwrap();
    soon(credentials.wait_for(|now| now.bundles().iter().count() == 1)).await.unwrap();
    assert_eq!(held(&credentials), pems(&[&own]));
}

#[tokio::test]
async fn whatever_becomes_of_the_lists_certificates_are_rotated() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let (said, lists) = watch::channel(None);
    let (mut streams, _server) = serve(&socket, lists);
    let client = tokio::spawn(sds::connect(socket, clock()));
    let (_requests, responses) = soon(streams.recv()).await.unwrap();
    let root = KeyPair::generate().unwrap();
    let roots = bundle_of("td", &root);
    responses.send(response("1", &[svid_secret(DEFAULT, &svid("1")), bundle_secret(ROOT_CA, &roots)])).await.unwrap();

    // More than gRPC takes by default: 60,000 certificates.
    let issuer = ListIssuer::Root(Fingerprint::of(roots.roots().next().unwrap()));
    let mut list = RevocationList::new("td".parse().unwrap(), issuer, 1);
    let now = clock()();
    let revocation = Revocation { reason: RevocationReason::Superseded, since: now, until: now };
    for serial in 0..60_000_u128 {
        assert!(list.revoke_serial(&format!("{:032x}", (1 << 127) + serial), Some(Fingerprint::of(b"x")), revocation));
    }
    let list = encode_list(&list, now);
    let signature = root.sign(&to_be_signed(&list)).unwrap();
    let chain = roots.roots().map(|root| root.to_vec()).collect();
    let signed = alcazar_api::ca::v1::SignedRevocationList { list, signature, chain };
    let evidence = alcazar_api::ca::v1::SignedRevocations { lists: vec![signed] }.encode_to_vec();
    assert!(evidence.len() > 4 * 1024 * 1024);
    said.send_replace(Some(Ok(vec![revocations_secret(REVOCATIONS, &evidence)])));
    let (mut credentials, driver) = soon(client).await.unwrap();
    tokio::spawn(driver);
    // They were waited for: nobody is believed for a moment who is revoked.
    assert!(!credentials.borrow().revocations().is_empty());

    // Too much of it, or none at all: that stream fails, and what was held stays.
    let flood = vec![0; alcazar_api::MAX_MESSAGE + 1];
    for (number, bad) in
        [Ok(vec![revocations_secret(REVOCATIONS, &flood)]), Err(Status::unavailable("no"))].into_iter().enumerate()
    {
        said.send_replace(Some(bad));
        let next = svid(&format!("next-{number}"));
        responses.send(response(&format!("{}", number + 2), &[svid_secret(DEFAULT, &next)])).await.unwrap();
        soon(credentials.wait_for(|now| now.svid().serial() == next.serial())).await.unwrap();
        assert!(!credentials.borrow().revocations().is_empty());
    }
}
