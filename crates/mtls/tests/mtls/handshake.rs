//! Handshakes over real sockets: who gets in, who does not, and what each side is told.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::{SpiffeId, TrustBundles};
use alcazar_mtls::{
    AcceptError, Accepted, Acceptor, Clients, ConnectError, Connected, Connector, Expected, Refusal, TlsStream,
    VerifyPeerError,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::common::strangers::{careless_anonymous_client, careless_client, careless_server, strangers};
use crate::common::*;

type Both = (Result<Connected<TcpStream>, ConnectError>, Result<Accepted<TcpStream>, AcceptError>);

async fn handshake(connector: &Connector, expected: &Expected, acceptor: &Acceptor) -> Both {
    let (client, server) = sockets().await;
    tokio::join!(connector.connect(client, expected), acceptor.accept(server))
}

/// What a client reads from a server that refused it.
async fn refusal(stream: &mut TlsStream<TcpStream>) -> String {
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    error.get_ref().unwrap().downcast_ref::<Refusal>().unwrap().to_string()
}

#[tokio::test]
async fn both_sides_know_each_other_and_can_talk() {
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Required, &[b"alcazar/1", b"h2"]);
    let connector = mesh.connector(&[b"h2"]);
    let (connected, accepted) = handshake(&connector, &Expected::Any, &acceptor).await;
    let (mut connected, mut accepted) = (connected.unwrap(), accepted.unwrap());

    assert_eq!(connected.peer.id().as_str(), REVIEWS);
    assert_eq!(accepted.peer.unwrap().id().as_str(), RATINGS);
    assert_eq!((connected.alpn.as_deref(), accepted.alpn.as_deref()), (Some(&b"h2"[..]), Some(&b"h2"[..])));
    assert_eq!(accepted.server_name, None, "no name is told to whoever listens on the wire");

    connected.stream.write_all(b"ping").await.unwrap();
    connected.stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    accepted.stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"ping");
}

#[tokio::test]
async fn the_key_exchange_is_hybrid_where_it_is_built_in() {
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Required, &[]);
    let (connected, accepted) = handshake(&mesh.connector(&[]), &Expected::Any, &acceptor).await;
    let group = if cfg!(feature = "pq") { "X25519MLKEM768" } else { "X25519" };
    assert_eq!(connected.unwrap().stream.key_exchange().as_deref(), Some(group));
    assert_eq!(accepted.unwrap().stream.key_exchange().as_deref(), Some(group));
}

#[tokio::test]
async fn no_stranger_gets_in_as_a_client() {
    let mesh = Mesh::new();
    for clients in [Clients::Required, Clients::Optional] {
        let acceptor = mesh.acceptor(clients, &[]);
        for stranger in strangers(&mesh) {
            let (client, server) = sockets().await;
            let connector = TlsConnector::from(careless_client(&stranger.holder));
            let name = ServerName::try_from("nobody.invalid").unwrap();
            let (client, accepted) = tokio::join!(
                async {
                    // The first request goes out with the certificate, before the verdict.
                    let mut stream = connector.connect(name, client).await?;
                    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
                    stream.read(&mut [0; 1]).await
                },
                acceptor.accept(server)
            );
            let refused = accepted.expect_err(stranger.rule);
            assert!(matches!(refused, AcceptError::Peer { .. }), "{}: {refused:?}", stranger.rule);
            assert!(VerifyPeerError::find(&refused).is_some());
            let reason = causes(&refused);
            for part in &stranger.reason {
                assert!(reason.contains(part), "{}: {part:?} is not in {reason:?}", stranger.rule);
            }
            let told = client.unwrap_err();
            let told = told.get_ref().and_then(|error| error.downcast_ref());
            assert!(matches!(told, Some(rustls::Error::AlertReceived(_))), "{}: {told:?}", stranger.rule);
        }
    }
}

