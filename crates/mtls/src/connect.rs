use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::{Fingerprint, TrustBundles, TrustDomain};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::handshake::{self, Failure};
use crate::live::Live;
use crate::refusal::Us;
use crate::verifier::{Trust, VerifyServer};
use crate::{Clock, CredentialsError, Expected, LiveCredentials, PeerIdentity, Refusal, TlsStream, VerifyPeerError};

/// The client side of mutual TLS: turns a transport into a stream whose peer is known, and is expected.
///
/// Cheap to clone; clones share what is prepared from the credentials.
#[derive(Clone)]
pub struct Connector {
    source: Source,
    alpn: Arc<[Vec<u8>]>,
    clock: Clock,
    deadline: Duration,
}

/// Where trust, and our own certificate, come from.
#[derive(Clone)]
enum Source {
    Credentials(Arc<Live>),
    Bundles(Arc<TrustBundles>),
    Pin(TrustDomain, Fingerprint),
}

/// A connection to a server, after its handshake.
#[derive(Debug)]
pub struct Connected<IO> {
    /// The application's bytes.
    pub stream: TlsStream<IO>,
    /// Who the server is.
    pub peer: PeerIdentity,
    /// The protocol that was agreed on; `None` when the server took none of those that were offered.
    pub alpn: Option<Vec<u8>>,
}

impl Connector {
    /// A connector with these credentials, as they are at each handshake.
    ///
    /// `alpn` lists the protocols to offer, the preferred first.
    pub fn new(credentials: LiveCredentials, alpn: &[&[u8]], clock: Clock) -> Self {
        Self::from_source(Source::Credentials(Arc::new(Live::new(credentials, false))), alpn, clock)
    }

    /// A connector for those who have no certificate yet: it presents none, and trusts, for this trust domain
    /// alone, the presented root whose SHA-256 is the pin.
    ///
    /// The server must present its root; an [`Acceptor`](crate::Acceptor) with
    /// [`Clients::Optional`](crate::Clients::Optional) does.
    pub fn pinned(trust_domain: TrustDomain, root: Fingerprint, alpn: &[&[u8]], clock: Clock) -> Self {
        Self::from_source(Source::Pin(trust_domain, root), alpn, clock)
    }

    /// A connector for those who have no certificate to show, and believe these roots.
    pub fn trusting(bundles: TrustBundles, alpn: &[&[u8]], clock: Clock) -> Self {
        Self::from_source(Source::Bundles(Arc::new(bundles)), alpn, clock)
    }

    fn from_source(source: Source, alpn: &[&[u8]], clock: Clock) -> Self {
        let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Self { source, alpn, clock, deadline: handshake::DEADLINE }
    }

    /// The same with another limit on how long a handshake may take; 10 s by default.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Where credentials come from; `None` for one that shows none.
    pub(crate) fn credentials(&self) -> Option<&LiveCredentials> {
        match &self.source {
            Source::Credentials(live) => Some(live.receiver()),
            Source::Bundles(_) | Source::Pin(..) => None,
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Does the client's side of a handshake; no server name is sent.
    ///
    /// In TLS 1.3 the client is done before the server has judged it: a refusal by the server may come out
    /// of the stream's first read, as a [`Refusal`].
    ///
    /// # Errors
    /// When the server is refused, is not the expected one, refuses us, does not speak TLS 1.3, takes too
    /// long, or goes away.
    pub async fn connect<IO>(&self, io: IO, expected: &Expected) -> Result<Connected<IO>, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (prepared, trust) = match &self.source {
            Source::Credentials(live) => {
                let prepared = live.current()?;
                let trust = Trust::Credentials(Arc::clone(&prepared.credentials));
                (Some(prepared), trust)
            }
            Source::Bundles(bundles) => (None, Trust::Bundles(Arc::clone(bundles), Arc::default())),
            Source::Pin(trust_domain, root) => (None, Trust::Pin(trust_domain.clone(), *root)),
        };
        let us = prepared.as_ref().map(|prepared| Us::new(&prepared.credentials, &self.clock));
        let verifier = Arc::new(VerifyServer::new(trust, expected.clone(), Arc::clone(&self.clock)));
        let config = handshake::client_config(prepared.as_deref(), Arc::clone(&verifier), &self.alpn, &self.clock)
            .map_err(|source| ConnectError::Tls { source })?;

        let handshake = TlsConnector::from(Arc::new(config)).connect(nobody(), io).into_fallible();
        let stream = match timeout(self.deadline, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, _))) => {
                return Err(match Refusal::of(&error, us.as_deref()) {
                    Some(source) => ConnectError::Refused { source },
                    None => Failure::of(error, &verifier.verdict).into(),
                });
            }
            Err(_) => return Err(ConnectError::Deadline { deadline: self.deadline }),
        };

        let peer = verifier.verdict.peer().ok_or(ConnectError::Peer { source: VerifyPeerError::NoCertificate })?;
        let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        Ok(Connected { stream: TlsStream::new(stream.into(), us), peer, alpn })
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Why a handshake with a server failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Our own credentials cannot be used.
    #[error("our own credentials cannot be used")]
    Credentials {
        /// What is wrong with them.
        #[from]
        source: CredentialsError,
    },
    /// We refused the server.
    #[error("the server was refused")]
    Peer {
        /// Why.
        source: VerifyPeerError,
    },
    /// The server refused us.
    #[error("the server refused us")]
    Refused {
        /// What it said.
        source: Refusal,
    },
    /// What came is not TLS.
    #[error("the server does not speak TLS on this port")]
    NotTls {
        /// What TLS makes of it.
        source: rustls::Error,
    },
    /// TLS failed otherwise: no version, protocol or algorithm in common, or a broken message.
    #[error("the TLS handshake failed")]
    Tls {
        /// How.
        source: rustls::Error,
    },
    /// The transport failed, or the server hung up.
    #[error("the connection broke during the TLS handshake")]
    Io {
        /// How.
        source: io::Error,
    },
    /// The server took too long.
    #[error("the server did not finish the TLS handshake within {deadline:?}")]
    Deadline {
        /// How long it had.
        deadline: Duration,
    },
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Peer(source) => Self::Peer { source },
            Failure::Tls(source) if handshake::is_not_tls(&source) => Self::NotTls { source },
            Failure::Tls(source) => Self::Tls { source },
            Failure::Io(source) => Self::Io { source },
        }
    }
}

/// rustls wants a name to look for; our verifier looks for SPIFFE IDs and never reads it.
fn nobody() -> ServerName<'static> {
    ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED))
}
