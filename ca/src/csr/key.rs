//! The kinds of keys that are certified here, and how each signs a request.

use std::{fmt, str::FromStr};

use ring::signature::{self, VerificationAlgorithm};
use serde::{Deserialize, Serialize};

use super::{
    CsrError,
    der::{self, BIT_STRING, INTEGER, OBJECT_IDENTIFIER, Reader, SEQUENCE},
};

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum KeyKind {
    /// ECDSA on NIST's P-256.
    P256,
    /// ECDSA on NIST's P-384.
    P384,
    /// Ed25519.
    Ed25519,
    /// RSA of 2048 to 4096 bits, for old clients.
    Rsa,
}

impl KeyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::P256, Self::P384, Self::Ed25519, Self::Rsa];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::Ed25519 => "Ed25519",
            Self::Rsa => "RSA",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KeyKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("{text:?} is not a kind of key: P-256, P-384, Ed25519 or RSA"))
    }
}

impl TryFrom<String> for KeyKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KeyKind> for String {
    fn from(kind: KeyKind) -> Self {
        kind.name().into()
    }
}

/// A SubjectPublicKeyInfo of an allowed kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'a> {
    pub(super) kind: KeyKind,
    /// As ring takes it.
    bits: &'a [u8],
}

impl<'a> Key<'a> {
    /// Reads the content of a SubjectPublicKeyInfo.
    pub(super) fn read(content: &'a [u8]) -> Result<Self, CsrError> {
        let mut reader = Reader::new(content);
        let algorithm = reader.expect(SEQUENCE)?;
        let bits = reader.expect(BIT_STRING)?.bits()?;
        reader.end()?;
        let known = KEYS.iter().find(|(identifier, _)| *identifier == algorithm.content);
        let (_, kind) = known.ok_or_else(|| CsrError::KeyKind(name(algorithm.content)))?;
        // Points are uncompressed: one key has one form.
        let whole = match kind {
            KeyKind::P256 => bits.len() == 65 && bits.first() == Some(&4),
            KeyKind::P384 => bits.len() == 97 && bits.first() == Some(&4),
            KeyKind::Ed25519 => bits.len() == 32,
            KeyKind::Rsa => return check_rsa(bits).map(|()| Self { kind: *kind, bits }),
        };
        if whole { Ok(Self { kind: *kind, bits }) } else { Err(CsrError::Malformed) }
    }

    /// Whether `signature` by the algorithm `identifier` (its content) over `message` is this key's.
    pub(super) fn verify(&self, identifier: &[u8], message: &[u8], signature: &[u8]) -> Result<(), CsrError> {
        let known = SIGNATURES.iter().find(|(kind, known, _)| *kind == self.kind && *known == identifier);
        let (_, _, algorithm) = known.ok_or_else(|| CsrError::SignatureKind(name(identifier)))?;
        let key = signature::UnparsedPublicKey::new(*algorithm, self.bits);
        key.verify(message, signature).map_err(|_unspecified| CsrError::Signature)
    }
}

/// RSAPublicKey: modulus and exponent, both positive and as short as can be.
fn check_rsa(bits: &[u8]) -> Result<(), CsrError> {
    let mut reader = Reader::new(bits);
    let mut key = reader.enter(SEQUENCE)?;
    reader.end()?;
    let (modulus, exponent) = (key.expect(INTEGER)?.content, key.expect(INTEGER)?.content);
    key.end()?;
    let size = positive_bits(modulus)?;
    positive_bits(exponent)?;
    if RSA_BITS.contains(&size) { Ok(()) } else { Err(CsrError::RsaSize(size)) }
}

/// The size of a positive INTEGER.
fn positive_bits(content: &[u8]) -> Result<usize, CsrError> {
    let digits = match content {
        [0, first, ..] if first & 0x80 != 0 => content.get(1..).unwrap_or_default(),
        [first, ..] if *first != 0 && first & 0x80 == 0 => content,
        _ => return Err(CsrError::Malformed),
    };
    let unused = digits.first().map_or(0, |first| first.leading_zeros());
    Ok(digits.len() * 8 - usize::try_from(unused).unwrap_or_default())
}

/// What to call an algorithm that is not known here: its parameter where that is an identifier (a curve), else itself.
fn name(content: &[u8]) -> String {
    let mut reader = Reader::new(content);
    let Ok(algorithm) = reader.expect(OBJECT_IDENTIFIER) else { return "unknown".into() };
    let parameter = reader.optional(OBJECT_IDENTIFIER).ok().flatten();
    der::dotted(parameter.unwrap_or(algorithm).content)
}

const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The content of the AlgorithmIdentifier of each kind of key.
const KEYS: &[(&[u8], KeyKind)] = &[
    (&[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7], KeyKind::P256),
    (&[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 5, 0x2b, 0x81, 0x04, 0, 0x22], KeyKind::P384),
    (&[0x06, 3, 0x2b, 0x65, 0x70], KeyKind::Ed25519),
    (&[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0], KeyKind::Rsa),
];

const ECDSA_SHA256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];

/// By which algorithms a key of each kind may sign a request: none with SHA-1.
static SIGNATURES: &[(KeyKind, &[u8], &dyn VerificationAlgorithm)] = &[
    (KeyKind::P256, ECDSA_SHA256, &signature::ECDSA_P256_SHA256_ASN1),
    (KeyKind::P256, ECDSA_SHA384, &signature::ECDSA_P256_SHA384_ASN1),
    (KeyKind::P384, ECDSA_SHA256, &signature::ECDSA_P384_SHA256_ASN1),
    (KeyKind::P384, ECDSA_SHA384, &signature::ECDSA_P384_SHA384_ASN1),
    (KeyKind::Ed25519, &[0x06, 3, 0x2b, 0x65, 0x70], &signature::ED25519),
    (
        KeyKind::Rsa,
        &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 11, 5, 0],
        &signature::RSA_PKCS1_2048_8192_SHA256,
    ),
    (
        KeyKind::Rsa,
        &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 12, 5, 0],
        &signature::RSA_PKCS1_2048_8192_SHA384,
    ),
    (
        KeyKind::Rsa,
        &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 13, 5, 0],
        &signature::RSA_PKCS1_2048_8192_SHA512,
    ),
];