#[tokio::test]
async fn no_stranger_gets_a_byte_as_a_server() {
    let mesh = Mesh::new();
    let connector = mesh.connector(&[]);
    for stranger in strangers(&mesh) {
        let (client, server) = sockets().await;
        let acceptor = TlsAcceptor::from(careless_server(&stranger.holder));
        let (connected, accepted) =
            tokio::join!(connector.connect(client, &Expected::Any), async { acceptor.accept(server).await });
        let refused = connected.map(|_| ()).expect_err(stranger.rule);
        let reason = causes(&refused);
        for part in &stranger.reason {
            assert!(reason.contains(part), "{}: {part:?} is not in {reason:?}", stranger.rule);
        }
        assert!(matches!(refused, ConnectError::Peer { .. }), "{}", stranger.rule);
        assert!(accepted.is_err(), "{}", stranger.rule);
    }
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_refused_and_told() {
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Required, &[]);
    let connector = mesh.connector(&[]);
    let ids = |ids: &[&str]| Expected::Ids(Arc::new(ids.iter().map(|id| id.parse().unwrap()).collect()));
    let nobody = Expected::Ids(Arc::new(BTreeSet::<SpiffeId>::new()));
    for wrong in [ids(&[RATINGS]), nobody, Expected::TrustDomain(td("partner.example"))] {
        let (connected, accepted) = handshake(&connector, &wrong, &acceptor).await;
        let reason = causes(&connected.unwrap_err());
        assert_eq!(reason, format!("the server was refused: the peer is {REVIEWS}, and we expected {wrong}"));
        let AcceptError::Refused { source } = accepted.unwrap_err() else { panic!("the server was not told") };
        assert!(source.to_string().contains("AccessDenied"), "{source}");
        assert!(source.to_string().contains(&format!("we are {REVIEWS}")), "{source}");
    }
    for right in [ids(&[RATINGS, REVIEWS]), Expected::TrustDomain(td(TD)), Expected::Any] {
        let (connected, accepted) = handshake(&connector, &right, &acceptor).await;
        assert!(connected.is_ok() && accepted.is_ok(), "{right}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_anonymous_or_refused() {
    let mesh = Mesh::new();
    let pin = alcazar_identity::Fingerprint::of(&mesh.root.der);
    let anonymous = Connector::pinned(td(TD), pin, &[], clock());

    let (connected, accepted) = handshake(&anonymous, &Expected::Any, &mesh.acceptor(Clients::Optional, &[])).await;
    assert_eq!(connected.unwrap().peer.id().as_str(), REVIEWS);
    assert!(accepted.unwrap().peer.is_none());

    // A server that requires certificates presents no root: this client has nothing to believe it by.
    let (connected, _) = handshake(&anonymous, &Expected::Any, &mesh.acceptor(Clients::Required, &[])).await;
    let reason = causes(&connected.unwrap_err());
    assert!(reason.contains("did not present the pinned root"), "{reason}");

    // One that believes anybody and shows nothing learns that it has to.
    let (client, server) = sockets().await;
    let acceptor = mesh.acceptor(Clients::Required, &[]);
    let connector = TlsConnector::from(careless_anonymous_client());
    let name = ServerName::try_from("nobody.invalid").unwrap();
    let (client, accepted) =
        tokio::join!(async { connector.connect(name, client).await?.read(&mut [0; 1]).await }, acceptor.accept(server));
    let refused = accepted.unwrap_err();
    assert!(matches!(VerifyPeerError::find(&refused), Some(VerifyPeerError::NoCertificate)), "{refused:?}");
    let told = client.unwrap_err();
    assert!(told.to_string().contains("CertificateRequired"), "{told}");
}

#[tokio::test]
async fn a_refused_client_is_told_what_to_look_at() {
    let mesh = Mesh::new();
    let told = async |holder: &Holder, bundles: TrustBundles, clients_clock: TestClock| {
        let credentials = tokio::sync::watch::channel(holder.credentials(bundles)).1;
        let connector = Connector::new(credentials, &[], clients_clock.clock());
        let acceptor = mesh.acceptor(Clients::Required, &[]);
        let (client, server) = sockets().await;
        let (connected, accepted) = tokio::join!(connector.connect(client, &Expected::Any), acceptor.accept(server));
        assert!(matches!(accepted, Err(AcceptError::Peer { .. })));
        refusal(&mut connected.unwrap().stream).await
    };

    // Our clock is an hour slow, and the certificate is over.
    let expired = mesh.cluster.leaf_with(&[RATINGS], |params| dates(params, now() - 2 * HOUR, now() - HOUR));
    let text = told(&expired, mesh.bundles(), TestClock::new()).await;
    for part in ["CertificateExpired", "compare the clocks", RATINGS, "2027-01-15T07:00:00Z", "2027-01-15T08:00:00Z"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let foreign = Ca::root("other").leaf("spiffe://other.example/ns/a/sa/b");
    let text = told(&foreign, mesh.bundles(), TestClock::new()).await;
    assert!(text.contains("UnknownCA") && text.contains("does not trust our trust domain"), "{text}");
}

#[tokio::test]
async fn a_pin_is_for_one_root_and_one_trust_domain() {
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Optional, &[]);
    let pin = alcazar_identity::Fingerprint::of(&mesh.root.der);
    let connect = async |trust_domain: &str, pin, expected: Expected| {
        let connector = Connector::pinned(td(trust_domain), pin, &[], clock());
        let connected = handshake(&connector, &expected, &acceptor).await.0;
        connected.map(|connected| connected.peer.to_string()).map_err(|error| causes(&error))
    };
    assert_eq!(connect(TD, pin, Expected::Any).await, Ok(REVIEWS.to_owned()));
    let other = alcazar_identity::Fingerprint::of(b"another root");
    let reason = connect(TD, other, Expected::Any).await.unwrap_err();
    assert!(reason.contains(&other.to_string()) && reason.contains(&pin.to_string()), "{reason}");
    let reason = connect("other.example", pin, Expected::Any).await.unwrap_err();
    assert!(reason.contains("we trust other.example"), "{reason}");
    let reason = connect(TD, pin, Expected::id(RATINGS.parse().unwrap())).await.unwrap_err();
    assert!(reason.contains("we expected"), "{reason}");
    // The leaf is no root, though its fingerprint is known.
    let leaf = mesh.cluster.leaf(REVIEWS);
    let live = tokio::sync::watch::channel(leaf.credentials(mesh.bundles())).1;
    let acceptor = Acceptor::new(live, Clients::Optional, &[], clock());
    let connector = Connector::pinned(td(TD), alcazar_identity::Fingerprint::of(&leaf.chain[0]), &[], clock());
    assert!(handshake(&connector, &Expected::Any, &acceptor).await.0.is_err());
    // Nor can an impostor make a root of ours by presenting it beside a chain of its own.
    let impostor = Ca::root("root");
    let mut holder = impostor.leaf(REVIEWS);
    holder.chain.push(mesh.root.der.clone());
    let (client, server) = sockets().await;
    let careless = TlsAcceptor::from(careless_server(&holder));
    let connector = Connector::pinned(td(TD), pin, &[], clock());
    let (connected, _) =
        tokio::join!(connector.connect(client, &Expected::Any), async { careless.accept(server).await });
    let reason = causes(&connected.unwrap_err());
    assert!(reason.contains("not by the key of the issuer"), "{reason}");
}

#[tokio::test]
async fn protocols_in_common_are_agreed_on_or_the_client_is_refused() {
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Required, &[b"h2"]);
    let (connected, accepted) = handshake(&mesh.connector(&[b"alcazar/1"]), &Expected::Any, &acceptor).await;
    let ConnectError::Refused { source } = connected.unwrap_err() else { panic!("not refused") };
    assert!(source.meaning().contains("ALPN"), "{source}");
    assert!(matches!(accepted, Err(AcceptError::Tls { .. })));
    let (connected, accepted) = handshake(&mesh.connector(&[]), &Expected::Any, &acceptor).await;
    assert_eq!((connected.unwrap().alpn, accepted.unwrap().alpn), (None, None));
}

#[tokio::test]
async fn plaintext_is_named_as_such_on_either_side() {
    let mesh = Mesh::new();
    let (mut client, server) = sockets().await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await.unwrap();
    let error = mesh.acceptor(Clients::Required, &[]).accept(server).await.unwrap_err();
    assert!(matches!(error, AcceptError::NotTls { .. }), "{error:?}");

    let (client, mut server) = sockets().await;
    server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error = mesh.connector(&[]).connect(client, &Expected::Any).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotTls { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_hangs_or_hangs_up_is_given_up() {
    let mesh = Mesh::new();
    let short = Duration::from_millis(50);
    let (client, server) = sockets().await;
    let error = mesh.acceptor(Clients::Required, &[]).with_deadline(short).accept(server).await.unwrap_err();
    assert!(matches!(error, AcceptError::Deadline { deadline } if deadline == short), "{error:?}");
    drop(client);

    let (client, server) = sockets().await;
    let error = mesh.connector(&[]).with_deadline(short).connect(client, &Expected::Any).await.unwrap_err();
    assert!(matches!(error, ConnectError::Deadline { .. }), "{error:?}");
    drop(server);

    let (client, server) = sockets().await;
    drop(client);
    let error = mesh.acceptor(Clients::Required, &[]).accept(server).await.unwrap_err();
    assert!(matches!(error, AcceptError::Io { .. }), "{error:?}");
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let mesh = Mesh::new();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = rustls::RootCertStore::empty();
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (client, server) = sockets().await;
    let name = ServerName::try_from("nobody.invalid").unwrap();
    let acceptor = mesh.acceptor(Clients::Optional, &[]);
    let (client, accepted) =
        tokio::join!(TlsConnector::from(Arc::new(old)).connect(name, client), acceptor.accept(server));
    assert!(client.is_err());
    assert!(matches!(accepted, Err(AcceptError::Tls { .. })), "{accepted:?}");
}
