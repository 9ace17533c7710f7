use std::fmt;
use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint, Validity};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// What a certificate says of itself, believed or not: for messages to people, never for decisions.
///
/// Texts are escaped and cut short, because a stranger wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    fingerprint: Fingerprint,
    claims: Option<Claims>,
}

/// What a readable certificate claims.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claims {
    uris: Vec<String>,
    subject: String,
    issuer: String,
    serial: String,
    validity: Option<Validity>,
}

impl Presented {
    /// Reads what can be read; bytes that are no certificate still have a fingerprint.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Self {
        let claims = X509Certificate::from_der(der).ok().map(|(_, certificate)| Claims::of(&certificate));
        Self { fingerprint: Fingerprint::of(der), claims }
    }

    pub(crate) fn boxed(der: &CertificateDer<'_>) -> Box<Self> {
        Box::new(Self::read(der))
    }

    /// The certificate's SHA-256.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Its URI SANs, escaped; a leaf should have one, its SPIFFE ID.
    pub fn uris(&self) -> &[String] {
        self.claims.as_ref().map(|claims| claims.uris.as_slice()).unwrap_or_default()
    }

    /// Its subject, escaped; empty for most leaves.
    pub fn subject(&self) -> &str {
        self.claims.as_ref().map(|claims| claims.subject.as_str()).unwrap_or_default()
    }

    /// The name of its issuer, escaped.
    pub fn issuer(&self) -> &str {
        self.claims.as_ref().map(|claims| claims.issuer.as_str()).unwrap_or_default()
    }

    /// Its serial number, in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        self.claims.as_ref().map(|claims| claims.serial.as_str()).unwrap_or_default()
    }

    /// When it is good, where its dates can be read.
    pub fn validity(&self) -> Option<Validity> {
        self.claims.as_ref().and_then(|claims| claims.validity)
    }
}

impl fmt::Display for Presented {
    /// A peer as a person looks for it in a log: by its SPIFFE ID where it has one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(claims) = &self.claims else {
            return write!(f, "a certificate that cannot be read (SHA-256 {})", self.fingerprint);
        };
        match (claims.uris.as_slice(), claims.subject.as_str()) {
            ([], "") => f.write_str("an unnamed certificate")?,
            ([], subject) => write!(f, "the certificate of \"{subject}\"")?,
            (uris, _) => f.write_str(&uris.join(" and "))?,
        }
        write!(f, " (serial {}, SHA-256 {})", claims.serial, self.fingerprint)
    }
}

impl Claims {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let uris = match certificate.subject_alternative_name() {
            Ok(Some(names)) => names
                .value
                .general_names
                .iter()
                .filter_map(|name| match name {
                    GeneralName::URI(uri) => Some(escape(uri)),
                    _ => None,
                })
                .take(SHOWN_URIS)
                .collect(),
            _ => Vec::new(),
        };
        Self {
            uris,
            subject: escape(&certificate.subject().to_string()),
            issuer: escape(&certificate.issuer().to_string()),
            serial: certificate.raw_serial().iter().take(SERIAL_BYTES).map(|byte| format!("{byte:02x}")).collect(),
            validity: validity_of(certificate),
        }
    }
}

/// A certificate's dates, where they are in order and after 1970.
pub(super) fn validity_of(certificate: &X509Certificate<'_>) -> Option<Validity> {
    let at = |seconds: i64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?));
    let dates = certificate.validity();
    Validity::new(at(dates.not_before.timestamp())?, at(dates.not_after.timestamp())?)
}

fn escape(text: &str) -> String {
    let mut escaped: String = text.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        escaped.push('…');
    }
    escaped
}

const SHOWN_URIS: usize = 3;
const SHOWN_CHARACTERS: usize = 256;
/// RFC 5280 §4.1.2.2 allows no more.
const SERIAL_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_cannot_write_lines_into_a_log() {
        assert_eq!(escape("a\nalcazar: all is well\u{1b}[2J"), "a\\nalcazar: all is well\\u{1b}[2J");
        assert_eq!(escape(&"x".repeat(300)).chars().count(), SHOWN_CHARACTERS + 1);
    }

    #[test]
    fn bytes_that_are_no_certificate_still_have_a_name() {
        let der = CertificateDer::from(vec![1, 2, 3]);
        let shown = Presented::read(&der).to_string();
        assert_eq!(shown, format!("a certificate that cannot be read (SHA-256 {})", Fingerprint::of(&der)));
    }
}
