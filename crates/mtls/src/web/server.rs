//! The server side of HTTPS: a certificate from files that may change, or our own SVID.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::ServerFilesError;
use super::client::HTTP1;
use crate::handshake::{self, Failure, Time};
use crate::live::Live;
use crate::{AcceptError, Clock, LiveCredentials, Refusal, TlsStream, provider};

/// A certificate and its key in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate, leaf first, and the issuers that clients need.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The server side of HTTPS; clients stay anonymous. Cheap to clone; clones share a reload.
#[derive(Clone)]
pub struct WebAcceptor {
    source: Source,
    clock: Clock,
}

#[derive(Clone)]
enum Source {
    Files { files: Arc<ServerFiles>, loaded: Arc<ArcSwap<Loaded>> },
    Svid(Arc<Live>),
}

/// What is served with, and the files' bytes that it was made of.
struct Loaded {
    certificate: Arc<SingleCertAndKey>,
    pem: (Vec<u8>, Digest),
}

/// Keys are compared by their hash, so that no second copy of one lies about.
type Digest = alcazar_identity::Fingerprint;

impl WebAcceptor {
    /// An acceptor with the certificate in these files. Reads them, so it may block.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn from_files(files: ServerFiles, clock: Clock) -> Result<Self, ServerFilesError> {
        let loaded = Arc::new(ArcSwap::from_pointee(load(&files)?));
        Ok(Self { source: Source::Files { files: Arc::new(files), loaded }, clock })
    }

    /// An acceptor with our own SVID, as it is at each handshake: for clients that know us by our SPIFFE ID. TLS 1.3
    /// alone.
    pub fn spiffe(credentials: LiveCredentials, clock: Clock) -> Self {
        Self { source: Source::Svid(Arc::new(Live::new(credentials, false))), clock }
    }

    /// Looks at the files again; whether they had changed. What cannot be used changes nothing. Reads files, so it may
    /// block.
    ///
    /// # Errors
    /// When what is in the files now cannot be used.
    pub fn reload(&self) -> Result<bool, ServerFilesError> {
        let Source::Files { files, loaded } = &self.source else { return Ok(false) };
        let fresh = load(files)?;
        let changed = fresh.pem != loaded.load().pem;
        if changed {
            loaded.store(Arc::new(fresh));
        }
        Ok(changed)
    }

    /// Does the server's side of a handshake, within 10 s.
    ///
    /// # Errors
    /// When the client refuses us, does not speak TLS, takes too long, or goes away.
    pub async fn accept<IO>(&self, io: IO) -> Result<TlsStream<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config()?;
        match timeout(handshake::DEADLINE, TlsAcceptor::from(Arc::new(config)).accept(io)).await {
            Ok(Ok(stream)) => Ok(TlsStream::new(stream.into(), None)),
            Ok(Err(error)) => Err(match Refusal::of(&error, None) {
                Some(source) => AcceptError::Refused { source },
                None => Failure::of_transport(error).into(),
            }),
            Err(_late) => Err(AcceptError::Deadline { deadline: handshake::DEADLINE }),
        }
    }

    fn config(&self) -> Result<ServerConfig, AcceptError> {
        let builder = ServerConfig::builder_with_details(provider::provider(), Time::of(&self.clock));
        let (versions, certificate) = match &self.source {
            Source::Files { loaded, .. } => (&[&TLS13, &TLS12][..], Arc::clone(&loaded.load().certificate)),
            Source::Svid(live) => (&[&TLS13][..], Arc::clone(&live.current()?.certificate)),
        };
        let builder = builder.with_protocol_versions(versions).map_err(|source| AcceptError::Tls { source })?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(certificate);
        // A document is fetched now and then: sessions to resume would only take memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for WebAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Files { files, .. } => f.debug_tuple("WebAcceptor").field(files).finish(),
            Source::Svid(_) => f.write_str("WebAcceptor(svid)"),
        }
    }
}

fn load(files: &ServerFiles) -> Result<Loaded, ServerFilesError> {
    let read = |path: &Path| fs::read(path).map_err(|source| ServerFilesError::Read { path: path.into(), source });
    let wrong = |path: &Path, what, reason: String| ServerFilesError::Pem { path: path.into(), what, reason };
    let chain_pem = read(&files.certificate)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&files.certificate, "a certificate", error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(&files.certificate, "a certificate", "there is none".into()));
    }
    let mut key_pem = read(&files.key)?;
    let digest = Digest::of(&CertificateDer::from(key_pem.as_slice()));
    let key = PrivateKeyDer::from_pem_slice(&key_pem);
    // Best effort: the key itself lives on within TLS.
    key_pem.fill(0);
    let key = key.map_err(|error| wrong(&files.key, "a private key", error.to_string()))?;
    let unusable =
        |source| ServerFilesError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let pair = CertifiedKey::from_der(chain, key, &provider::provider()).map_err(unusable)?;
    Ok(Loaded { certificate: Arc::new(SingleCertAndKey::from(pair)), pem: (chain_pem, digest) })
}

/// How often whoever serves from files looks at them.
pub const LOOK_AT_FILES: Duration = Duration::from_secs(10);
