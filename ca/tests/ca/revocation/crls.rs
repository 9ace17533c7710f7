//! CRLs, read by OpenSSL and by webpki.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alcazar_ca::{Config, RevocationConfig};
use alcazar_identity::{Fingerprint, RevocationReason, X509Svid, pem_block};
use alcazar_service::{Admin, Readiness, Shutdown};
use rustls_pki_types::UnixTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::hands::{identity, issue, revoke, serial};
use crate::support::{Hands, Served, key, node, registration, web};

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
pub(crate) async fn check(served: &Served, folder: &Path, revoked: &X509Svid, good: &X509Svid, old: Fingerprint) {
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
    let root = write("root.crt", pem_block("CERTIFICATE", &served.ca.fingerprints().root.certificate));
    let (_, root_crl) = fetch(address, "/crl/root.crl").await;
    let verify = async |svid: &X509Svid, intermediate: Fingerprint| {
        let (status, leaf_crl) = fetch(address, &format!("/crl/{intermediate}.crl")).await;
        assert_eq!(status, 200);
        let crls = write("crls.pem", pem_block("X509 CRL", &root_crl) + &pem_block("X509 CRL", &leaf_crl));
        let leaf = write("leaf.crt", pem_block("CERTIFICATE", &svid.chain()[0]));
        let chain = write("chain.crt", pem_block("CERTIFICATE", &svid.chain()[1]));
        let at = served.hands.now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().to_string();
        let mut arguments = vec!["verify", "-crl_check_all", "-x509_strict", "-purpose", "sslclient", "-attime", &at];
        arguments.extend(["-CAfile", &root, "-untrusted", &chain, "-CRLfile", &crls, &leaf]);
        let said = openssl(&arguments);
        let one = write("one.crl", pem_block("X509 CRL", &leaf_crl));
        let signed = openssl(&["crl", "-in", &one, "-CAfile", &chain, "-noout", "-verify"]);
        assert!(signed.contains("verify OK"), "{signed}");
        (said, leaf_crl, one)
    };
    let (said, ..) = verify(good, active.fingerprint).await;
    assert!(said.trim().ends_with("OK"), "{said}");
    let (said, ..) = verify(revoked, old).await;
    assert!(said.contains("certificate revoked"), "{said}");

    revoke(served, serial(good.serial()), RevocationReason::KeyCompromise).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_finds_the_crls_where_certificates_say_that_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    // Certificates name the port, so it must be known before.
    let listen = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let base = format!("http://{listen}/crl");
    let revocation =
        RevocationConfig { crl_url: Some(base.parse().unwrap()), listen: Some(listen), ..RevocationConfig::default() };
    let config = Config { revocation, ..Config::new(folder.path().join("ca")) };
    let served = Served::start_with(config, &hands).await;
    assert_eq!(served.ca.crl_address(), Some(listen));
    let one = served.attested(&node("one")).await;
    let prints = served.ca.fingerprints();
    let write = |name: &str, der: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem_block("CERTIFICATE", der)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (leaf, above) = (write("leaf.crt", &one.chain()[0]), write("above.crt", &one.chain()[1]));
    let root = write("root.crt", &prints.root.certificate);
    for (file, issuer) in [(&leaf, prints.intermediate.fingerprint), (&above, prints.root.fingerprint)] {
        let text = openssl(&["x509", "-in", file, "-noout", "-ext", "crlDistributionPoints"]);
        assert!(text.contains(&format!("URI:{base}/{issuer}.crl")), "{text}");
    }
    let at = hands.now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().to_string();
    // By each certificate's own distribution point: nothing else is given.
    let verify = |more: &[&str]| {
        let arguments = ["verify", "-crl_check", "-crl_download", "-x509_strict", "-attime", &at, "-CAfile", &root];
        openssl(&[&arguments, more].concat())
    };
    let said = verify(&[&above]);
    assert!(said.trim().ends_with("OK"), "{said}");
    let said = verify(&["-untrusted", &above, &leaf]);
    assert!(said.trim().ends_with("OK"), "{said}");
    revoke(&served, serial(one.serial()), RevocationReason::KeyCompromise).await.unwrap();
    let said = verify(&["-untrusted", &above, &leaf]);
    assert!(said.contains("certificate revoked"), "{said}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_begins_anew_forgets_no_certificate_of_a_revoked_identity() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let old = issue(&served, &one, "shop.web").await.unwrap();
    revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    served.stop().await;
    // As docs/ledger.md says, where it is damaged.
    std::fs::rename(folder.path().join("ledger"), folder.path().join("damaged-ledger")).unwrap();

    let mut config = Config::new(folder.path());
    let lost = std::fs::read_to_string(folder.path().join("ledger-name")).unwrap();
    config.ledger.replaces = Some(lost.trim().into());
    let served = Served::start_with(config, &hands).await;
    let crl = served.ca.crl(served.ca.fingerprints().intermediate.fingerprint).await.unwrap();
    let path = folder.path().join("one.crl");
    std::fs::write(&path, pem_block("X509 CRL", &crl)).unwrap();
    let text = openssl(&["crl", "-in", path.to_str().unwrap(), "-noout", "-text"]);
    assert!(text.contains(&old.serial().trim_start_matches('0').to_uppercase()), "{} is not in {text}", old.serial());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_the_crls_of_strangers_costs_the_ca_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let revocation = RevocationConfig { listen: Some("127.0.0.1:0".parse().unwrap()), ..RevocationConfig::default() };
    let served = Served::start_with(Config { revocation, ..Config::new(folder.path()) }, &Hands::new()).await;
    let address = served.ca.crl_address().unwrap();
    let ours = format!("/crl/{}.crl", served.ca.fingerprints().intermediate.fingerprint);
    let (status, first) = fetch(address, &ours).await;
    assert_eq!(status, 200);
    for n in 0..50_u8 {
        let stranger = Fingerprint::of(&[n]);
        assert_eq!(fetch(address, &format!("/crl/{stranger}.crl")).await.0, 404);
    }
    // Nothing is different, so the same bytes are given out: ECDSA would have signed others.
    assert_eq!(fetch(address, &ours).await, (200, first));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_connections_to_the_crls_open_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let revocation = RevocationConfig { listen: Some("127.0.0.1:0".parse().unwrap()), ..RevocationConfig::default() };
    let served = Served::start_with(Config { revocation, ..Config::new(folder.path()) }, &Hands::new()).await;
    let address = served.ca.crl_address().unwrap();
    let one = served.attested(&node("one")).await;
    // Of ten hosts, thirty connections each that say nothing: more than there are places.
    let mut silent = Vec::new();
    for n in 0..300_u16 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("127.0.0.{}:0", 2 + n % 10).parse().unwrap()).unwrap();
        silent.push(socket.connect(address).await.unwrap());
    }
    served.renew(&one, &key()).await.unwrap();
    assert_eq!(fetch(address, "/crl/root.crl").await.0, 200);
    // From one host there are so many and no more: the rest is closed, and the next one in the place of one that ended is served.
    let mut greedy = Vec::new();
    for _ in 0..40 {
        greedy.push(TcpStream::connect(address).await.unwrap());
    }
    let mut closed = 0;
    for stream in greedy.drain(32..) {
        closed += u32::from(ended(stream).await);
    }
    assert_eq!(closed, 8);
    drop(silent);
    // Nor do they hold up the end.
    let still = TcpStream::connect(address).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), served.stop()).await.expect("idle connections held up the end");
    assert!(ended(still).await);
}

