use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use alcazar_identity::{Credentials, SpiffeId, Validity, rfc3339};
use rustls::AlertDescription;

use crate::Clock;

/// The peer refused us, or ended the connection, with a TLS alert.
///
/// In TLS 1.3 a client has finished its handshake before the server has judged it, so a client often hears
/// of its refusal only at the first read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the peer refused us with the TLS alert {alert:?}: {meaning}{us}")]
pub struct Refusal {
    alert: AlertDescription,
    meaning: &'static str,
    us: Shown,
}

impl Refusal {
    /// What the alert most likely means, in plain words.
    pub fn meaning(&self) -> &'static str {
        self.meaning
    }

    /// Finds the refusal in the chain of causes of a larger error, such as tonic's.
    pub fn find<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let found = error.downcast_ref().or_else(|| within.and_then(|within| within.downcast_ref()));
            if found.is_some() {
                return found;
            }
            next = error.source();
        }
        None
    }

    /// The refusal in an error that a TLS stream returned, if that is what it is.
    pub(crate) fn of(error: &io::Error, us: Option<&Us>) -> Option<Self> {
        match error.get_ref()?.downcast_ref()? {
            rustls::Error::AlertReceived(alert) => Some(Self::new(*alert, us)),
            _ => None,
        }
    }

    fn new(alert: AlertDescription, us: Option<&Us>) -> Self {
        let shown = us.map(|us| (us.id.clone(), us.validity, (us.clock)()));
        Self { alert, meaning: meaning(alert), us: Shown(shown) }
    }
}

/// Who we were in one handshake, for the message should we be refused.
#[derive(Clone)]
pub(crate) struct Us {
    id: SpiffeId,
    validity: Validity,
    clock: Clock,
}

impl Us {
    pub(crate) fn new(credentials: &Credentials, clock: &Clock) -> Arc<Self> {
        let svid = credentials.svid();
        Arc::new(Self { id: svid.id().clone(), validity: svid.validity(), clock: Arc::clone(clock) })
    }
}

/// Who we were, and our clock: nobody when we presented no certificate.
#[derive(Debug, Clone)]
struct Shown(Option<(SpiffeId, Validity, SystemTime)>);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            None => f.write_str(" (we presented no certificate)"),
            Some((id, validity, now)) => {
                write!(f, " (we are {id}, good from {validity}; our clock says {})", rfc3339(*now))
            }
        }
    }
}

/// What each alert means between mutual-TLS peers, and where to look.
fn meaning(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => {
            "by its clock our certificate, or our issuer's, is expired or not yet good; compare the clocks"
        }
        AlertDescription::UnknownCA => {
            "it does not trust our trust domain, or its bundle lacks our root; its log names the roots it has"
        }
        AlertDescription::BadCertificate => "our certificate is not one that it accepts in form; its log says why",
        AlertDescription::UnsupportedCertificate => "our certificate's extended key usage does not allow this side",
        AlertDescription::CertificateRevoked => "our certificate is revoked",
        AlertDescription::CertificateUnknown => "it does not accept our certificate; its log says why",
        AlertDescription::CertificateRequired => "it requires a client certificate",
        AlertDescription::AccessDenied => "it knows who we are, and expected somebody else",
        AlertDescription::NoApplicationProtocol => "it speaks none of the protocols that we offered (ALPN)",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        AlertDescription::HandshakeFailure => "we have no cipher suite, group or signature in common",
        AlertDescription::DecryptError => "it could not verify a signature of ours",
        AlertDescription::UnrecognisedName => "it serves nobody under the name that we gave (SNI)",
        AlertDescription::InternalError => "it failed within; its log may say how",
        _ => "it did not say more",
    }
}

/// An error and its causes in one line.
pub(crate) struct Causes<'e>(pub(crate) &'e dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}
