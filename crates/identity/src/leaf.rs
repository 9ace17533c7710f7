use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::{ParseSpiffeIdError, SpiffeId, Validity};

/// What a leaf certificate says, once it is known to be an X509-SVID in form.
///
/// Form only: whether a trusted root vouches for it is the verifier's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidLeaf {
    id: SpiffeId,
    validity: Validity,
    serial: String,
    public_key: Vec<u8>,
}

impl SvidLeaf {
    /// Reads a DER certificate and holds it against the rules for leaves.
    ///
    /// **Source**: X509-SVID §2 to §4; RFC 5280 §4.2.1.
    ///
    /// # Errors
    /// When it is not a certificate, or breaks a rule; the first one broken.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, ParseSvidError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| ParseSvidError::NotACertificate)?;
        if !rest.is_empty() {
            return Err(ParseSvidError::NotACertificate);
        }
        let id = spiffe_id(&certificate)?;
        check_constraints(&certificate)?;
        Ok(Self {
            id,
            validity: validity(&certificate)?,
            serial: serial(&certificate),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// Whom the certificate names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the certificate is good.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The serial number, in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The public key's bit string.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

/// Why a certificate is not a leaf X509-SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSvidError {
    /// Not DER, not X.509, or bytes after its end.
    #[error("it is not an X.509 certificate")]
    NotACertificate,
    /// The chain is empty.
    #[error("there is no certificate")]
    Empty,
    /// The subject alternative names cannot be read, or stand twice.
    #[error("its subject alternative names cannot be read")]
    UnreadableNames,
    /// No URI SAN, so no identity.
    #[error("it has no URI among its subject alternative names, so it names nobody")]
    NoUri,
    /// More than one URI SAN: an SVID has exactly one.
    #[error("it has {0} URIs among its subject alternative names, an SVID has exactly one")]
    ManyUris(usize),
    /// The URI is not a SPIFFE ID.
    #[error("its URI is not a SPIFFE ID: {0}")]
    Uri(#[from] ParseSpiffeIdError),
    /// The SPIFFE ID has no path: it names a trust domain, as only CAs do.
    #[error("its SPIFFE ID {0} has no path, so it names a trust domain and not a workload")]
    NoPath(SpiffeId),
    /// `CA:TRUE`.
    #[error("it is a CA certificate")]
    Ca,
    /// The key usage is absent or cannot be read.
    #[error("its key usage is missing or cannot be read")]
    NoKeyUsage,
    /// `keyCertSign` or `cRLSign` on a leaf.
    #[error("its key usage lets it sign certificates or CRLs")]
    SigningUsage,
    /// No `digitalSignature`.
    #[error("its key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// Its dates are out of order or out of range.
    #[error("its validity ends before it starts")]
    Validity,
    /// The private key beside it is another's.
    #[error("the private key is not the certificate's")]
    KeyMismatch,
    /// The private key is unusable.
    #[error("the private key cannot be used")]
    Key,
    /// The PEM text cannot be read.
    #[error("the PEM cannot be read: {0}")]
    Pem(String),
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, ParseSvidError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| ParseSvidError::UnreadableNames)?
        .ok_or(ParseSvidError::NoUri)?;
    // A name that cannot be read may be a URI all the same.
    if names.value.general_names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(ParseSvidError::UnreadableNames);
    }
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or(ParseSvidError::NoUri)?;
    let more = uris.count();
    if more > 0 {
        return Err(ParseSvidError::ManyUris(more + 1));
    }
    let id: SpiffeId = uri.parse()?;
    if id.path().is_empty() {
        return Err(ParseSvidError::NoPath(id));
    }
    Ok(id)
}

fn check_constraints(certificate: &X509Certificate<'_>) -> Result<(), ParseSvidError> {
    // Read from the extensions themselves: an unreadable or doubled one must refuse, not pass as absent.
    let mut usage = None;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(ParseSvidError::Ca),
            ParsedExtension::KeyUsage(found) if usage.is_none() => usage = Some(found),
            ParsedExtension::KeyUsage(_) => return Err(ParseSvidError::NoKeyUsage),
            ParsedExtension::ParseError { .. } => return Err(ParseSvidError::NotACertificate),
            _ => {}
        }
    }
    let usage = usage.ok_or(ParseSvidError::NoKeyUsage)?;
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(ParseSvidError::SigningUsage);
    }
    if !usage.digital_signature() {
        return Err(ParseSvidError::NoDigitalSignature);
    }
    Ok(())
}

fn validity(certificate: &X509Certificate<'_>) -> Result<Validity, ParseSvidError> {
    let at = |seconds: i64| {
        let seconds = u64::try_from(seconds).map_err(|_| ParseSvidError::Validity)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(ParseSvidError::Validity)
    };
    let dates = certificate.validity();
    Validity::new(at(dates.not_before.timestamp())?, at(dates.not_after.timestamp())?).ok_or(ParseSvidError::Validity)
}

fn serial(certificate: &X509Certificate<'_>) -> String {
    certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
}