/// Waits until the other side has closed the connection.
async fn ended(mut stream: TcpStream) -> bool {
    let read = stream.read(&mut [0; 1]).await;
    matches!(read, Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_list_has_a_higher_number_also_when_the_clock_stands_or_is_set_back() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let served = Served::start(&folder.path().join("ca"), &hands).await;
    let prints = served.ca.fingerprints();
    let path = folder.path().join("one.crl");
    let number = async |issuer: Fingerprint| {
        std::fs::write(&path, served.ca.crl(issuer).await.unwrap()).unwrap();
        let said = openssl(&["crl", "-inform", "DER", "-in", path.to_str().unwrap(), "-noout", "-crlnumber"]);
        let digits = said.trim().strip_prefix("crlNumber=").unwrap_or_else(|| panic!("{said}"));
        u64::from_str_radix(digits.trim_start_matches("0x"), 16).unwrap()
    };
    for issuer in [prints.root.fingerprint, prints.intermediate.fingerprint] {
        let first = number(issuer).await;
        let second = number(issuer).await;
        hands.back(Duration::from_secs(3600));
        let third = number(issuer).await;
        hands.advance(Duration::from_secs(7200));
        assert!(first < second && second < third && third < number(issuer).await);
        hands.back(Duration::from_secs(3600));
    }
    served.stop().await;
}
