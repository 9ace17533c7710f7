//! gRPC over mutual TLS: handlers know their peer, clients reconnect, and nobody holds the others up.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use alcazar_identity::{
    Credentials, Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason, Revocations, RevokedIdentity,
};
use alcazar_mtls::grpc::{self, PeerInfo};
use alcazar_mtls::{Acceptor, Clients, Connector, Expected, Refusal, VerifyPeerError};
use bytes::Buf;
use http::uri::PathAndQuery;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::*;

/// Answers each call with the caller's identity and serial, as a status: enough of a service for a test.
#[derive(Clone)]
struct WhoAmI;

impl tonic::server::NamedService for WhoAmI {
    const NAME: &'static str = "test.WhoAmI";
}

impl tower::Service<http::Request<Body>> for WhoAmI {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let info = request.extensions().get::<PeerInfo>().unwrap();
        let who = info.peer.as_ref().map_or("anonymous".to_owned(), |peer| format!("{peer} {}", peer.serial()));
        assert!(info.remote_addr.ip().is_loopback());
        assert_eq!(request.uri().scheme_str(), Some("https"));
        ready(Ok(Status::aborted(who).into_http()))
    }
}

/// Messages without content.
#[derive(Default)]
struct Nothing;

impl Codec for Nothing {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Nothing {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Nothing {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        bytes.advance(bytes.remaining());
        Ok(Some(()))
    }
}

async fn who_am_i(channel: &Channel) -> Result<String, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/test.WhoAmI/Call");
    match client.unary(tonic::Request::new(()), path, Nothing).await {
        Err(status) if status.code() == Code::Aborted => Ok(status.message().to_owned()),
        Err(status) => Err(status),
        Ok(_) => panic!("the service answers with a status"),
    }
}

/// Calls until the answer is the one that is waited for.
async fn until(channel: &Channel, good: impl Fn(&Result<String, Status>) -> bool) -> Result<String, Status> {
    let calling = async {
        loop {
            let answer = who_am_i(channel).await;
            if good(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), calling).await.expect("the answer comes within ten seconds")
}

/// A server that ends, its connections by GOAWAY, when it is stopped.
struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

impl Server {
    async fn start(acceptor: Acceptor, address: &str) -> Self {
        Self::start_within(acceptor, address, grpc::Bounds::default()).await
    }

    async fn start_within(acceptor: Acceptor, address: &str, bounds: grpc::Bounds) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = grpc::server().add_service(WhoAmI);
            let stopped = async { drop(stopped.await) };
            let incoming = grpc::incoming_within(listener, acceptor, bounds);
            server.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        });
        Self { address, stop, tasks }
    }

    async fn stop(mut self) {
        self.stop.send(()).unwrap();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

fn who(credentials: &Credentials) -> String {
    format!("{} {}", credentials.svid().id(), credentials.svid().serial())
}

#[tokio::test]
async fn a_handler_knows_its_peer() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.acceptor(Clients::Optional, grpc::ALPN), "127.0.0.1:0").await;
    let live = mesh.live(RATINGS);
    let known = who(&live.borrow().clone());
    let connector = Connector::new(live, grpc::ALPN, clock());
    let channel = grpc::channel(server.address, connector, Expected::id(REVIEWS.parse().unwrap()));
    for _ in 0..3 {
        assert_eq!(who_am_i(&channel).await.unwrap(), known);
    }
    let pin = Fingerprint::of(&mesh.root.der);
    let anonymous = Connector::pinned(td(TD), pin, grpc::ALPN, clock());
    let target: grpc::Target = format!("localhost:{}", server.address.port()).parse().unwrap();
    let channel = grpc::channel(target, anonymous, Expected::TrustDomain(td(TD)));
    assert_eq!(who_am_i(&channel).await.unwrap(), "anonymous");
}

#[tokio::test]
async fn silence_holds_nobody_up_for_long() {
    let mesh = Mesh::new();
    let bounds = grpc::Bounds { handshakes: 2, grace: Duration::from_millis(50), connections: 8, strangers: 0 };
    let server = Server::start_within(mesh.acceptor(Clients::Optional, grpc::ALPN), "127.0.0.1:0", bounds).await;
    // As many as there are places, and then some.
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(tokio::net::TcpStream::connect(server.address).await.unwrap());
    }
    let live = mesh.live(RATINGS);
    let known = who(&live.borrow().clone());
    let channel = grpc::channel(
        server.address,
        Connector::new(live, grpc::ALPN, clock()),
        Expected::id(REVIEWS.parse().unwrap()),
    );
    let start = tokio::time::Instant::now();
    assert_eq!(who_am_i(&channel).await.unwrap(), known);
    // A handshake that is alone has ten seconds: so long nobody waited.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

    // Who has no certificate finds no place here, and takes none from those who have one.
    let pin = Fingerprint::of(&mesh.root.der);
    let anonymous = Connector::pinned(td(TD), pin, grpc::ALPN, clock());
    let stranger = grpc::channel(server.address, anonymous, Expected::TrustDomain(td(TD)));
    assert!(who_am_i(&stranger).await.is_err());
    assert_eq!(who_am_i(&channel).await.unwrap(), known);
}

