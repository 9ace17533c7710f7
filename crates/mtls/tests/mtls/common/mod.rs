//! A small PKI that makes good chains and every kind of bad one, and a clock that the tests set.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Credentials, SvidKey, TrustBundle, TrustBundles, TrustDomain, X509Svid};
use alcazar_mtls::{Acceptor, Clients, Clock, Connector, LiveCredentials};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) mod strangers;

pub(crate) const TD: &str = "cluster.local";
pub(crate) const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
pub(crate) const RATINGS: &str = "spiffe://cluster.local/ns/shop/sa/ratings";

/// The moment at which the tests take place, whenever they run.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A clock that stands still until it is told to move.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(NOW)))
    }

    pub(crate) fn forward(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    pub(crate) fn clock(&self) -> Clock {
        let seconds = Arc::clone(&self.0);
        Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.load(Ordering::SeqCst)))
    }
}

pub(crate) fn clock() -> Clock {
    TestClock::new().clock()
}

pub(crate) fn td(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// A CA: a root or an intermediate.
pub(crate) struct Ca {
    /// This CA's certificate and those above it, the root excluded.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

/// A leaf's chain and key, good or bad.
#[derive(Clone)]
pub(crate) struct Holder {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
}

pub(crate) fn dates(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    params.not_before = not_before.into();
    params.not_after = not_after.into();
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dates(&mut params, now() - YEAR, now() + YEAR);
    params
}

pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

/// A SAN extension with these URIs, in whatever bytes.
pub(crate) fn raw_uris(uris: &[&[u8]]) -> CustomExtension {
    let names: Vec<u8> = uris.iter().flat_map(|uri| [&[0x86, uri.len() as u8], *uri].concat()).collect();
    let mut san = CustomExtension::from_oid_content(&[2, 5, 29, 17], [&[0x30, names.len() as u8], &names[..]].concat());
    san.set_criticality(true);
    san
}

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, KeyPair::generate().unwrap(), |_| ())
    }

    pub(crate) fn root_with(name: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name);
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { chain: Vec::new(), der, issuer: Issuer::new(params, key) }
    }

    /// The intermediate of a cluster: pathlen 0, `spiffe://<td>`.
    pub(crate) fn intermediate(&self, trust_domain: &str) -> Self {
        self.intermediate_with(|params| params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))])
    }

    pub(crate) fn intermediate_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params("cluster east");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let chain = [vec![der.clone()], self.chain.clone()].concat();
        Self { chain, der, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn leaf(&self, id: &str) -> Holder {
        self.leaf_with(&[id], |_| ())
    }

    pub(crate) fn leaf_with(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Holder {
        let mut params = named("");
        params.subject_alt_names = uris.iter().map(|id| uri(id)).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        dates(&mut params, now() - Duration::from_secs(120), now() + HOUR);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Holder { chain: [vec![der], self.chain.clone()].concat(), key: key.serialize_der() }
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> TrustBundle {
        TrustBundle::new(td(trust_domain), 1, [self.der.clone()]).unwrap()
    }
}

impl Holder {
    pub(crate) fn svid(&self) -> X509Svid {
        X509Svid::new(self.chain.clone(), SvidKey::from_pkcs8(self.key.clone()).unwrap()).unwrap()
    }

    pub(crate) fn credentials(&self, bundles: impl Into<TrustBundles>) -> Arc<Credentials> {
        Arc::new(Credentials::new(self.svid(), bundles.into()))
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// A root, its cluster's intermediate, and what they vouch for.
pub(crate) struct Mesh {
    pub(crate) root: Ca,
    pub(crate) cluster: Ca,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let root = Ca::root("root");
        let cluster = root.intermediate(TD);
        Self { root, cluster }
    }

    pub(crate) fn bundles(&self) -> TrustBundles {
        self.root.bundle(TD).into()
    }

    pub(crate) fn credentials(&self, id: &str) -> Arc<Credentials> {
        self.cluster.leaf(id).credentials(self.bundles())
    }

    /// Credentials that never change.
    pub(crate) fn live(&self, id: &str) -> LiveCredentials {
        watch::channel(self.credentials(id)).1
    }

    pub(crate) fn acceptor(&self, clients: Clients, alpn: &[&[u8]]) -> Acceptor {
        Acceptor::new(self.live(REVIEWS), clients, alpn, clock())
    }

    pub(crate) fn connector(&self, alpn: &[&[u8]]) -> Connector {
        Connector::new(self.live(RATINGS), alpn, clock())
    }
}

/// Two ends of a real connection: the client's, the server's.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// An error and its causes, as a log shows them.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
