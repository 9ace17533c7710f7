//! What is taken back is issued no more and is told to every node, signed; what is given back is new.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test stops at the first surprise; one of them measures"
)]

mod support;

use std::{
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use alcazar_api::{
    ca::v1::{
        self, revocation_administration_client::RevocationAdministrationClient, revocation_client::RevocationClient,
        revoke_request, unrevoke_request,
    },
    revocations::Keeper,
};
use alcazar_identity::{Fingerprint, RevocationReason, Revocations, RevokedBy, SpiffeId, X509Svid};
use alcazar_mtls::{PeerIdentity, Side, verify_peer};
use alcazar_service::{Admin, Readiness, Shutdown};
use rustls_pki_types::UnixTime;
use support::{Hands, Served, csr, id, key, node, registration, svid, web};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, net::TcpStream, task::JoinSet, time::timeout};
use tonic::{Code, Status, Streaming, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(30);

async fn operator(served: &Served) -> RevocationAdministrationClient<Channel> {
    let socket = format!("unix:{}", served.ca.admin_socket().display());
    RevocationAdministrationClient::connect(socket).await.unwrap()
}

async fn revoke(
    served: &Served,
    subject: revoke_request::Subject,
    reason: RevocationReason,
) -> Result<Option<v1::RevocationEntry>, Status> {
    let request = v1::RevokeRequest { subject: Some(subject), reason: reason.code().into() };
    operator(served).await.revoke(request).await.map(|reply| reply.into_inner().entry)
}

async fn unrevoke(served: &Served, subject: unrevoke_request::Subject) -> Result<(), Status> {
    let request = v1::UnrevokeRequest { subject: Some(subject) };
    operator(served).await.unrevoke(request).await.map(drop)
}

fn identity(id: &SpiffeId) -> revoke_request::Subject {
    revoke_request::Subject::SpiffeId(id.to_string())
}

/// A node's stream, and what it holds by it.
struct Follower {
    stream: Streaming<v1::SignedRevocations>,
    keeper: Keeper,
}

impl Follower {
    async fn start(served: &Served, of: &X509Svid) -> Self {
        let mut client = RevocationClient::new(served.channel(of));
        let stream = client.watch_revocations(v1::WatchRevocationsRequest {}).await.unwrap().into_inner();
        Self { stream, keeper: Keeper::default() }
    }

    /// Hears until this holds.
    async fn until(&mut self, served: &Served, good: impl Fn(&Revocations) -> bool) -> Arc<Revocations> {
        loop {
            let said = timeout(PATIENCE, self.stream.message()).await.expect("a push").unwrap().expect("a message");
            let outcome = self.keeper.take(&said, &served.ca.trust_bundles(), served.hands.now());
            assert!(outcome.refused.is_empty(), "{outcome:?}");
            if good(self.keeper.current()) {
                return self.keeper.current().clone();
            }
        }
    }
}

fn peer(served: &Served, svid: &X509Svid) -> PeerIdentity {
    verify_peer(svid.chain(), &served.ca.trust_bundles(), Side::Client, served.hands.now()).unwrap()
}

async fn issue(served: &Served, of: &X509Svid, name: &str) -> Result<X509Svid, (i32, String)> {
    let key = key();
    let items =
        vec![v1::IssueWorkload { registration_id: name.into(), csr: csr(&key), ..v1::IssueWorkload::default() }];
    let reply = served.client(of).issue_workloads(v1::IssueWorkloadsRequest { items }).await;
    let reply = reply.map_err(|status| (status.code().into(), status.message().to_owned()))?;
    match reply.into_inner().results.remove(0).outcome.unwrap() {
        v1::issue_workload_result::Outcome::Svid(issued) => Ok(svid(&issued, &key)),
        v1::issue_workload_result::Outcome::Refusal(refusal) => Err((refusal.code, refusal.message)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_identity_gets_nothing_until_it_is_reinstated_and_its_old_certificates_stay_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let old = issue(&served, &one, "shop.web").await.unwrap();
    let mut follower = Follower::start(&served, &one).await;
    follower.until(&served, Revocations::is_empty).await;

    hands.advance(Duration::from_secs(1));
    let entry = revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap().unwrap();
    assert_eq!((entry.kind.as_str(), entry.subject.as_str(), entry.until), ("identity", web().as_str(), 0));
    assert!(entry.by.starts_with("operator with uid "), "{}", entry.by);
    let held = follower.until(&served, |held| !held.is_empty()).await;
    let revoked = peer(&served, &old).revoked_by(&held).unwrap();
    assert!(matches!(&revoked.rule, RevokedBy::Identity { id, .. } if *id == web()), "{revoked}");
    let denied = (Code::PermissionDenied.into(), "revoked".to_owned());
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied);
    assert_eq!(peer(&served, &one).revoked_by(&held), None, "its node is another");
    // The list outlives what it is about: nothing is issued a week later either.
    hands.advance(Duration::from_secs(1800));
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied);

    unrevoke(&served, unrevoke_request::Subject::SpiffeId(web().to_string())).await.unwrap();
    let held = follower
        .until(&served, |held| held.lists().all(|list| list.identities().all(|(_, identity)| identity.reinstated)));
    let held = held.await;
    let new = issue(&served, &one, "shop.web").await.unwrap();
    assert_eq!(peer(&served, &new).revoked_by(&held), None);
    assert!(peer(&served, &old).revoked_by(&held).is_some());
    let again = unrevoke(&served, unrevoke_request::Subject::SpiffeId(node("x").to_string())).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_issued_at_once_after_a_reinstatement_is_not_taken_for_old() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let old = issue(&served, &one, "shop.web").await.unwrap();
    revoke(&served, identity(&web()), RevocationReason::Superseded).await.unwrap();
    unrevoke(&served, unrevoke_request::Subject::SpiffeId(web().to_string())).await.unwrap();
    let mut follower = Follower::start(&served, &one).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    // Two seconds later, and within the two minutes of backdating.
    hands.advance(Duration::from_secs(2));
    let new = issue(&served, &one, "shop.web").await.unwrap();
    assert!(new.validity().not_before() > old.validity().not_before() + Duration::from_secs(100));
    assert_eq!(peer(&served, &new).revoked_by(&held), None);
    assert!(peer(&served, &old).revoked_by(&held).is_some());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_loses_its_lineage_its_workloads_and_its_connections() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let (one, two) = (served.attested(&node("one")).await, served.attested(&node("two")).await);
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let mut cut = Follower::start(&served, &one).await;
    cut.until(&served, Revocations::is_empty).await;
    let client = served.client(&one);
    hands.advance(Duration::from_secs(1));
    let token = served.token(&node("one")).await;

    revoke(&served, identity(&node("one")), RevocationReason::CessationOfOperation).await.unwrap();
    // The open connection ends, perhaps after it said why.
    let ended = async { while let Ok(Some(_)) = cut.stream.message().await {} };
    timeout(PATIENCE, ended).await.expect("the connection of a revoked node is cut");
    let renewed = client.clone().renew_node(v1::RenewNodeRequest { csr: csr(&key()) }).await.unwrap_err();
    assert!(
        format!("{renewed:?}").contains("CertificateRevoked") || renewed.code() == Code::Unavailable,
        "{renewed:?}"
    );
    let refused = served.attest(&token, &key()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "revoked"));
    let reason = served.ca.create_join_token(&node("one"), None).await.unwrap_err().to_string();
    assert!(reason.contains("alcazar unrevoke --identity"), "{reason}");
    assert!(served.renew(&two, &key()).await.is_ok());

    unrevoke(&served, unrevoke_request::Subject::SpiffeId(node("one").to_string())).await.unwrap();
    hands.advance(Duration::from_secs(1));
    assert!(served.renew(&one, &key()).await.is_err(), "the old certificate stays revoked");
    let key = key();
    let again = svid(&served.attest(&token, &key).await.unwrap(), &key);
    assert!(issue(&served, &again, "shop.web").await.is_ok());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_can_be_lifted_and_other_reasons_are_final() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let (one, two) = (served.attested(&node("one")).await, served.attested(&node("two")).await);
    let mut follower = Follower::start(&served, &two).await;
    let serial = |text: &str| revoke_request::Subject::Serial(text.to_owned());
    // As openssl prints it.
    let printed = one
        .serial()
        .to_uppercase()
        .as_bytes()
        .chunks(2)
        .map(|b| std::str::from_utf8(b).unwrap())
        .collect::<Vec<_>>()
        .join(":");
    let entry = revoke(&served, serial(&printed), RevocationReason::CertificateHold).await.unwrap().unwrap();
    assert_eq!((entry.subject.as_str(), entry.spiffe_id.as_str()), (one.serial(), node("one").as_str()));
    let held = follower.until(&served, |held| !held.is_empty()).await;
    let revoked = peer(&served, &one).revoked_by(&held).unwrap();
    assert_eq!(revoked.revocation.reason, RevocationReason::CertificateHold);
    assert!(served.renew(&one, &key()).await.is_err());

    unrevoke(&served, unrevoke_request::Subject::Serial(one.serial().into())).await.unwrap();
    let held = follower.until(&served, Revocations::is_empty).await;
    assert_eq!(peer(&served, &one).revoked_by(&held), None);

    revoke(&served, serial(one.serial()), RevocationReason::CertificateHold).await.unwrap();
    revoke(&served, serial(one.serial()), RevocationReason::KeyCompromise).await.unwrap();
    let refused = unrevoke(&served, unrevoke_request::Subject::Serial(one.serial().into())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("only certificateHold can be lifted"), "{refused:?}");
    // Unknown to the record, and accepted all the same: another replica may have issued it.
    assert!(revoke(&served, serial("abcdef"), RevocationReason::Unspecified).await.unwrap().is_some());
    for (subject, words) in [
        (serial("what"), "is not a serial number"),
        (identity(&id("spiffe://other/ns/a/sa/b")), "of this trust domain"),
        (identity(&served.ca.id()), "the CA's own identity"),
    ] {
        let refused = revoke(&served, subject, RevocationReason::KeyCompromise).await.unwrap_err();
        assert!(refused.message().contains(words), "{refused:?}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_outlive_a_restart_and_what_is_over_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    let serial = revoke_request::Subject::Serial("abcdef".into());
    revoke(&served, serial, RevocationReason::KeyCompromise).await.unwrap();
    let version = operator(&served).await.list_revocations(v1::ListRevocationsRequest {}).await.unwrap();
    served.stop().await;

    let served = Served::start(folder.path(), &hands).await;
    let mut follower = Follower::start(&served, &one).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    let list = held.lists().next().unwrap();
    assert_eq!((list.version(), list.len()), (version.into_inner().version, 2));
    served.stop().await;

    // Two days later no certificate of then is good; the identity is still barred.
    hands.advance(Duration::from_secs(2 * 24 * 3600));
    let served = Served::start(folder.path(), &hands).await;
    let listed = operator(&served).await.list_revocations(v1::ListRevocationsRequest {}).await.unwrap().into_inner();
    let subjects: Vec<_> = listed.entries.iter().map(|entry| entry.subject.as_str()).collect();
    assert_eq!(subjects, [web().as_str()]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intermediate_is_revoked_by_its_root_once_another_signs() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let old = served.attested(&node("one")).await;
    let first = served.ca.fingerprints().intermediate.fingerprint;
    let subject = || revoke_request::Subject::Intermediate(first.to_string());
    let refused = revoke(&served, subject(), RevocationReason::CaCompromise).await.unwrap_err();
    assert!(refused.message().contains("is the one that signs here"), "{refused:?}");

    let root = served.ca.fingerprints().root.fingerprint;
    let second = served.ca.make_intermediate(root).await.unwrap().fingerprint;
    served.ca.activate(second).await.unwrap();
    let two = served.attested(&node("two")).await;
    revoke(&served, subject(), RevocationReason::CaCompromise).await.unwrap();
    let mut follower = Follower::start(&served, &two).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    assert_eq!(peer(&served, &old).revoked_by(&held).unwrap().rule, RevokedBy::Intermediate(first));
    assert_eq!(peer(&served, &two).revoked_by(&held), None);
    assert!(served.renew(&old, &key()).await.is_err());

    // Another cluster's CA takes the root's list as it is.
    let lists = operator(&served).await.export_revocations(v1::ExportRevocationsRequest {}).await.unwrap().into_inner();
    let again = operator(&served).await.import_revocations(lists.clone()).await.unwrap().into_inner();
    assert!(again.taken.is_empty(), "it is held already");
    let mut forged = lists;
    forged.lists[0].signature[9] ^= 1;
    let refused = operator(&served).await.import_revocations(forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    check_with_openssl(&served, folder.path(), &old, &two, first).await;
    served.stop().await;
}

fn pem(kind: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let lines = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.collect::<Vec<_>>().join("\n"))
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// A page of the administration listener.
async fn fetch(address: std::net::SocketAddr, path: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

/// `revoked` is under an intermediate that its root has revoked; `good` is not revoked, until its serial number is.
async fn check_with_openssl(served: &Served, folder: &Path, revoked: &X509Svid, good: &X509Svid, old: Fingerprint) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let opened = Arc::new(OnceLock::new());
    let admin = Admin::new(Readiness::new()).with_routes(alcazar_ca::crl_routes(opened.clone()));
    let end = shutdown.clone();
    shutdown.spawn("pages", async move { admin.serve(listener, end).await.unwrap() });
    assert_eq!(fetch(address, "/crl/root.crl").await.0, 503, "before the CA is open");
    assert!(opened.set(served.ca.clone()).is_ok());
    for (path, status) in [("/crl/x.crl", 404), ("/crl/root", 404), (&*format!("/crl/{}.crl", "0".repeat(64)), 404)] {
        assert_eq!(fetch(address, path).await.0, status, "{path}");
    }

    let active = served.ca.fingerprints().intermediate;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let root = write("root.crt", pem("CERTIFICATE", &served.ca.fingerprints().root.certificate));
    let (_, root_crl) = fetch(address, "/crl/root.crl").await;
    let verify = async |svid: &X509Svid, intermediate: Fingerprint| {
        let (status, leaf_crl) = fetch(address, &format!("/crl/{intermediate}.crl")).await;
        assert_eq!(status, 200);
        let crls = write("crls.pem", pem("X509 CRL", &root_crl) + &pem("X509 CRL", &leaf_crl));
        let leaf = write("leaf.crt", pem("CERTIFICATE", &svid.chain()[0]));
        let chain = write("chain.crt", pem("CERTIFICATE", &svid.chain()[1]));
        let at = served.hands.now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().to_string();
        let mut arguments = vec!["verify", "-crl_check_all", "-x509_strict", "-purpose", "sslclient", "-attime", &at];
        arguments.extend(["-CAfile", &root, "-untrusted", &chain, "-CRLfile", &crls, &leaf]);
        let said = openssl(&arguments);
        let one = write("one.crl", pem("X509 CRL", &leaf_crl));
        let signed = openssl(&["crl", "-in", &one, "-CAfile", &chain, "-noout", "-verify"]);
        assert!(signed.contains("verify OK"), "{signed}");
        (said, leaf_crl, one)
    };
    let (said, ..) = verify(good, active.fingerprint).await;
    assert!(said.trim().ends_with("OK"), "{said}");
    let (said, ..) = verify(revoked, old).await;
    assert!(said.contains("certificate revoked"), "{said}");

    let serial = revoke_request::Subject::Serial(good.serial().into());
    revoke(served, serial, RevocationReason::KeyCompromise).await.unwrap();
    let (said, leaf_crl, file) = verify(good, active.fingerprint).await;
    assert!(said.contains("certificate revoked"), "{said}");
    let text = openssl(&["crl", "-in", &file, "-noout", "-text"]);
    for part in ["Key Compromise", "X509v3 CRL Number", "X509v3 Authority Key Identifier"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }

    // And by webpki, which knows nothing of ours.
    let crl = webpki::OwnedCertRevocationList::from_der(&leaf_crl).unwrap();
    let (crl, lists) = (webpki::CertRevocationList::from(crl), |one| [one]);
    let all = [&crl];
    let options =
        webpki::RevocationOptionsBuilder::new(&all).unwrap().with_depth(webpki::RevocationCheckDepth::EndEntity);
    let trusted = served.ca.fingerprints().root.certificate;
    let anchors = lists(webpki::anchor_from_trusted_cert(&trusted).unwrap());
    let entity = webpki::EndEntityCert::try_from(&good.chain()[0]).unwrap();
    let now = served.hands.now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let verdict = entity.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &good.chain()[1..],
        UnixTime::since_unix_epoch(now),
        webpki::KeyUsage::client_auth(),
        Some(options.build()),
        None,
    );
    assert_eq!(verdict.err(), Some(webpki::Error::CertRevoked));
    shutdown.trigger("the test is over");
}

/// How many streams follow at once, and how long they may take together.
const CROWD: usize = 1_000;
/// Generous: the debug build of a machine that does other things too. The figure is printed.
const TOGETHER: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connected_nodes_hold_a_revocation_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let one = served.attested(&node("one")).await;
    let mut followers = Vec::with_capacity(CROWD);
    // Not all at once: what is measured is the push, not the handshakes.
    for _ in 0..CROWD / 50 {
        let mut starting = JoinSet::new();
        for _ in 0..50 {
            let channel = served.channel(&one);
            starting.spawn(async move {
                let mut stream = RevocationClient::new(channel)
                    .watch_revocations(v1::WatchRevocationsRequest {})
                    .await
                    .unwrap()
                    .into_inner();
                stream.message().await.unwrap().unwrap();
                stream
            });
        }
        followers.extend(starting.join_all().await);
    }
    let (bundles, now) = (served.ca.trust_bundles(), served.hands.now());
    let started = Instant::now();
    let mut holding = JoinSet::new();
    for mut stream in followers {
        let bundles = bundles.clone();
        holding.spawn(async move {
            let mut keeper = Keeper::default();
            while keeper.current().is_empty() {
                let said = stream.message().await.unwrap().unwrap();
                keeper.take(&said, &bundles, now);
            }
            (started.elapsed(), stream)
        });
    }
    let begun = started.elapsed();
    revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    let told = started.elapsed();
    let all = timeout(PATIENCE, holding.join_all()).await.expect("everybody holds it");
    let last = all.iter().map(|(elapsed, _)| *elapsed).max().unwrap();
    eprintln!(
        "{CROWD} nodes hold and have verified a revocation {:?} after it was asked for; the operator was answered after {:?}",
        last - begun,
        told - begun
    );
    assert!(last - begun < TOGETHER, "{last:?}");
    drop(all);
    served.stop().await;
}
