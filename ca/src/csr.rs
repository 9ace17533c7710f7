//! A certificate signing request: parsed, its signature checked, and reduced to its public key.

use std::fmt;

use ring::digest;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use thiserror::Error;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::ParsedExtension,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    prelude::FromDer,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

/// A request whose sender has proved that it holds the private key. Nothing of it is kept but the public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    key: rcgen::SubjectPublicKeyInfo,
    hash: KeyHash,
}

impl Csr {
    /// Reads a PKCS#10 request in DER (RFC 2986).
    ///
    /// # Errors
    /// When it is not one, its signature is wrong, its key is not of an allowed kind, or it asks to be a CA.
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_DER {
            return Err(CsrError::TooLong(der.len()));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_reason| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::TrailingBytes(rest.len()));
        }
        let info = &request.certification_request_info;
        // Before the signature: a weak key's signature proves nothing.
        check_key(&info.subject_pki)?;
        request.verify_signature().map_err(|_reason| CsrError::Signature)?;
        refuse_authority(&request)?;
        Ok(Self {
            key: rcgen::SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_reason| CsrError::Malformed)?,
            hash: KeyHash::of(info.subject_pki.raw),
        })
    }

    /// Reads a request in PEM, as Istio's agents send it.
    ///
    /// # Errors
    /// As [`Csr::from_der`], and when there is no PEM block of a request.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > MAX_PEM {
            return Err(CsrError::TooLong(pem.len()));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_reason| CsrError::NotPem)?;
        Self::from_der(&der)
    }

    /// The key to be certified.
    pub(crate) fn key(&self) -> &rcgen::SubjectPublicKeyInfo {
        &self.key
    }

    /// The digest by which the key is recognised.
    pub fn key_hash(&self) -> KeyHash {
        self.hash
    }
}

/// The SHA-256 of a SubjectPublicKeyInfo in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of a SubjectPublicKeyInfo in DER.
    pub fn of(spki: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
        Self(hash)
    }

    pub(crate) fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CsrError {
    /// No PEM block of a certificate request.
    #[error("the certificate request is not PEM with a CERTIFICATE REQUEST block")]
    NotPem,
    /// Larger than any honest one.
    #[error("the certificate request has {0} bytes, more than any honest one")]
    TooLong(usize),
    /// Not PKCS#10.
    #[error("the certificate request is not PKCS#10")]
    Malformed,
    /// Something comes after it.
    #[error("the certificate request is followed by {0} more bytes")]
    TrailingBytes(usize),
    /// The sender does not hold the key, or the bytes were altered.
    #[error("the certificate request's signature is wrong")]
    Signature,
    /// A kind of key that is not certified here.
    #[error("the key is of the kind {0}; P-256, P-384, Ed25519 and RSA are certified here")]
    KeyKind(String),
    /// An RSA key of the wrong size.
    #[error("the RSA key has {0} bits; 2048 to 4096 are certified here")]
    RsaSize(usize),
    /// It asks to sign certificates.
    #[error("the certificate request asks to be a certificate authority")]
    AsksForAuthority,
}

/// An honest request is below 2 KB; one with a large RSA key and many names below 10.
const MAX_DER: usize = 16 * 1024;
const MAX_PEM: usize = 2 * MAX_DER;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let kind = &key.algorithm.algorithm;
    let curve = || key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if *kind == OID_SIG_ED25519
        || (*kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve().is_some_and(|c| c == OID_EC_P256 || c == OID_NIST_EC_P384))
    {
        return Ok(());
    }
    if *kind == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else { return Err(CsrError::Malformed) };
        let bits = rsa.key_size();
        return if RSA_BITS.contains(&bits) { Ok(()) } else { Err(CsrError::RsaSize(bits)) };
    }
    Err(CsrError::KeyKind(curve().map_or_else(|| kind.to_id_string(), |curve| curve.to_id_string())))
}

/// What a request asks for is ignored, but one that asks for this is not from an honest client.
fn refuse_authority(request: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
    for extension in request.requested_extensions().into_iter().flatten() {
        let asks = match extension {
            ParsedExtension::BasicConstraints(constraints) => constraints.ca,
            ParsedExtension::KeyUsage(usage) => usage.key_cert_sign() || usage.crl_sign(),
            ParsedExtension::ParseError { .. } => return Err(CsrError::Malformed),
            _ => false,
        };
        if asks {
            return Err(CsrError::AsksForAuthority);
        }
    }
    Ok(())
}
