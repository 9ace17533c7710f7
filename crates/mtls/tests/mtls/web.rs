//! Documents over HTTPS: fetched within limits, from servers that are who they should be.

#![allow(clippy::disallowed_methods, reason = "a test stops at the first surprise, and its tasks with it")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use alcazar_identity::{
    ListIssuer, Revocation, RevocationList, RevocationReason, Revocations, RevokedIdentity, TrustBundles, pem_block,
};
use alcazar_mtls::web::{FetchError, Fetched, HttpsUrl, Limits, ServerFiles, WebAcceptor, WebClient};
use alcazar_mtls::{Clock, ConnectError, Expected, VerifyPeerError};
use rcgen::SanType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::common::*;

/// A server that answers each connection with the same bytes, and keeps what it was asked.
struct Server {
    url: HttpsUrl,
    asked: JoinHandle<Vec<String>>,
}

impl Server {
    /// Serves `answers`, a connection each; `host` is what the URL calls it.
    async fn start(acceptor: WebAcceptor, host: &str, answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers: Vec<_> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let asked = tokio::task::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    match tls.read(&mut byte).await {
                        Ok(1) => request.push(byte[0]),
                        _ => break,
                    }
                }
                asked.push(String::from_utf8(request).unwrap());
                // A client that has seen enough hangs up.
                drop(tls.write_all(answer.as_bytes()).await);
                drop(tls.shutdown().await);
            }
            asked
        });
        Self { url: format!("https://{host}:{port}/keys?v=1").parse().unwrap(), asked }
    }
}

