//! What was taken back is not believed: at the handshake, and on connections that are open.

use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::{
    Credentials, Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason, Revocations, RevokedBy,
    RevokedIdentity,
};
use alcazar_mtls::{
    AcceptError, Acceptor, Clients, ConnectError, Connected, Connector, Expected, PeerIdentity, Refusal, Side,
    VerifyPeerError, grpc, until_revoked, verify_peer,
};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::StreamExt;

use crate::common::*;

fn why() -> Revocation {
    Revocation { reason: RevocationReason::KeyCompromise, since: now(), until: now() + 24 * HOUR }
}

fn revocations(fill: impl FnOnce(&mut RevocationList)) -> Arc<Revocations> {
    let mut list = RevocationList::new(td(TD), ListIssuer::Cluster("east".into()), 1);
    fill(&mut list);
    let mut all = Revocations::default();
    all.merge(Arc::new(list));
    Arc::new(all)
}

fn identity(before: std::time::SystemTime) -> RevokedIdentity {
    RevokedIdentity { before, reinstated: false, revocation: why() }
}

fn with(credentials: &Credentials, revocations: Arc<Revocations>) -> Arc<Credentials> {
    Arc::new(credentials.clone().with_revocations(revocations))
}

type Handshake = (Result<Connected<TcpStream>, ConnectError>, Result<PeerIdentity, AcceptError>);

/// A handshake in which the server holds these revocations; the client reads, to hear of its refusal.
async fn handshake(mesh: &Mesh, client: &Connector, held: Arc<Revocations>) -> (Result<(), String>, Handshake) {
    let acceptor =
        Acceptor::new(watch::channel(with(&mesh.credentials(REVIEWS), held)).1, Clients::Required, &[], clock());
    let (ours, theirs) = sockets().await;
    let (connected, accepted) = tokio::join!(
        async {
            let mut connected = client.connect(ours, &Expected::Any).await?;
            let heard = connected.stream.read_u8().await;
            Ok((connected, heard.map(drop).map_err(|error| causes(Refusal::find(&error).unwrap()))))
        },
        async {
            let mut accepted = acceptor.accept(theirs).await?;
            accepted.stream.write_u8(1).await.unwrap();
            Ok(accepted.peer.unwrap())
        }
    );
    match connected {
        Ok((connected, heard)) => (heard, (Ok(connected), accepted)),
        Err(error) => (Ok(()), (Err(error), accepted)),
    }
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_told_so() {
    let mesh = Mesh::new();
    let client = mesh.cluster.leaf(RATINGS).credentials(mesh.bundles());
    let connector = Connector::new(watch::channel(client.clone()).1, &[], clock());
    let issuer = Fingerprint::of(&mesh.cluster.der);
    let serial = client.svid().serial();
    let ratings = client.svid().id().clone();

    let cases: [(Arc<Revocations>, &str); 3] = [
        (revocations(|list| assert!(list.revoke_serial(serial, Some(issuer), why()))), "with the serial number"),
        (revocations(|list| list.revoke_identity(ratings.clone(), identity(now()))), "the identity spiffe://"),
        (revocations(|list| list.revoke_intermediate(issuer, why())), "the intermediate with the SHA-256"),
    ];
    for (held, rule) in cases {
        let (heard, (_, accepted)) = handshake(&mesh, &connector, held).await;
        let Err(AcceptError::Peer { source: VerifyPeerError::Revoked { revoked, .. } }) = &accepted else {
            panic!("{rule}: {accepted:?}");
        };
        assert_eq!(revoked.revocation, why());
        let reason = causes(&accepted.unwrap_err());
        for part in [rule, RATINGS, "since 2027-01-15T08:00:00Z", "keyCompromise"] {
            assert!(reason.contains(part), "{part:?} is not in {reason:?}");
        }
        let heard = heard.unwrap_err();
        assert!(heard.contains("CertificateRevoked"), "{heard}");
    }
}

#[tokio::test]
async fn others_are_not_touched_by_a_revocation() {
    let mesh = Mesh::new();
    let connector = mesh.connector(&[]);
    let other = Mesh::new();
    let somebody = mesh.credentials(REVIEWS);
    let ratings = mesh.credentials(RATINGS).svid().id().clone();
    let harmless = [
        Arc::new(Revocations::default()),
        revocations(|_| ()),
        revocations(|list| {
            list.revoke_identity(somebody.svid().id().clone(), identity(now()));
            list.revoke_intermediate(Fingerprint::of(&other.cluster.der), why());
            assert!(list.revoke_serial("1234", None, why()));
        }),
        // Reinstated: this certificate is good from the very moment.
        revocations(|list| {
            let before = now() - Duration::from_secs(120);
            list.revoke_identity(ratings, RevokedIdentity { reinstated: true, ..identity(before) });
        }),
    ];
    for held in harmless {
        let (heard, (_, accepted)) = handshake(&mesh, &connector, held).await;
        assert_eq!(heard, Ok(()));
        assert_eq!(accepted.unwrap().id().as_str(), RATINGS);
    }
}

#[tokio::test]
async fn a_revoked_server_is_refused_too() {
    let mesh = Mesh::new();
    let reviews = mesh.credentials(REVIEWS);
    let held = revocations(|list| list.revoke_identity(reviews.svid().id().clone(), identity(now())));
    let connector = Connector::new(watch::channel(with(&mesh.credentials(RATINGS), held)).1, &[], clock());
    let (_, (connected, _)) = handshake(&mesh, &connector, Arc::default()).await;
    let Err(ConnectError::Peer { source: VerifyPeerError::Revoked { revoked, .. } }) = connected else {
        panic!("{connected:?}");
    };
    assert_eq!(revoked.rule, RevokedBy::Identity { id: reviews.svid().id().clone(), before: None });
}

#[tokio::test]
async fn another_path_around_a_revoked_intermediate_is_found() {
    // One key with two certificates, as a renewed or cross-signed intermediate has.
    let root = Ca::root("root");
    let key = KeyPair::generate().unwrap();
    let certificate = |serial: u64| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(serial.into());
        dates(&mut params, now() - HOUR, now() + YEAR);
        let der = params.signed_by(&key, &root.issuer).unwrap().der().clone();
        (params, der)
    };
    let ((params, one), (_, two)) = (certificate(1), certificate(2));
    let again = KeyPair::try_from(key.serialize_der().as_slice()).unwrap();
    let holder = Ca { chain: vec![one.clone()], der: one.clone(), issuer: Issuer::new(params, again) }.leaf(RATINGS);
    let held = revocations(|list| list.revoke_intermediate(Fingerprint::of(&one), why()));

    let mesh = Mesh { cluster: root.intermediate(TD), root };
    let connector =
        |holder: &Holder| Connector::new(watch::channel(holder.credentials(mesh.bundles())).1, &[], clock());
    let (_, (_, refused)) = handshake(&mesh, &connector(&holder), Arc::clone(&held)).await;
    assert!(matches!(refused, Err(AcceptError::Peer { source: VerifyPeerError::Revoked { .. } })), "{refused:?}");

    let mut both = holder;
    both.chain.push(two.clone());
    let (_, (_, accepted)) = handshake(&mesh, &connector(&both), held).await;
    assert_eq!(accepted.unwrap().issuer(), Fingerprint::of(&two));
}

