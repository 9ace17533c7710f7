use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    signature::{ED25519, RsaPublicKeyComponents, UnparsedPublicKey},
};

use crate::{
    Algorithm, KeyKind,
    algorithm::Verification,
    der::{self, BIT_STRING, SEQUENCE},
};

/// A public key that checks signatures.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey(pub(crate) Material);

/// The numbers of a key, in the form in which ring takes them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Material {
    /// Modulus and exponent, big-endian, without leading zeros.
    Rsa {
        modulus: Box<[u8]>,
        exponent: Box<[u8]>,
    },
    /// Uncompressed point: 4, x, y.
    P256([u8; 65]),
    /// Uncompressed point: 4, x, y.
    P384([u8; 97]),
    Ed25519([u8; 32]),
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo, as certificates and signers have it.
    ///
    /// **Shape**: DER.
    ///
    /// # Errors
    /// When it is not one, or a key of a kind or size that no algorithm here takes.
    ///
    /// **Source**: RFC 5280 §4.1.2.7, RFC 5480, RFC 8410.
    pub fn from_spki_der(spki: &[u8]) -> Result<Self, PublicKeyError> {
        if let Some(point) = spki.strip_prefix(P256_PREFIX) {
            let point = <[u8; 65]>::try_from(point).map_err(|_length| PublicKeyError::Malformed)?;
            return Self::p256(point);
        }
        if let Some(point) = spki.strip_prefix(P384_PREFIX) {
            let point = <[u8; 97]>::try_from(point).map_err(|_length| PublicKeyError::Malformed)?;
            return Self::p384(point);
        }
        if let Some(key) = spki.strip_prefix(ED25519_PREFIX) {
            let key = key.try_into().map_err(|_length| PublicKeyError::Malformed)?;
            return Ok(Self(Material::Ed25519(key)));
        }
        let (modulus, exponent) = rsa_numbers(spki).ok_or(PublicKeyError::Malformed)?;
        Self::rsa(modulus, exponent)
    }

    /// An RSA key of these big-endian numbers without leading zeros.
    pub(crate) fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, PublicKeyError> {
        let (Some(first), Some(low)) = (modulus.first(), exponent.last()) else {
            return Err(PublicKeyError::Malformed);
        };
        if *first == 0 || exponent.first() == Some(&0) || low % 2 == 0 || exponent == [1] {
            return Err(PublicKeyError::Malformed);
        }
        // RFC 7518 §3.3: 2048 bits or more. More than 8192 would only cost the verifier; an exponent above 33 bits too.
        let bits = modulus.len().saturating_mul(8) - first.leading_zeros() as usize;
        if !(2048..=8192).contains(&bits) || exponent.len() > 4 {
            return Err(PublicKeyError::RsaSize { bits, exponent: exponent.len() });
        }
        Ok(Self(Material::Rsa { modulus: modulus.into(), exponent: exponent.into() }))
    }

    pub(crate) fn p256(point: [u8; 65]) -> Result<Self, PublicKeyError> {
        if point.first() == Some(&4) { Ok(Self(Material::P256(point))) } else { Err(PublicKeyError::Malformed) }
    }

    pub(crate) fn p384(point: [u8; 97]) -> Result<Self, PublicKeyError> {
        if point.first() == Some(&4) { Ok(Self(Material::P384(point))) } else { Err(PublicKeyError::Malformed) }
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        match self.0 {
            Material::Rsa { .. } => KeyKind::Rsa,
            Material::P256(_) => KeyKind::P256,
            Material::P384(_) => KeyKind::P384,
            Material::Ed25519(_) => KeyKind::Ed25519,
        }
    }

    /// Its SubjectPublicKeyInfo.
    ///
    /// **Shape**: DER.
    pub fn to_spki_der(&self) -> Vec<u8> {
        match &self.0 {
            Material::Rsa { modulus, exponent } => {
                let numbers = der::element(SEQUENCE, &[&der::positive(modulus), &der::positive(exponent)]);
                der::element(SEQUENCE, &[RSA_ALGORITHM, &der::element(BIT_STRING, &[&[0], &numbers])])
            }
            Material::P256(point) => [P256_PREFIX, point].concat(),
            Material::P384(point) => [P384_PREFIX, point].concat(),
            Material::Ed25519(key) => [ED25519_PREFIX, key].concat(),
        }
    }

    /// The SHA-256 thumbprint in base64url: a name that everybody computes alike.
    ///
    /// **Source**: RFC 7638 §3, RFC 8037 §2.
    pub fn thumbprint(&self) -> String {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let canonical = match &self.0 {
            Material::Rsa { modulus, exponent } => {
                format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, encode(exponent), encode(modulus))
            }
            Material::P256(point) => {
                let (x, y) = coordinates(point);
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, encode(x), encode(y))
            }
            Material::P384(point) => {
                let (x, y) = coordinates(point);
                format!(r#"{{"crv":"P-384","kty":"EC","x":"{}","y":"{}"}}"#, encode(x), encode(y))
            }
            Material::Ed25519(key) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, encode(key)),
        };
        encode(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref())
    }

    /// Checks a signature over a message.
    ///
    /// # Errors
    /// When it is wrong, or the algorithm is not one for this kind of key.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), WrongSignature> {
        let outcome = match (&self.0, algorithm.verification()) {
            (Material::Rsa { modulus, exponent }, Verification::Rsa(parameters)) => {
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(parameters, message, signature)
            }
            (Material::P256(point), Verification::Ecdsa(ecdsa)) if algorithm.key_kind() == KeyKind::P256 => {
                UnparsedPublicKey::new(ecdsa, point).verify(message, signature)
            }
            (Material::P384(point), Verification::Ecdsa(ecdsa)) if algorithm.key_kind() == KeyKind::P384 => {
                UnparsedPublicKey::new(ecdsa, point).verify(message, signature)
            }
            (Material::Ed25519(key), Verification::Ed25519) => {
                UnparsedPublicKey::new(&ED25519, key).verify(message, signature)
            }
            _ => return Err(WrongSignature),
        };
        outcome.map_err(|_unspecified| WrongSignature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {})", self.kind(), self.thumbprint())
    }
}