#[tokio::test]
async fn silence_of_one_address_holds_up_no_other() {
    let mesh = Mesh::new();
    // Nobody gets a place by waiting.
    let bounds = grpc::Bounds { handshakes: 4, grace: Duration::from_secs(3600), ..grpc::Bounds::default() };
    let server = Server::start_within(mesh.acceptor(Clients::Optional, grpc::ALPN), "127.0.0.1:0", bounds).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(server.address).await.unwrap());
    }
    let connector = Connector::new(mesh.live(RATINGS), grpc::ALPN, clock());
    let channel = grpc::channel(server.address, connector, Expected::id(REVIEWS.parse().unwrap()));
    let start = tokio::time::Instant::now();
    who_am_i(&channel).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_has_many_connections_shuts_nobody_out() {
    let mesh = Mesh::new();
    let bounds = grpc::Bounds { connections: 3, strangers: 2, ..grpc::Bounds::default() };
    let server = Server::start_within(mesh.acceptor(Clients::Optional, grpc::ALPN), "127.0.0.1:0", bounds).await;
    let channel = |id: &str| {
        let connector = Connector::new(mesh.live(id), grpc::ALPN, clock());
        grpc::channel(server.address, connector, Expected::id(REVIEWS.parse().unwrap()))
    };
    // One identity takes all there is; another comes in all the same, and stays.
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(channel(RATINGS));
        who_am_i(greedy.last().unwrap()).await.unwrap();
    }
    let modest = channel(REVIEWS);
    let known = who_am_i(&modest).await.unwrap();
    assert!(known.contains(REVIEWS), "{known}");
    // However often the greedy one comes again, it is its own that go.
    for _ in 0..4 {
        greedy.push(channel(RATINGS));
        who_am_i(greedy.last().unwrap()).await.unwrap();
    }
    assert_eq!(who_am_i(&modest).await.unwrap(), known);

    // Strangers of one address likewise: the newest is let in, and the oldest of them ends.
    let anonymous = || {
        let connector = Connector::pinned(td(TD), Fingerprint::of(&mesh.root.der), grpc::ALPN, clock());
        grpc::channel(server.address, connector, Expected::TrustDomain(td(TD)))
    };
    let mut strangers = Vec::new();
    for _ in 0..4 {
        strangers.push(anonymous());
        assert_eq!(who_am_i(strangers.last().unwrap()).await.unwrap(), "anonymous");
    }
}

#[tokio::test]
async fn a_lost_connection_comes_back_with_the_credentials_of_the_moment() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), "127.0.0.1:0").await;
    let (first, second) = (mesh.credentials(RATINGS), mesh.credentials(RATINGS));
    let (credentials, live) = watch::channel(first.clone());
    let channel = grpc::channel(server.address, Connector::new(live, grpc::ALPN, clock()), Expected::Any);
    assert_eq!(who_am_i(&channel).await.unwrap(), who(&first));
    credentials.send(second.clone()).unwrap();
    assert_eq!(who_am_i(&channel).await.unwrap(), who(&first), "a rotation drops no connection");

    let address = server.address.to_string();
    server.stop().await;
    until(&channel, Result::is_err).await.unwrap_err();
    let server = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), &address).await;
    assert_eq!(until(&channel, Result::is_ok).await.unwrap(), who(&second));
    server.stop().await;
}

#[tokio::test]
async fn a_channel_goes_to_another_of_its_servers_when_one_ends() {
    let mesh = Mesh::new();
    let one = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), "127.0.0.1:0").await;
    let two = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), "127.0.0.1:0").await;
    let target: grpc::Target = format!("{},{}", one.address, two.address).parse().unwrap();
    let ours = mesh.credentials(RATINGS);
    let connector = Connector::new(watch::channel(ours.clone()).1, grpc::ALPN, clock());
    let channel = grpc::channel(target.clone(), connector.clone(), Expected::Any);
    assert_eq!(who_am_i(&channel).await.unwrap(), who(&ours));
    let address = one.address.to_string();
    one.stop().await;
    assert_eq!(until(&channel, Result::is_ok).await.unwrap(), who(&ours));
    // It stays where it was answered, and so does whoever shares the target.
    let one = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), &address).await;
    two.stop().await;
    assert_eq!(until(&channel, Result::is_ok).await.unwrap(), who(&ours));
    one.stop().await;
    let nobody = grpc::channel(target, connector, Expected::Any);
    assert!(who_am_i(&nobody).await.is_err());
}

