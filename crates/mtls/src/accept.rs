use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::handshake::{self, Failure};
use crate::live::Live;
use crate::refusal::Us;
use crate::verifier::VerifyClient;
use crate::{Clock, CredentialsError, LiveCredentials, PeerIdentity, Refusal, TlsStream, VerifyPeerError};

/// Whether clients must say who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Each client must present a certificate, and it must verify.
    Required,
    /// A client may be anonymous; a certificate that it does present must verify.
    ///
    /// Such an acceptor presents our root along with the chain, for clients that hold nothing but the
    /// root's fingerprint ([`Connector::pinned`](crate::Connector::pinned)).
    Optional,
}

/// The server side of mutual TLS: turns a transport into a stream whose peer is known.
///
/// Cheap to clone; clones share what is prepared from the credentials.
#[derive(Clone)]
pub struct Acceptor {
    live: Arc<Live>,
    clients: Clients,
    alpn: Arc<[Vec<u8>]>,
    clock: Clock,
    deadline: Duration,
}

/// A connection that a client opened, after its handshake.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// The application's bytes.
    pub stream: TlsStream<IO>,
    /// Who the client is; `None` only where clients are [`Clients::Optional`].
    pub peer: Option<PeerIdentity>,
    /// The protocol that was agreed on, where the client offered any.
    pub alpn: Option<Vec<u8>>,
    /// The name that the client asked for (SNI); what it proves is nothing.
    pub server_name: Option<String>,
}

impl Acceptor {
    /// An acceptor with these credentials, as they are at each handshake.
    ///
    /// `alpn` lists the protocols that are spoken here, the preferred first; a client that offers only
    /// others is refused, one that offers none is not.
    pub fn new(credentials: LiveCredentials, clients: Clients, alpn: &[&[u8]], clock: Clock) -> Self {
        Self {
            live: Arc::new(Live::new(credentials, clients == Clients::Optional)),
            clients,
            alpn: alpn.iter().map(|protocol| protocol.to_vec()).collect(),
            clock,
            deadline: handshake::DEADLINE,
        }
    }

    /// The same with another limit on how long a handshake may take; 10 s by default.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    pub(crate) fn credentials(&self) -> &LiveCredentials {
        self.live.receiver()
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Does the server's side of a handshake.
    ///
    /// # Errors
    /// When the client is refused, refuses us, does not speak TLS 1.3, takes too long, or goes away.
    pub async fn accept<IO>(&self, io: IO) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let prepared = self.live.current()?;
        let credentials = Arc::clone(&prepared.credentials);
        let us = Us::new(&credentials, &self.clock);
        let verifier = Arc::new(VerifyClient::new(credentials, self.clients, Arc::clone(&self.clock)));
        let config = handshake::server_config(&prepared, Arc::clone(&verifier), &self.alpn, &self.clock)
            .map_err(|source| AcceptError::Tls { source })?;

        let handshake = TlsAcceptor::from(Arc::new(config)).accept(io).into_fallible();
        let stream = match timeout(self.deadline, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, io))) => {
                let refusal = Refusal::of(&error, Some(&us));
                let failure = Failure::of(error, &verifier.verdict);
                // Only somebody whom we refuse waits for our alert.
                if matches!(failure, Failure::Peer(_)) {
                    let_the_alert_arrive(io).await;
                }
                return Err(refusal.map_or_else(|| failure.into(), |refusal| AcceptError::Refused { source: refusal }));
            }
            Err(_) => return Err(AcceptError::Deadline { deadline: self.deadline }),
        };

        let peer = verifier.verdict.peer();
        // rustls has seen to it; a mistake there must not become an anonymous client here.
        if peer.is_none() && self.clients == Clients::Required {
            return Err(AcceptError::Peer { source: VerifyPeerError::NoCertificate });
        }
        let (_, session) = stream.get_ref();
        let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
        let server_name = session.server_name().map(str::to_owned);
        Ok(Accepted { stream: TlsStream::new(stream.into(), Some(us)), peer, alpn, server_name })
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("clients", &self.clients).finish_non_exhaustive()
    }
}

/// Why a client's handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Our own credentials cannot be used.
    #[error("our own credentials cannot be used")]
    Credentials {
        /// What is wrong with them.
        #[from]
        source: CredentialsError,
    },
    /// We refused the client.
    #[error("the client was refused")]
    Peer {
        /// Why.
        source: VerifyPeerError,
    },
    /// The client refused us.
    #[error("the client refused us")]
    Refused {
        /// What it said.
        source: Refusal,
    },
    /// What came is not TLS: most often plaintext HTTP.
    #[error("the client does not speak TLS; plaintext is not served here")]
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
    /// The transport failed, or the client hung up.
    #[error("the connection broke during the TLS handshake")]
    Io {
        /// How.
        source: io::Error,
    },
    /// The client took too long.
    #[error("the client did not finish the TLS handshake within {deadline:?}")]
    Deadline {
        /// How long it had.
        deadline: Duration,
    },
}

impl From<Failure> for AcceptError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Peer(source) => Self::Peer { source },
            Failure::Tls(source) if handshake::is_not_tls(&source) => Self::NotTls { source },
            Failure::Tls(source) => Self::Tls { source },
            Failure::Io(source) => Self::Io { source },
        }
    }
}

/// Keeps a refused connection open until the client has closed it, for a moment.
///
/// The client may have sent its first request along with its certificate. Closing over unread bytes would
/// reset the connection, and the reset can overtake the alert that tells the client why.
async fn let_the_alert_arrive<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO) {
    let drain = async {
        io.shutdown().await?;
        let mut sink = [0; 1024];
        for _ in 0..LINGER_READS {
            if io.read(&mut sink).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // Whatever comes of it, the connection ends here.
    drop(timeout(LINGER, drain).await);
}

const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 64;