/// The two halves of an uncompressed point.
pub(crate) fn coordinates(point: &[u8]) -> (&[u8], &[u8]) {
    let both = point.get(1..).unwrap_or_default();
    both.split_at(both.len() / 2)
}

fn rsa_numbers(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let (fields, end) = der::take(SEQUENCE, spki)?;
    let (bits, after) = der::take(BIT_STRING, fields.strip_prefix(RSA_ALGORITHM)?)?;
    let (numbers, after_numbers) = der::take(SEQUENCE, bits.strip_prefix(&[0])?)?;
    let (modulus, rest) = der::take_positive(numbers)?;
    let (exponent, rest) = der::take_positive(rest)?;
    [end, after, after_numbers, rest].iter().all(|rest| rest.is_empty()).then_some((modulus, exponent))
}

/// Why something is not a public key that can be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Not a key, or of another kind.
    #[error("it is not a public key of the kinds RSA, P-256, P-384 or Ed25519")]
    Malformed,
    /// An RSA key that proves nothing, or that costs too much to use.
    #[error(
        "the RSA key has {bits} bits and an exponent of {exponent} bytes; 2048 to 8192 bits and at most 4 bytes are accepted"
    )]
    RsaSize {
        /// Of the modulus.
        bits: usize,
        /// Bytes of the exponent.
        exponent: usize,
    },
}

/// A signature that is not the key's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is wrong")]
pub struct WrongSignature;

/// SEQUENCE, AlgorithmIdentifier and the head of the bit string: the same for every key of the curve.
const P256_PREFIX: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const P384_PREFIX: &[u8] =
    b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00";
const ED25519_PREFIX: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const RSA_ALGORITHM: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