#[tokio::test]
async fn whoever_keeps_a_connection_is_told_when_its_peer_is_revoked() {
    let mesh = Mesh::new();
    let holder = mesh.cluster.leaf(RATINGS);
    let peer = verify_peer(&holder.chain, &mesh.bundles(), Side::Client, now()).unwrap();
    let ours = mesh.credentials(REVIEWS);
    let (publish, live) = watch::channel(ours.clone());
    let mut until = std::pin::pin!(until_revoked(peer.clone(), live));
    let mut pending = async || {
        tokio::select! {
            biased;
            revoked = &mut until => Some(revoked),
            () = std::future::ready(()) => None,
        }
    };
    assert_eq!(pending().await, None);
    publish.send(mesh.credentials(REVIEWS)).unwrap();
    assert_eq!(pending().await, None, "a rotation is no revocation");
    publish.send(with(&ours, revocations(|list| assert!(list.revoke_serial("1234", None, why()))))).unwrap();
    assert_eq!(pending().await, None, "another's is none either");
    publish.send(with(&ours, revocations(|list| list.revoke_intermediate(peer.issuer(), why())))).unwrap();
    assert_eq!(pending().await.unwrap().rule, RevokedBy::Intermediate(peer.issuer()));
}

#[tokio::test]
async fn a_grpc_connection_that_is_open_is_cut() {
    let mesh = Mesh::new();
    let ours = mesh.credentials(REVIEWS);
    let (publish, live) = watch::channel(ours.clone());
    let acceptor = Acceptor::new(live, Clients::Required, grpc::ALPN, clock());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = grpc::incoming(listener, acceptor);
    let connecting = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        mesh.connector(grpc::ALPN).connect(tcp, &Expected::Any).await.unwrap()
    };
    let (mut client, accepted) = tokio::join!(connecting, incoming.next());
    let mut server = accepted.unwrap().unwrap();
    client.stream.write_u8(7).await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), 7);

    let ratings = server.info().peer.as_ref().unwrap().id().clone();
    let reading = async {
        tokio::time::timeout(Duration::from_secs(10), server.read_u8()).await.unwrap().unwrap_err().to_string()
    };
    let revoking = async {
        publish.send(with(&ours, revocations(|list| list.revoke_identity(ratings, identity(now()))))).unwrap();
    };
    let (reason, ()) = tokio::join!(reading, revoking);
    assert!(reason.starts_with("the peer is believed no more: the identity"), "{reason}");
    assert!(server.read_u8().await.is_err(), "and stays so");
}