#[tokio::test]
async fn a_channel_leaves_a_server_that_is_revoked() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), "127.0.0.1:0").await;
    let ours = mesh.credentials(RATINGS);
    let (publish, live) = watch::channel(ours.clone());
    let channel = grpc::channel(server.address, Connector::new(live, grpc::ALPN, clock()), Expected::Any);
    assert_eq!(who_am_i(&channel).await.unwrap(), who(&ours));

    let revocation = Revocation { reason: RevocationReason::KeyCompromise, since: now(), until: now() + HOUR };
    let mut list = RevocationList::new(td(TD), ListIssuer::Cluster("east".into()), 1);
    let identity = RevokedIdentity { before: now(), reinstated: false, revocation };
    list.revoke_identity(REVIEWS.parse().unwrap(), identity);
    let mut revocations = Revocations::default();
    revocations.merge(std::sync::Arc::new(list));
    publish.send(std::sync::Arc::new((*ours).clone().with_revocations(revocations.into()))).unwrap();
    let refused = |answer: &Result<String, Status>| {
        answer
            .as_ref()
            .is_err_and(|status| matches!(VerifyPeerError::find(status), Some(VerifyPeerError::Revoked { .. })))
    };
    until(&channel, refused).await.unwrap_err();
}

#[tokio::test]
async fn a_call_to_somebody_else_fails_with_the_reason() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), "127.0.0.1:0").await;
    let channel = grpc::channel(server.address, mesh.connector(grpc::ALPN), Expected::id(RATINGS.parse().unwrap()));
    for _ in 0..2 {
        let status = who_am_i(&channel).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(matches!(VerifyPeerError::find(&status), Some(VerifyPeerError::Unexpected { .. })), "{status:?}");
    }
}

#[tokio::test]
async fn a_client_that_the_server_refuses_learns_why() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.acceptor(Clients::Required, grpc::ALPN), "127.0.0.1:0").await;
    let stranger = Ca::root("other").leaf("spiffe://other.example/ns/a/sa/b").credentials(mesh.bundles());
    let connector = Connector::new(watch::channel(stranger).1, grpc::ALPN, clock());
    let channel = grpc::channel(server.address, connector, Expected::Any);
    let status = who_am_i(&channel).await.unwrap_err();
    assert!(causes(&status).contains("does not trust our trust domain"), "{}", causes(&status));
    assert!(Refusal::find(&status).is_some(), "{status:?}");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_server_that_waits_to_be_spoken_to_is_spoken_to() {
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Required, grpc::ALPN);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(tcp).await.unwrap().stream;
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        preface
    });
    let channel = grpc::channel(address, mesh.connector(grpc::ALPN), Expected::Any);
    who_am_i(&channel).await.unwrap_err();
    assert_eq!(&server.join_next().await.unwrap().unwrap(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

#[tokio::test]
async fn silent_and_plaintext_clients_hold_nobody_up() {
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Required, grpc::ALPN).with_deadline(Duration::from_millis(200));
    let server = Server::start(acceptor, "127.0.0.1:0").await;
    // More than there is room for at once: the last ones wait until the first are given up.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut plaintext = TcpStream::connect(server.address).await.unwrap();
    plaintext.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let channel = grpc::channel(server.address, mesh.connector(grpc::ALPN), Expected::Any);
    assert!(until(&channel, Result::is_ok).await.unwrap().starts_with(RATINGS));
    // What is left of a refused connection is an alert and its end.
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), plaintext.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest.first(), Some(&21), "a TLS alert record, not {rest:?}");
}

#[tokio::test]
async fn a_connection_ends_when_the_certificate_that_opened_it_does() {
    let mesh = Mesh::new();
    let clock = TestClock::new();
    let acceptor = Acceptor::new(mesh.live(REVIEWS), Clients::Required, grpc::ALPN, clock.clock());
    let server = Server::start(acceptor, "127.0.0.1:0").await;
    let short = |seconds| {
        let end = now() + Duration::from_secs(seconds);
        mesh.cluster.leaf_with(&[RATINGS], |params| dates(params, now() - HOUR, end)).credentials(mesh.bundles())
    };
    let (brief, renewed) = (short(1), short(600));
    let (credentials, live) = watch::channel(brief.clone());
    let channel = grpc::channel(server.address, Connector::new(live, grpc::ALPN, clock.clock()), Expected::Any);
    assert_eq!(who_am_i(&channel).await.unwrap(), who(&brief));

    credentials.send(renewed.clone()).unwrap();
    clock.forward(Duration::from_secs(300));
    let answer = until(&channel, |answer| answer.as_ref().is_ok_and(|answer| *answer != who(&brief))).await;
    assert_eq!(answer.unwrap(), who(&renewed));
}
