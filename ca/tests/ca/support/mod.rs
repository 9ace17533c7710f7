//! What the CA's tests share: keys, requests, a CA with a clock that the test moves, and clients.
#![allow(unreachable_pub, reason = "the tests' own")]

pub mod store;
pub mod workshop;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient,
};
use alcazar_ca::{Ca, Config, JoinToken, Registration};
use alcazar_identity::{CertificateDer, Credentials, SpiffeId, SvidKey, TrustBundles, X509Svid};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::{Health, Readiness, Shutdown, clock::Clock};
use rcgen::{CertificateParams, KeyPair};
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::Channel;

/// A moment in 2027, far from every edge.
pub const START: u64 = 1_800_000_000;

/// A clock that stands still until it is moved.
#[derive(Clone)]
pub struct Hands(Arc<AtomicU64>);

impl Hands {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(START)))
    }

    /// Standing at this moment.
    pub fn at(moment: SystemTime) -> Self {
        let seconds = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        Self(Arc::new(AtomicU64::new(seconds)))
    }

    pub fn clock(&self) -> Clock {
        let hands = self.clone();
        Arc::new(move || hands.now())
    }

    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    /// Set back, as by a person.
    pub fn back(&self, by: Duration) {
        self.0.fetch_sub(by.as_secs(), Ordering::SeqCst);
    }

    pub fn set(&self, moment: SystemTime) {
        let seconds = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        self.0.store(seconds, Ordering::SeqCst);
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

pub fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// An honest request for this key.
pub fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub fn csr_pem(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

pub fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub fn node(name: &str) -> SpiffeId {
    id(&format!("spiffe://cluster.local/node/local/{name}"))
}

pub fn web() -> SpiffeId {
    id("spiffe://cluster.local/ns/shop/sa/web")
}

pub fn registration(name: &str, of: &SpiffeId, identity: &SpiffeId) -> Registration {
    let selector = format!("socket:{name}").parse().unwrap();
    Registration::new(name.parse().unwrap(), of.clone(), identity.clone(), [selector], None).unwrap()
}

/// What a CA does by itself may take it a second or two, and a machine may be busy.
const SOON: Duration = Duration::from_secs(60);

/// Asks until it is answered well: of what a CA does by itself it tells nobody.
pub async fn soon<T, E: std::fmt::Display>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    let start = tokio::time::Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(why) => assert!(start.elapsed() < SOON, "{what}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Looks until it is so.
pub async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    soon(what, async || if so().await { Ok(()) } else { Err("never") }).await;
}

/// Whether a part does its work, and nobody needs to look.
pub fn ready(health: &Health) -> bool {
    *health == Health::Ready
}

/// A CA that serves on the loopback.
pub struct Served {
    pub ca: Ca,
    pub address: SocketAddr,
    pub hands: Hands,
    pub readiness: Readiness,
    shutdown: Shutdown,
    outer: Shutdown,
}

impl Served {
    pub async fn start(folder: &Path, hands: &Hands) -> Self {
        Self::start_with(Config::new(folder), hands).await
    }

    pub async fn start_with(config: Config, hands: &Hands) -> Self {
        alcazar_mtls::install_default_provider();
        Self::serve(Ca::open(config, hands.clock()).await.unwrap(), hands).await
    }

    pub async fn serve(ca: Ca, hands: &Hands) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (outer, readiness) = (Shutdown::new(), Readiness::new());
        let shutdown = outer.child();
        let running = ca.run(listener, shutdown.clone(), readiness.clone());
        outer.spawn("the CA of a test", async move { running.await.unwrap() });
        readiness.wait().await;
        Self { ca, address, hands: hands.clone(), readiness, shutdown, outer }
    }

    /// Ends it; its files are free when this returns.
    pub async fn stop(self) {
        self.shutdown.trigger("the test is over");
        self.shutdown.finished(Duration::from_secs(20)).await.unwrap();
        self.outer.trigger("the test is over");
        self.outer.finished(Duration::from_secs(20)).await.unwrap();
    }

    /// How a part of it is, once that is as wanted.
    pub async fn part_is(&self, part: &str, wanted: impl Fn(&Health) -> bool) {
        let look = async || {
            let health = self.readiness.parts().into_iter().find(|(name, _)| name == part).map(|(_, health)| health);
            if health.as_ref().is_some_and(&wanted) { Ok(()) } else { Err(format!("{health:?}")) }
        };
        soon(part, look).await;
    }

    pub async fn token(&self, node: &SpiffeId) -> String {
        let (token, _) = self.ca.create_join_token(node, None).await.unwrap();
        token.reveal().to_string()
    }

    pub fn expected(&self) -> Expected {
        Expected::id(self.ca.id())
    }

    /// A channel that knows the CA by a token's pin alone.
    pub fn pinned(&self, token: &str) -> Channel {
        let pin = token.parse::<JoinToken>().unwrap().pin();
        let connector = Connector::pinned(self.ca.trust_domain().clone(), pin, grpc::ALPN, self.hands.clock());
        grpc::channel(self.address, connector, self.expected())
    }

    /// A channel of a party with a certificate.
    pub fn channel(&self, svid: &X509Svid) -> Channel {
        self.channel_by(&self.hands, svid)
    }

    /// The same, of a party whose clock is another.
    fn channel_by(&self, hands: &Hands, svid: &X509Svid) -> Channel {
        let (sender, credentials) = watch::channel(Arc::new(Credentials::new(svid.clone(), self.ca.trust_bundles())));
        // The channel outlives the sender; credentials of a test do not change.
        drop(sender);
        grpc::channel(self.address, Connector::new(credentials, grpc::ALPN, hands.clock()), self.expected())
    }

    /// A client whose clock is another.
    pub fn by(&self, hands: &Hands, svid: &X509Svid) -> CertificateAuthorityClient<Channel> {
        CertificateAuthorityClient::new(self.channel_by(hands, svid))
    }

    pub fn client(&self, svid: &X509Svid) -> CertificateAuthorityClient<Channel> {
        CertificateAuthorityClient::new(self.channel(svid))
    }

    pub async fn attest(&self, token: &str, key: &KeyPair) -> Result<v1::IssuedSvid, tonic::Status> {
        let mut client = CertificateAuthorityClient::new(self.pinned(token));
        let request = v1::AttestNodeRequest {
            evidence: Some(Evidence::JoinToken(token.into())),
            csr: csr(key),
            ..Default::default()
        };
        client.attest_node(request).await.map(tonic::Response::into_inner)
    }

    pub async fn attested(&self, node: &SpiffeId) -> X509Svid {
        let key = key();
        let token = self.token(node).await;
        svid(&self.attest(&token, &key).await.unwrap(), &key)
    }

    pub async fn renew(&self, svid: &X509Svid, key: &KeyPair) -> Result<v1::IssuedSvid, tonic::Status> {
        let request = v1::RenewNodeRequest { csr: csr(key) };
        self.client(svid).renew_node(request).await.map(tonic::Response::into_inner)
    }
}

/// What was issued, joined with its key; refuses a chain or bundle that is not right.
pub fn svid(issued: &v1::IssuedSvid, key: &KeyPair) -> X509Svid {
    let chain: Vec<_> = issued.chain.iter().cloned().map(CertificateDer::from).collect();
    let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
    assert_eq!(svid.id().to_string(), issued.spiffe_id);
    if let Some(bundles) = issued.bundles.clone() {
        let bundles: TrustBundles = bundles.try_into().unwrap();
        assert!(bundles.get(svid.id().trust_domain()).is_some());
    }
    svid
}
