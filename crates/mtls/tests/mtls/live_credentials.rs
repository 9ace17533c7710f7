//! Credentials that change: the next handshake has the new ones, and what is established stays.

use std::pin::pin;
use std::time::SystemTime;

use alcazar_identity::{TrustBundle, TrustBundles};
use alcazar_mtls::{AcceptError, Accepted, Acceptor, Clients, Connected, Connector, Expected};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::common::*;

async fn handshake(connector: &Connector, acceptor: &Acceptor) -> (Connected<TcpStream>, Accepted<TcpStream>) {
    let (client, server) = sockets().await;
    let (connected, accepted) = tokio::join!(connector.connect(client, &Expected::Any), acceptor.accept(server));
    (connected.unwrap(), accepted.unwrap())
}

async fn assert_alive((client, server): &mut (Connected<TcpStream>, Accepted<TcpStream>)) {
    let mut heard = [0; 5];
    client.stream.write_all(b"hello").await.unwrap();
    server.stream.read_exact(&mut heard).await.unwrap();
    server.stream.write_all(&heard).await.unwrap();
    client.stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn a_rotation_drops_no_connection_and_the_next_handshake_has_it() {
    let mesh = Mesh::new();
    let (server_credentials, server_live) = watch::channel(mesh.credentials(REVIEWS));
    let (client_credentials, client_live) = watch::channel(mesh.credentials(RATINGS));
    let acceptor = Acceptor::new(server_live, Clients::Required, &[], clock());
    let connector = Connector::new(client_live, &[], clock());

    let mut connections = Vec::new();
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let (connected, accepted) = handshake(&connector, &acceptor).await;
        serials.insert(connected.peer.serial().to_owned());
        serials.insert(accepted.peer.as_ref().unwrap().serial().to_owned());
        connections.push((connected, accepted));
        server_credentials.send(mesh.credentials(REVIEWS)).unwrap();
        client_credentials.send(mesh.credentials(RATINGS)).unwrap();
    }
    assert_eq!(serials.len(), 10, "each handshake has the certificates of its moment");
    for connection in &mut connections {
        assert_alive(connection).await;
    }
    // The last credentials serve on when nobody is left to renew them.
    drop((server_credentials, client_credentials));
    assert_alive(&mut handshake(&connector, &acceptor).await).await;
}

#[tokio::test]
async fn the_root_is_replaced_in_the_order_that_breaks_nothing() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let both: TrustBundles = TrustBundle::new(td(TD), 2, [old.root.der.clone(), new.root.der.clone()]).unwrap().into();
    let (server_credentials, server_live) = watch::channel(old.credentials(REVIEWS));
    let (client_credentials, client_live) = watch::channel(old.credentials(RATINGS));
    let acceptor = Acceptor::new(server_live, Clients::Required, &[], clock());
    let connector = Connector::new(client_live, &[], clock());
    let mut first = handshake(&connector, &acceptor).await;

    let server = |mesh: &Mesh, bundles: &TrustBundles| {
        server_credentials.send(mesh.cluster.leaf(REVIEWS).credentials(bundles.clone())).unwrap();
    };
    let client = |mesh: &Mesh, bundles: &TrustBundles| {
        client_credentials.send(mesh.cluster.leaf(RATINGS).credentials(bundles.clone())).unwrap();
    };
    let steps: [&dyn Fn(); 6] = [
        &|| server(&old, &both),
        &|| client(&old, &both),
        &|| client(&new, &both),
        &|| server(&new, &both),
        &|| server(&new, &new.bundles()),
        &|| client(&new, &new.bundles()),
    ];
    for step in steps {
        step();
        assert_alive(&mut handshake(&connector, &acceptor).await).await;
    }
    assert_alive(&mut first).await;

    // Out of order, it is refused, and the reason names both roots.
    client(&old, &both);
    let (client, server) = sockets().await;
    let (_, accepted) = tokio::join!(connector.connect(client, &Expected::Any), acceptor.accept(server));
    let reason = causes(&accepted.unwrap_err());
    assert!(reason.contains(&alcazar_identity::Fingerprint::of(&new.root.der).to_string()), "{reason}");
}

#[tokio::test]
async fn a_handshake_sees_one_snapshot_from_its_first_byte_to_its_last() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let (credentials, live) = watch::channel(old.credentials(REVIEWS));
    let acceptor = Acceptor::new(live, Clients::Required, &[], clock());
    let connector = old.connector(&[]);

    let (client, server) = sockets().await;
    let mut accepting = pin!(acceptor.accept(server));
    tokio::select! {
        biased;
        _ = &mut accepting => panic!("the client has not said a word"),
        () = std::future::ready(()) => {}
    }
    // Certificate and roots change under a handshake that has begun.
    credentials.send(new.credentials(REVIEWS)).unwrap();
    let (connected, accepted) = tokio::join!(connector.connect(client, &Expected::Any), accepting);
    assert_eq!(accepted.unwrap().peer.unwrap().id().as_str(), RATINGS);
    assert!(connected.is_ok());

    let (client, server) = sockets().await;
    let (connected, accepted) = tokio::join!(connector.connect(client, &Expected::Any), acceptor.accept(server));
    assert!(connected.is_err() && accepted.is_err());
}

#[tokio::test]
async fn a_certificate_is_judged_by_the_clock_of_the_handshake() {
    let mesh = Mesh::new();
    let clock = TestClock::new();
    let acceptor = Acceptor::new(mesh.live(REVIEWS), Clients::Required, &[], clock.clock());
    let connector = mesh.connector(&[]);
    let accept = async || {
        let (client, server) = sockets().await;
        let (_, accepted) = tokio::join!(
            async {
                let mut stream = connector.connect(client, &Expected::Any).await.unwrap().stream;
                drop(stream.read(&mut [0; 1]).await);
            },
            async { acceptor.accept(server).await.map(|accepted| accepted.peer) }
        );
        accepted
    };
    assert!(accept().await.is_ok());
    clock.forward(2 * HOUR);
    let refused = accept().await.unwrap_err();
    assert!(matches!(refused, AcceptError::Peer { .. }));
    let later: SystemTime = now() + 2 * HOUR;
    assert!(causes(&refused).contains(&alcazar_identity::rfc3339(later)), "{}", causes(&refused));
}
