//! Two CAs of two trust domains, over the loopback: each learns the other's bundle, keeps it, and forgets it.

#![allow(clippy::disallowed_methods, reason = "a test stops at the first surprise, and its tasks with it")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use alcazar_api::{
    ca::v1::{self, bundles_client::BundlesClient, certificate_authority_client::CertificateAuthorityClient},
    spiffe::{read_bundle, write_bundle},
};
use alcazar_ca::{BundleEndpointConfig, Config, EndpointProfile, FederationConfig, RelationProfile, Source};
use alcazar_identity::{CertificateDer, TrustBundle, TrustBundles, TrustDomain, X509Svid};
use alcazar_mtls::{
    Side, VerifyPeerError,
    web::{ServerFiles, WebAcceptor},
};
use alcazar_service::metrics::Format;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyUsagePurpose, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::support::{Hands, Served, eventually, key};

fn td(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// A folder with web PKI: `roots.pem`, `cert.pem` and `key.pem` for `localhost`, good when the tests take place.
struct WebPki {
    folder: tempfile::TempDir,
}

impl WebPki {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dates = |params: &mut CertificateParams| {
            params.not_before = (Hands::new().now() - Duration::from_secs(3600)).into();
            params.not_after = (Hands::new().now() + Duration::from_secs(3600)).into();
        };
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        dates(&mut root);
        let root_key = key();
        let certificate = root.self_signed(&root_key).unwrap();
        fs::write(folder.path().join("roots.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(root, root_key);
        let mut leaf = CertificateParams::default();
        dates(&mut leaf);
        leaf.subject_alt_names =
            vec![SanType::DnsName("localhost".try_into().unwrap()), SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let leaf_key = key();
        fs::write(folder.path().join("cert.pem"), leaf.signed_by(&leaf_key, &issuer).unwrap().pem()).unwrap();
        fs::write(folder.path().join("key.pem"), leaf_key.serialize_pem()).unwrap();
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn endpoint(&self) -> EndpointProfile {
        EndpointProfile::Web { cert_file: self.file("cert.pem"), key_file: self.file("key.pem") }
    }

    fn relation(&self) -> RelationProfile {
        RelationProfile::Web { roots_file: Some(self.file("roots.pem")) }
    }
}

fn config(folder: &Path, trust_domain: &str) -> Config {
    Config { trust_domain: td(trust_domain), ..Config::new(folder) }
}

fn with_endpoint(config: Config, profile: EndpointProfile) -> Config {
    let endpoint =
        BundleEndpointConfig { listen: "127.0.0.1:0".parse().unwrap(), profile, refresh_hint: Duration::from_secs(60) };
    Config { bundle_endpoint: Some(endpoint), ..config }
}

fn url(served: &Served) -> String {
    format!("https://localhost:{}/bundle.json", served.ca.bundle_endpoint().unwrap().port())
}

fn federated(config: Config, trust_domain: &str, url: String, profile: RelationProfile) -> Config {
    Config { federation: vec![FederationConfig { trust_domain: trust_domain.into(), url, profile }], ..config }
}

/// A leaf of a CA: a node of its own.
async fn leaf(served: &Served) -> X509Svid {
    let node = format!("spiffe://{}/node/local/a", served.ca.trust_domain()).parse().unwrap();
    served.attested(&node).await
}

fn verify(svid: &X509Svid, bundles: &TrustBundles, hands: &Hands) -> Result<(), VerifyPeerError> {
    alcazar_mtls::verify_peer(svid.chain(), bundles, Side::Client, hands.now()).map(drop)
}

/// Waits until a CA believes what the test waits for. It is looked at again and again: nodes are told of a change by
/// `WatchTrustBundles`, and a CA that has no nodes yet tells nobody.
async fn until(served: &Served, what: &str, believes: impl Fn(&TrustBundles) -> bool) {
    eventually(what, async || believes(&served.ca.trust_bundles())).await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_served_is_told_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let missing =
        EndpointProfile::Web { cert_file: folder.path().join("none.pem"), key_file: folder.path().join("key.pem") };
    let data = folder.path().join("data");
    let opened = alcazar_ca::Ca::open(with_endpoint(config(&data, "a.example"), missing), Hands::new().clock()).await;
    let reason = alcazar_service::process::chain(&opened.err().unwrap()).to_string();
    assert!(reason.starts_with("bundleEndpoint cannot be served") && reason.contains("none.pem"), "{reason}");
    assert!(!data.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn by_web_pki_a_leaf_of_one_is_verified_at_the_other_until_the_relation_ends() {
    let (hands, web) = (Hands::new(), WebPki::new());
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = Served::start_with(with_endpoint(config(one.path(), "one.example"), web.endpoint()), &hands).await;
    let leaf = leaf(&ours).await;
    let alone = Served::start_with(config(two.path(), "two.example"), &hands).await;
    let stranger = verify(&leaf, &alone.ca.trust_bundles(), &hands).unwrap_err();
    assert!(matches!(stranger, VerifyPeerError::ForeignTrustDomain { .. }), "{stranger:?}");
    alone.stop().await;

    let relation = || federated(config(two.path(), "two.example"), "one.example", url(&ours), web.relation());
    let theirs = Served::start_with(relation(), &hands).await;
    until(&theirs, "the bundle of one.example", |bundles| bundles.get(&td("one.example")).is_some()).await;
    verify(&leaf, &theirs.ca.trust_bundles(), &hands).unwrap();
    let held = theirs.ca.trust_bundles().get(&td("one.example")).unwrap().clone();
    assert_eq!(Some(held.clone()), ours.ca.own_bundle());
    assert_eq!((held.refresh_hint(), held.jwt_authorities().len()), (Some(Duration::from_secs(60)), 1));

    // Nodes hear of it: with their certificates, and at every change.
    let node = "spiffe://two.example/node/local/b".parse().unwrap();
    let (token, key) = (theirs.token(&node).await, key());
    let issued = theirs.attest(&token, &key).await.unwrap();
    let bundles: TrustBundles = issued.bundles.clone().unwrap().try_into().unwrap();
    assert_eq!(bundles.get(&td("one.example")), Some(&held));
    let svid = crate::support::svid(&issued, &key);
    let mut client: CertificateAuthorityClient<_> = theirs.client(&svid);
    let mut watch = client.watch_trust_bundles(v1::WatchTrustBundlesRequest {}).await.unwrap().into_inner();
    let seen: TrustBundles = watch.message().await.unwrap().unwrap().try_into().unwrap();
    assert_eq!(seen.iter().count(), 2);

    // A change at its owner arrives.
    ours.ca.rotate_jwt_key().await.unwrap();
    assert!(theirs.ca.poll_federated(&td("one.example")).await.unwrap());
    assert!(!theirs.ca.poll_federated(&td("one.example")).await.unwrap(), "nothing new");
    let seen: TrustBundles = watch.message().await.unwrap().unwrap().try_into().unwrap();
    let newer = seen.get(&td("one.example")).unwrap();
    assert_eq!((newer.sequence(), newer.jwt_authorities().len()), (held.sequence() + 1, 2));

    // The endpoint is away: the last bundle stays, also over a restart.
    let address = url(&ours);
    ours.stop().await;
    let error = theirs.ca.poll_federated(&td("one.example")).await.unwrap_err();
    assert!(error.to_string().contains("cannot reach"), "{error}");
    verify(&leaf, &theirs.ca.trust_bundles(), &hands).unwrap();
    drop((watch, client));
    theirs.stop().await;
    let away = federated(config(two.path(), "two.example"), "one.example", address.clone(), web.relation());
    let theirs = Served::start_with(away, &hands).await;
    verify(&leaf, &theirs.ca.trust_bundles(), &hands).unwrap();
    theirs.stop().await;
    // How old it is, is known after a restart too.
    hands.advance(Duration::from_secs(7200));
    let away = federated(config(two.path(), "two.example"), "one.example", address, web.relation());
    let theirs = Served::start_with(away, &hands).await;
    let age = "alcazar_ca_federation_bundle_age_seconds{trust_domain=\"one.example\"} 7200";
    let is_told = |_: &TrustBundles| theirs.ca.metrics().encode(Format::Prometheus).lines().any(|line| line == age);
    until(&theirs, "the age of what is held", is_told).await;
    theirs.stop().await;

    // The relation leaves the configuration, and with it the belief.
    let theirs = Served::start_with(config(two.path(), "two.example"), &hands).await;
    assert!(verify(&leaf, &theirs.ca.trust_bundles(), &hands).is_err());
    assert!(theirs.ca.foreign_bundles().await.unwrap().is_empty());
    theirs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_spiffe_the_endpoint_is_known_by_the_bundle_it_renews() {
    let hands = Hands::new();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spiffe = with_endpoint(config(one.path(), "one.example"), EndpointProfile::Spiffe);
    let ours = Served::start_with(spiffe, &hands).await;
    let leaf = leaf(&ours).await;
    let bundle_file = two.path().join("one.json");
    let second = two.path().join("data");
    fs::write(&bundle_file, write_bundle(&ours.ca.own_bundle().unwrap()).unwrap()).unwrap();
    let relation = |id: &str, file: Option<&Path>| {
        let profile = RelationProfile::Spiffe { endpoint_spiffe_id: id.into(), bundle_file: file.map(Into::into) };
        federated(config(&second, "two.example"), "one.example", url(&ours), profile)
    };
    let id = ours.ca.id().to_string();

    // Somebody else of that trust domain does not do, and without a bundle there is nothing to know anybody by.
    for (config, said) in [
        (relation("spiffe://one.example/ns/a/sa/b", Some(&bundle_file)), "cannot connect"),
        (relation(&id, None), "no bundle of one.example yet"),
    ] {
        let theirs = Served::start_with(config, &hands).await;
        let error = theirs.ca.poll_federated(&td("one.example")).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(theirs.ca.trust_bundles().get(&td("one.example")).is_none());
        theirs.stop().await;
    }

    let theirs = Served::start_with(relation(&id, Some(&bundle_file)), &hands).await;
    until(&theirs, "the bundle of one.example", |bundles| bundles.get(&td("one.example")).is_some()).await;
    verify(&leaf, &theirs.ca.trust_bundles(), &hands).unwrap();
    theirs.stop().await;
    // From now on the bundle that was fetched decides, and the file is not needed.
    fs::write(&bundle_file, "junk").unwrap();
    let theirs = Served::start_with(relation(&id, Some(&bundle_file)), &hands).await;
    ours.ca.rotate_jwt_key().await.unwrap();
    theirs.ca.poll_federated(&td("one.example")).await.unwrap();
    assert_eq!(theirs.ca.trust_bundles().get(&td("one.example")), ours.ca.own_bundle().as_ref());
    theirs.stop().await;
    ours.stop().await;
}

/// An endpoint of web PKI that says whatever the test wants, a connection each.
async fn endpoint(web: &WebPki, hands: &Hands, answers: Vec<String>) -> String {
    let files = ServerFiles { certificate: web.file("cert.pem"), key: web.file("key.pem") };
    let acceptor = WebAcceptor::from_files(files, hands.clock()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        for answer in answers {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let mut request = [0; 4096];
            drop(tls.read(&mut request).await);
            drop(tls.write_all(answer.as_bytes()).await);
            drop(tls.shutdown().await);
        }
    });
    url
}

fn ok(document: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}", document.len())
}

fn bundle(trust_domain: &str, sequence: u64) -> TrustBundle {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&key()).unwrap().der().clone();
    TrustBundle::new(td(trust_domain), sequence, [root]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_says_is_believed_only_where_it_can_be() {
    let (hands, web, folder) = (Hands::new(), WebPki::new(), tempfile::tempdir().unwrap());
    let document = |sequence| ok(&write_bundle(&bundle("one.example", sequence)).unwrap());
    let to = |location: &str| format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let huge = "x".repeat(300 << 10);
    let answers = vec![
        document(7),
        document(6),
        ok("not json"),
        ok("{\"keys\":[]}"),
        ok(&huge),
        "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
        to("http://localhost/"),
        // In a circle.
        to("/a"),
        to("b"),
        to("/a"),
        to("b"),
        // Relative to where it is said.
        to("/elsewhere/bundle.json"),
        to("../here.json"),
        document(8),
    ];
    let url = endpoint(&web, &hands, answers).await;
    let served =
        Served::start_with(federated(config(folder.path(), "two.example"), "one.example", url, web.relation()), &hands)
            .await;
    let other = td("one.example");
    until(&served, "the first answer", |bundles| bundles.get(&other).is_some()).await;
    let held = served.ca.trust_bundles();
    for said in [
        "an older bundle never",
        "cannot be read",
        "no bundle that can be used",
        "longer than",
        "status 500",
        "redirects to http:",
        "redirects more than 3 times",
    ] {
        let error = served.ca.poll_federated(&other).await.unwrap_err();
        assert!(error.to_string().contains(said), "{said:?} is not in {error}");
        assert_eq!(served.ca.trust_bundles(), held, "{said}");
    }
    assert!(served.ca.poll_federated(&other).await.unwrap());
    assert_eq!(served.ca.trust_bundles().get(&other).unwrap().sequence(), 8);
    served.stop().await;
}

/// The operator's socket of a CA.
async fn operator(served: &Served) -> BundlesClient<tonic::transport::Channel> {
    let socket = format!("unix:{}", served.ca.admin_socket().display());
    BundlesClient::connect(socket).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_brings_a_bundle_by_hand_and_takes_it_away() {
    let (hands, folder) = (Hands::new(), tempfile::tempdir().unwrap());
    let served = Served::start_with(config(folder.path(), "two.example"), &hands).await;
    let mut client = operator(&served).await;
    let set =
        |trust_domain: &str, bundle: Vec<u8>| v1::SetForeignBundleRequest { trust_domain: trust_domain.into(), bundle };
    let seven = bundle("one.example", 7);
    let document = write_bundle(&seven).unwrap();
    let reply = client.set_foreign_bundle(set("one.example", document.clone().into())).await.unwrap();
    assert!(reply.into_inner().changed);
    assert_eq!(served.ca.trust_bundles().get(&td("one.example")), Some(&seven));
    assert_eq!(served.ca.foreign_bundles().await.unwrap()[0].source, Source::Operator);

    let older = write_bundle(&bundle("one.example", 6)).unwrap();
    for (trust_domain, bundle, code) in [
        ("two.example", document.clone(), Code::InvalidArgument),
        ("one.example", older, Code::FailedPrecondition),
        ("one.example", "{}".into(), Code::InvalidArgument),
        ("one.example", "no pem".into(), Code::InvalidArgument),
        ("ONE", document.clone(), Code::InvalidArgument),
    ] {
        let refused = client.set_foreign_bundle(set(trust_domain, bundle.into())).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    // Roots alone, as PEM, are numbered here.
    let pem = bundle("one.example", 0).to_pem();
    client.set_foreign_bundle(set("one.example", pem.into())).await.unwrap();
    assert_eq!(served.ca.trust_bundles().get(&td("one.example")).unwrap().sequence(), 8);

    let listed = client.list_bundles(v1::ListBundlesRequest {}).await.unwrap().into_inner().bundles;
    assert_eq!(listed.iter().map(|bundle| bundle.source.as_str()).collect::<Vec<_>>(), ["own", "operator"]);
    let own = read_bundle(td("two.example"), listed[0].document.as_bytes()).unwrap().bundle;
    assert_eq!(Some(own), served.ca.own_bundle());

    let delete = || v1::DeleteForeignBundleRequest { trust_domain: "one.example".into() };
    assert!(client.delete_foreign_bundle(delete()).await.unwrap().into_inner().deleted);
    assert!(!client.delete_foreign_bundle(delete()).await.unwrap().into_inner().deleted);
    assert!(served.ca.trust_bundles().get(&td("one.example")).is_none());
    served.stop().await;
}

/// A CA certificate of a key that rcgen does not make.
fn openssl_root([kind, option]: [&str; 2]) -> Vec<u8> {
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", kind, "-pkeyopt", option, "-nodes", "-keyout", "/dev/null", "-days", "3650"])
        .args(["-subj", "/CN=root", "-addext", "keyUsage=critical,keyCertSign", "-outform", "DER"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_in_use_is_removed_by_force_alone() {
    let (hands, folder) = (Hands::new(), tempfile::tempdir().unwrap());
    let served = Served::start_with(config(folder.path(), "two.example"), &hands).await;
    let mut client = operator(&served).await;
    let extra = bundle("two.example", 1).roots().next().unwrap().to_vec();
    let leaf = crate::support::key();
    let no_ca = CertificateParams::default().self_signed(&leaf).unwrap().der().to_vec();
    let refused = client.add_roots(v1::AddRootsRequest { roots: vec![no_ca] }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");

    // One that would keep our bundle document from everybody: of a kind of key that has no place in it, or too weak.
    for (kind, said) in
        [(["ec", "ec_paramgen_curve:secp521r1"], "an EC key on"), (["rsa", "rsa_keygen_bits:1024"], "1024 bits")]
    {
        let refused = client.add_roots(v1::AddRootsRequest { roots: vec![openssl_root(kind)] }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(said), "{refused}");
    }

    let before = served.ca.own_bundle().unwrap();
    let add = || v1::AddRootsRequest { roots: vec![extra.clone()] };
    assert_eq!(client.add_roots(add()).await.unwrap().into_inner().added, 1);
    assert_eq!(client.add_roots(add()).await.unwrap().into_inner().added, 0);
    let both = served.ca.own_bundle().unwrap();
    assert_eq!((both.roots().len(), both.sequence()), (2, before.sequence() + 1));
    assert!(both.roots().any(|root| *root == CertificateDer::from(extra.clone())));

    let remove = |root: &[u8], force| v1::RemoveRootRequest { root: root.to_vec(), force };
    let refused = client.remove_root(remove(&extra, false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("whoever else issues under it"), "{refused}");
    client.remove_root(remove(&extra, true)).await.unwrap();
    assert_eq!(client.remove_root(remove(&extra, true)).await.unwrap_err().code(), Code::NotFound);
    // Ours, not even so.
    let own = before.roots().next().unwrap().to_vec();
    let refused = client.remove_root(remove(&own, true)).await.unwrap_err();
    assert!(refused.message().contains("this CA signs under the root"), "{refused}");
    assert_eq!(served.ca.own_bundle().unwrap().roots().collect::<Vec<_>>(), before.roots().collect::<Vec<_>>());
    served.stop().await;
}