/// A root of web PKI and a server certificate for `localhost` and 127.0.0.1, in files.
fn web_pki(folder: &Path, root: &Ca) -> ServerFiles {
    let holder = root.leaf_with(&[], |params| {
        let name = SanType::DnsName("localhost".try_into().unwrap());
        params.subject_alt_names = vec![name, SanType::IpAddress("127.0.0.1".parse().unwrap())];
    });
    let key = alcazar_identity::SvidKey::from_pkcs8(holder.key.clone()).unwrap();
    let files = ServerFiles { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    let chain: String = holder.chain.iter().map(|der| pem_block("CERTIFICATE", der)).collect();
    fs::write(&files.certificate, chain).unwrap();
    fs::write(&files.key, key.to_pem().as_bytes()).unwrap();
    files
}

fn acceptor(files: ServerFiles) -> WebAcceptor {
    WebAcceptor::from_files(files, clock()).unwrap()
}

fn client(root: &Ca) -> WebClient {
    WebClient::with_roots(pem_block("CERTIFICATE", &root.der).as_bytes(), clock()).unwrap()
}

const DOCUMENT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\netag: \"7\"\r\ncache-control: max-age=60\r\n\r\n{}";

#[tokio::test]
async fn a_document_is_fetched_with_what_its_server_says_of_it() {
    let (folder, root) = (tempfile::tempdir().unwrap(), Ca::root("web"));
    let unchanged = "HTTP/1.1 304 Not Modified\r\netag: \"7\"\r\n\r\n";
    let server = Server::start(acceptor(web_pki(folder.path(), &root)), "localhost", &[DOCUMENT, unchanged]).await;
    let document = client(&root).fetch(&server.url).await.unwrap();
    assert_eq!(document.bytes, b"{}");
    assert_eq!((document.etag.as_deref(), document.max_age), (Some("\"7\""), Some(Duration::from_secs(60))));
    let again = client(&root).fetch_newer(&server.url, document.etag.as_deref()).await.unwrap();
    assert_eq!(again, Fetched::Unchanged);
    let asked = server.asked.await.unwrap();
    assert!(asked[0].starts_with("GET /keys?v=1 HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[0].contains(&format!("host: localhost:{}\r\n", server.url.port())), "{asked:?}");
    assert!(!asked[0].contains("if-none-match") && asked[1].contains("if-none-match: \"7\"\r\n"), "{asked:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_the_document_is_an_error_that_says_what_came() {
    let (folder, root) = (tempfile::tempdir().unwrap(), Ca::root("web"));
    let files = web_pki(folder.path(), &root);
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{}", "x".repeat(5000));
    let chunks = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
        "3e8\r\n".to_owned() + &"y".repeat(1000) + "\r\n" + "3e8\r\n" + &"y".repeat(1000) + "\r\n"
    );
    for (answer, said) in [
        (
            "HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/\r\n\r\n",
            "redirects to https://elsewhere.example/",
        ),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "the HTTP status 404"),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", "the HTTP status 304"),
        (long.as_str(), "longer than 1500 bytes"),
        (chunks.as_str(), "longer than 1500 bytes"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{}", "broke off"),
        ("SSH-2.0-OpenSSH\r\n", "cannot be read"),
        ("", "cannot be read"),
    ] {
        let server = Server::start(acceptor(files.clone()), "localhost", &[answer]).await;
        let limits = Limits { bytes: 1500, ..Limits::default() };
        let error = client(&root).with_limits(limits).fetch(&server.url).await.unwrap_err();
        assert!(causes(&error).contains(said), "{answer:?}: {}", causes(&error));
    }
}

#[tokio::test]
async fn a_server_that_sends_slowly_is_given_up() {
    alcazar_mtls::install_default_provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let limits = Limits { deadline: Duration::from_millis(50), ..Limits::default() };
    // It is never accepted from: the connection stands, and TLS waits.
    let error = client(&Ca::root("web")).with_limits(limits).fetch(&url).await.unwrap_err();
    assert!(matches!(error, FetchError::Deadline { .. }), "{error:?}");
    drop(listener);
    let error = client(&Ca::root("web")).fetch(&url).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_of_another_name_root_or_time_is_refused() {
    let (folder, root) = (tempfile::tempdir().unwrap(), Ca::root("web"));
    let files = web_pki(folder.path(), &root);
    let later: Clock = std::sync::Arc::new(|| now() + 2 * HOUR);
    let roots = pem_block("CERTIFICATE", &root.der);
    for (client, host, said) in [
        (client(&root), "other.example", "NotValidForName"),
        (client(&root), "127.0.0.2", "NotValidForName"),
        (client(&Ca::root("another")), "localhost", "UnknownIssuer"),
        (WebClient::with_roots(roots.as_bytes(), later).unwrap(), "localhost", "Expired"),
    ] {
        let (ours, theirs) = sockets().await;
        let acceptor = acceptor(files.clone());
        let (connected, accepted) = tokio::join!(client.connect(host, ours), acceptor.accept(theirs));
        let error = connected.unwrap_err();
        assert!(format!("{error:?}").contains(said), "{error:?}");
        assert!(matches!(accepted, Err(alcazar_mtls::AcceptError::Refused { .. })), "{accepted:?}");
    }
    let junk = WebClient::with_roots(b"no pem", clock());
    assert!(junk.is_err());
}

#[tokio::test]
async fn a_server_can_be_known_by_its_spiffe_id_alone() {
    let mesh = Mesh::new();
    let id = |text: &str| Expected::id(text.parse().unwrap());
    let spiffe = |bundles: TrustBundles, expected| WebClient::spiffe(bundles, expected, clock());
    let serve = async || {
        let acceptor = WebAcceptor::spiffe(mesh.live(REVIEWS), clock());
        // The name in the URL is anybody's: it is not what is verified.
        Server::start(acceptor, "localhost", &[DOCUMENT]).await
    };
    let server = serve().await;
    let document = spiffe(mesh.bundles(), id(REVIEWS)).fetch(&server.url).await.unwrap();
    assert_eq!(document.bytes, b"{}");

    let refused = async |client: WebClient| {
        let server = serve().await;
        match client.fetch(&server.url).await.unwrap_err() {
            FetchError::Handshake { source, .. } => match *source {
                ConnectError::Peer { source } => source,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    let unexpected = refused(spiffe(mesh.bundles(), id(RATINGS))).await;
    assert!(matches!(unexpected, VerifyPeerError::Unexpected { .. }), "{unexpected:?}");
    let unknown = refused(spiffe(Ca::root("root").bundle(TD).into(), id(REVIEWS))).await;
    assert!(
        matches!(unknown, VerifyPeerError::Signature { .. } | VerifyPeerError::UnknownIssuer { .. }),
        "{unknown:?}"
    );
    let foreign = refused(spiffe(mesh.root.bundle("other.example").into(), id(REVIEWS))).await;
    assert!(matches!(foreign, VerifyPeerError::ForeignTrustDomain { .. }), "{foreign:?}");

    let revocation = Revocation { reason: RevocationReason::KeyCompromise, since: now(), until: now() + HOUR };
    let mut list = RevocationList::new(TD.parse().unwrap(), ListIssuer::Cluster("east".into()), 1);
    list.revoke_identity(REVIEWS.parse().unwrap(), RevokedIdentity { before: now(), reinstated: false, revocation });
    let mut revocations = Revocations::default();
    revocations.merge(list.into());
    let revoked = refused(spiffe(mesh.bundles(), id(REVIEWS)).with_revocations(revocations.into())).await;
    assert!(matches!(revoked, VerifyPeerError::Revoked { .. }), "{revoked:?}");
}

#[tokio::test]
async fn files_that_change_are_served_and_files_that_break_are_not() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), Ca::root("old"), Ca::root("new"));
    let files = web_pki(folder.path(), &old);
    let acceptor = acceptor(files.clone());
    assert!(!acceptor.reload().unwrap(), "nothing changed");
    let fetch = async |root: &Ca| {
        let server = Server::start(acceptor.clone(), "localhost", &[DOCUMENT]).await;
        client(root).fetch(&server.url).await
    };
    fetch(&old).await.unwrap();

    let chain = fs::read(&files.certificate).unwrap();
    web_pki(folder.path(), &new);
    let key = fs::read(&files.key).unwrap();
    // Half of a change: a certificate and a key that do not belong together.
    fs::write(&files.certificate, &chain).unwrap();
    let error = acceptor.reload().unwrap_err();
    assert!(error.to_string().contains("cert.pem") && error.to_string().contains("key.pem"), "{error}");
    fs::write(&files.key, "junk").unwrap();
    assert!(causes(&acceptor.reload().unwrap_err()).contains("key.pem is not a private key in PEM"));
    fs::remove_file(&files.certificate).unwrap();
    assert!(causes(&acceptor.reload().unwrap_err()).contains("cannot read"));
    fetch(&old).await.unwrap();

    web_pki(folder.path(), &new);
    assert_ne!(fs::read(&files.key).unwrap(), key);
    assert!(acceptor.reload().unwrap());
    fetch(&new).await.unwrap();
    assert!(fetch(&old).await.is_err());
}

/// Every client of the web is somebody else's program.
#[tokio::test]
async fn openssl_speaks_to_the_acceptor_and_is_given_nothing_to_resume() {
    let (folder, root) = (tempfile::tempdir().unwrap(), Ca::root("web"));
    let files = web_pki(folder.path(), &root);
    fs::write(folder.path().join("root.pem"), pem_block("CERTIFICATE", &root.der)).unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let server = Server::start(acceptor(files.clone()), "localhost", &[DOCUMENT]).await;
        let address = format!("127.0.0.1:{}", server.url.port());
        let moment = NOW.to_string();
        let mut command = tokio::process::Command::new("openssl");
        command.current_dir(folder.path()).kill_on_drop(true);
        command.args(["s_client", "-connect", &address, "-servername", "localhost", "-verify_hostname", "localhost"]);
        command.args(["-CAfile", "root.pem", "-attime", &moment, "-alpn", "http/1.1", "-msg", version]);
        let pipe = std::process::Stdio::piped;
        let mut client = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let output = client.wait_with_output().await.unwrap();
        drop(stdin);
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        for part in ["Verify return code: 0 (ok)", "ALPN protocol: http/1.1", "HTTP/1.1 200 OK"] {
            assert!(printed.contains(part), "{version}: {part:?} is not in\n{printed}");
        }
        assert!(!printed.contains("NewSessionTicket"), "{version}\n{printed}");
    }
}
