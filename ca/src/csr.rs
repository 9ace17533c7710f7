//! A certificate signing request: parsed, its signature checked, and reduced to its public key.

mod der;
mod key;

use std::fmt;

use ring::digest;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use thiserror::Error;

pub use self::key::KeyKind;
use self::{
    der::{BIT_STRING, BOOLEAN, CONTEXT_0, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, Reader, SEQUENCE, SET},
    key::Key,
};

/// A request whose sender has proved that it holds the private key. Nothing of it is kept but the public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    spki: Box<[u8]>,
    kind: KeyKind,
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
        let mut outside = Reader::new(der);
        let mut request = outside.enter(SEQUENCE)?;
        if !outside.is_empty() {
            return Err(CsrError::TrailingBytes(outside.rest().len()));
        }
        let signed = request.expect(SEQUENCE)?;
        let algorithm = request.expect(SEQUENCE)?;
        let signature = request.expect(BIT_STRING)?.bits()?;
        request.end()?;

        let mut info = Reader::new(signed.content);
        if info.expect(INTEGER)?.content != VERSION {
            return Err(CsrError::Malformed);
        }
        // The subject: whoever it names, the answer names the caller.
        info.expect(SEQUENCE)?;
        let spki = info.expect(SEQUENCE)?;
        // RFC 2986 wants the attributes there, if empty; old clients leave them out.
        let attributes = info.optional(CONTEXT_0)?;
        info.end()?;
        // Before the signature: a weak key's signature proves nothing.
        let key = Key::read(spki.content)?;
        key.verify(algorithm.content, signed.whole, signature)?;
        if let Some(attributes) = attributes {
            refuse_authority(attributes.content)?;
        }
        Ok(Self { hash: KeyHash::of(spki.whole), kind: key.kind, spki: spki.whole.into() })
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

    /// The key to be certified: a SubjectPublicKeyInfo in DER.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Whether the key is a point of P-256 that is not compressed, with its algorithm: then this is its one form in DER.
    pub(crate) fn has_plain_key(&self) -> bool {
        self.spki.starts_with(P256_POINT) && self.spki.len() == P256_POINT.len() + 64
    }

    /// The kind of the key.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The digest by which the key is recognised.
    pub fn key_hash(&self) -> KeyHash {
        self.hash
    }
}

/// What comes before the 64 bytes of a point: id-ecPublicKey, prime256v1, and a bit string of an uncompressed point (RFC 5480 §2).
const P256_POINT: &[u8] = &[
    0x30, 89, 0x30, 19, 0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
    0x03, 66, 0, 4,
];

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

    /// The hash of a certificate's public key; `None` where it is none.
    pub(crate) fn of_certificate(certificate: &alcazar_identity::CertificateDer<'_>) -> Option<Self> {
        use x509_parser::{certificate::X509Certificate, prelude::FromDer};
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(Self::of(parsed.public_key().raw))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
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
    /// Signed by an algorithm that is not accepted for its key: SHA-1, or one of another kind of key.
    #[error("the certificate request is signed by the algorithm {0}, which proves nothing for its key here")]
    SignatureKind(String),
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
const VERSION: &[u8] = &[0];

/// What a request asks for is ignored, but one that asks for this is not from an honest client.
fn refuse_authority(attributes: &[u8]) -> Result<(), CsrError> {
    let mut attributes = Reader::new(attributes);
    while !attributes.is_empty() {
        let mut attribute = attributes.enter(SEQUENCE)?;
        let kind = attribute.expect(OBJECT_IDENTIFIER)?.content;
        let mut values = attribute.enter(SET)?;
        attribute.end()?;
        while kind == EXTENSION_REQUEST && !values.is_empty() {
            refuse_authority_in_extensions(values.enter(SEQUENCE)?)?;
        }
    }
    Ok(())
}

fn refuse_authority_in_extensions(mut extensions: Reader<'_>) -> Result<(), CsrError> {
    while !extensions.is_empty() {
        let mut extension = extensions.enter(SEQUENCE)?;
        let kind = extension.expect(OBJECT_IDENTIFIER)?.content;
        extension.optional(BOOLEAN)?;
        let mut value = Reader::new(extension.expect(OCTET_STRING)?.content);
        extension.end()?;
        let asks = match kind {
            BASIC_CONSTRAINTS => {
                let mut constraints = value.enter(SEQUENCE)?;
                constraints.optional(BOOLEAN)?.is_some_and(|ca| ca.content != [0])
            }
            KEY_USAGE => {
                // The first byte counts the bits that are not used; keyCertSign and cRLSign are in the second.
                let bits = value.expect(BIT_STRING)?.content;
                bits.get(1).is_some_and(|bits| bits & CERT_OR_CRL_SIGN != 0)
            }
            _ => false,
        };
        if asks {
            return Err(CsrError::AsksForAuthority);
        }
    }
    Ok(())
}

/// 1.2.840.113549.1.9.14
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 9, 14];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
/// Bits 5 and 6 of RFC 5280 §4.2.1.3.
const CERT_OR_CRL_SIGN: u8 = 0b0000_0110;
