//! A client of HTTPS servers: web PKI, or the server's SPIFFE ID.

use std::fmt;
use std::io;
use std::sync::Arc;

use alcazar_identity::{CertificateDer, Revocations, TrustBundles};
use http::HeaderValue;
use http::header::InvalidHeaderValue;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::RootsError;
use super::fetch::Limits;
use crate::handshake::{Failure, Time};
use crate::verifier::{Trust, VerifyServer};
use crate::{Clock, ConnectError, Expected, Refusal, TlsStream, VerifyPeerError, provider};

/// A client of HTTPS servers. Cheap to clone.
#[derive(Clone)]
pub struct WebClient {
    trust: WebTrust,
    clock: Clock,
    pub(super) limits: Limits,
    /// What the server has to prove itself as; the host of the URL otherwise.
    name: Option<String>,
    /// What proves us to the server.
    pub(super) authorization: Option<HeaderValue>,
}

/// How the server is known.
#[derive(Clone)]
enum WebTrust {
    /// By its DNS name, and these roots.
    Web(Arc<ClientConfig>),
    /// By its SPIFFE ID.
    Spiffe { bundles: Arc<TrustBundles>, revocations: Arc<Revocations>, expected: Expected },
}

impl WebClient {
    /// A client that trusts the roots of this system.
    ///
    /// # Errors
    /// When the system has none that can be read.
    pub fn system(clock: Clock) -> Result<Self, RootsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems ship roots that webpki cannot read, next to a hundred that it can.
        let (added, _ignored) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(RootsError::System { source: found.errors.into_iter().next() });
        }
        Self::web(roots, clock)
    }

    /// A client that trusts the roots in this PEM text, and no others.
    ///
    /// # Errors
    /// When there is none, or one cannot be used.
    pub fn with_roots(pem: &[u8], clock: Clock) -> Result<Self, RootsError> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(pem) {
            let root = root.map_err(|source| RootsError::Pem(source.to_string()))?;
            roots.add(root).map_err(RootsError::Root)?;
        }
        match roots.is_empty() {
            true => Err(RootsError::Empty),
            false => Self::web(roots, clock),
        }
    }

    /// A client that knows the server by its SPIFFE ID. It presents no certificate of its own, speaks TLS 1.3 and
    /// resumes nothing. Nothing is revoked for it, until it is told otherwise.
    ///
    /// **Source**: SPIFFE Federation §5.2.2 (`https_spiffe`).
    pub fn spiffe(bundles: TrustBundles, expected: Expected, clock: Clock) -> Self {
        let trust = WebTrust::Spiffe { bundles: Arc::new(bundles), revocations: Arc::default(), expected };
        Self { trust, clock, limits: Limits::default(), name: None, authorization: None }
    }

    /// The same without servers that were revoked. Lists are about SPIFFE IDs: a server that is known by its DNS name is
    /// judged as before.
    #[must_use]
    pub fn with_revocations(mut self, revoked: Arc<Revocations>) -> Self {
        if let WebTrust::Spiffe { revocations, .. } = &mut self.trust {
            *revocations = revoked;
        }
        self
    }

    /// The same with other limits on what a fetch may cost.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The same for a server that is known by this DNS name or address, wherever the URL says that it is: for one that is
    /// reached by an address that is not in its certificate.
    #[must_use]
    pub fn with_server_name(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// The same with a bearer token in each request. It is shown to no server but the one that has proved itself: redirects
    /// are not followed.
    ///
    /// **Source**: RFC 6750 §2.1.
    ///
    /// # Errors
    /// When the token cannot stand in a header.
    pub fn with_bearer(self, token: &str) -> Result<Self, InvalidHeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
        value.set_sensitive(true);
        Ok(Self { authorization: Some(value), ..self })
    }

    fn web(roots: RootCertStore, clock: Clock) -> Result<Self, RootsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider::provider());
        let verifier = verifier.build().map_err(|source| RootsError::Verifier(source.to_string()))?;
        let config = ClientConfig::builder_with_details(provider::provider(), Time::of(&clock))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(RootsError::Root)?
            .with_webpki_verifier(verifier);
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![HTTP1.to_vec()];
        // A document is fetched now and then: nothing to win.
        config.resumption = Resumption::disabled();
        let trust = WebTrust::Web(Arc::new(config));
        Ok(Self { trust, clock, limits: Limits::default(), name: None, authorization: None })
    }

    /// Does the client's side of a handshake with the server of this name or address.
    ///
    /// # Errors
    /// When the server is not who it should be, refuses us, does not speak TLS, or goes away.
    pub async fn connect<IO>(&self, host: &str, io: IO) -> Result<TlsStream<IO>, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(self.name.as_deref().unwrap_or(host).to_owned());
        let name = name.map_err(|source| ConnectError::Io { source: io::Error::other(source) })?;
        let (config, verifier) = match &self.trust {
            WebTrust::Web(config) => (Arc::clone(config), None),
            WebTrust::Spiffe { bundles, revocations, expected } => {
                let trust = Trust::Bundles(Arc::clone(bundles), Arc::clone(revocations));
                let verifier = Arc::new(VerifyServer::new(trust, expected.clone(), Arc::clone(&self.clock)));
                (Arc::new(self.spiffe_config(Arc::clone(&verifier))?), Some(verifier))
            }
        };
        let handshake = TlsConnector::from(config).connect(name, io).await;
        let stream = handshake.map_err(|error| match (Refusal::of(&error, None), &verifier) {
            (Some(source), _) => ConnectError::Refused { source },
            (None, Some(verifier)) => Failure::of(error, &verifier.verdict).into(),
            (None, None) => Failure::of_transport(error).into(),
        })?;
        // rustls has seen to it; a mistake there must not become a server that nobody knows.
        if verifier.is_some_and(|verifier| verifier.verdict.peer().is_none()) {
            return Err(ConnectError::Peer { source: VerifyPeerError::NoCertificate });
        }
        Ok(TlsStream::new(stream.into(), None))
    }

    fn spiffe_config(&self, verifier: Arc<VerifyServer>) -> Result<ClientConfig, ConnectError> {
        let builder = ClientConfig::builder_with_details(provider::provider(), Time::of(&self.clock));
        let builder = builder.with_protocol_versions(&[&TLS13]).map_err(|source| ConnectError::Tls { source })?;
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for WebClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trust = match &self.trust {
            WebTrust::Web(_) => "web PKI".to_owned(),
            WebTrust::Spiffe { expected, .. } => expected.to_string(),
        };
        f.debug_struct("WebClient").field("trust", &trust).finish_non_exhaustive()
    }
}

pub(super) const HTTP1: &[u8] = b"http/1.1";
