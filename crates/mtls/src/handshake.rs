//! What both sides of a handshake share: the TLS configuration, the deadline and the reading of failures.
//!
//! A configuration is made for one handshake, around the snapshot's key and chain that are made once: rustls
//! lets a verifier hand nothing back, so each handshake has a verifier of its own to ask. It costs some
//! microseconds.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, ServerConfig};
use rustls_pki_types::UnixTime;

use crate::live::Prepared;
use crate::verifier::{Verdict, VerifyClient, VerifyServer};
use crate::{Clock, VerifyPeerError, provider};

/// How long a handshake may take, unless the caller says otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A server's configuration for one handshake: TLS 1.3, nothing that could be resumed.
pub(crate) fn server_config(
    prepared: &Prepared,
    verifier: Arc<VerifyClient>,
    alpn: &[Vec<u8>],
    clock: &Clock,
) -> Result<ServerConfig, Error> {
    let certificate: Arc<SingleCertAndKey> = Arc::clone(&prepared.certificate);
    let mut config = ServerConfig::builder_with_details(provider::provider(), Time::of(clock))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // A resumed session would skip the verifier.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}

/// A client's configuration for one handshake; without `prepared` it presents no certificate.
pub(crate) fn client_config(
    prepared: Option<&Prepared>,
    verifier: Arc<VerifyServer>,
    alpn: &[Vec<u8>],
    clock: &Clock,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_details(provider::provider(), Time::of(clock))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match prepared {
        Some(prepared) => {
            let certificate: Arc<SingleCertAndKey> = Arc::clone(&prepared.certificate);
            builder.with_client_cert_resolver(certificate)
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Identities are SPIFFE IDs, which SNI cannot carry; a name on the wire would only tell on us.
    config.enable_sni = false;
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}

/// How a handshake failed, before each side puts it into its own words.
pub(crate) enum Failure {
    /// We refused the peer.
    Peer(VerifyPeerError),
    /// TLS went wrong otherwise.
    Tls(Error),
    /// The transport went wrong, or ended.
    Io(io::Error),
}

impl Failure {
    pub(crate) fn of(error: io::Error, verdict: &Verdict) -> Self {
        if let Some(refused) = verdict.refused() {
            return Self::Peer(refused);
        }
        Self::of_transport(error)
    }

    /// Where no verifier of ours has anything to say.
    pub(crate) fn of_transport(error: io::Error) -> Self {
        match error.get_ref().and_then(|source| source.downcast_ref()) {
            Some(Error::NoCertificatesPresented) => Self::Peer(VerifyPeerError::NoCertificate),
            Some(tls) => Self::Tls(Error::clone(tls)),
            None => Self::Io(error),
        }
    }
}

/// Whether the other side does not speak TLS at all.
pub(crate) fn is_not_tls(error: &Error) -> bool {
    matches!(error, Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
}

/// The caller's clock, as rustls asks for it.
pub(crate) struct Time(Clock);

impl Time {
    pub(crate) fn of(clock: &Clock) -> Arc<dyn TimeProvider> {
        Arc::new(Self(Arc::clone(clock)))
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}
