//! Private keys as PEM: PKCS#8, encrypted or not, and the older shapes that other people's files have.
//!
//! What is encrypted here is PBES2 with PBKDF2-HMAC-SHA256 and AES-256-CBC, because every OpenSSL since 1.1 opens that, with its
//! default limits.

use pkcs8::{
    AlgorithmIdentifierRef, EncryptedPrivateKeyInfoOwned, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument,
    der::{
        AnyRef, Decode, Encode,
        asn1::{ContextSpecific, OctetStringRef},
        pem::LineEnding,
    },
    pkcs5::pbes2,
};
use rcgen::KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::serial::random_bytes;

/// Why a text is not a private key that can be used.
#[derive(Debug, Error)]
pub enum KeyPemError {
    /// No PEM.
    #[error("it holds no PEM block of a private key")]
    NotPem,
    /// More than one key.
    #[error("it holds more than one PEM block; a key stands alone in its file")]
    Several,
    /// PEM of something else.
    #[error("it holds a block {0:?}; write the key as PKCS#8: openssl pkcs8 -topk8 -in <file>")]
    Label(String),
    /// What is in the block is no key.
    #[error("what is in its PEM block is not a private key")]
    Malformed,
    /// A key of a kind that is not used here.
    #[error("its key is of a kind that is not used here: P-256, P-384, Ed25519 and RSA are")]
    Kind,
    /// An encrypted key, and no passphrase.
    #[error("it is encrypted, and there is no passphrase for it")]
    Locked,
    /// Another passphrase.
    #[error("the passphrase is wrong")]
    Passphrase,
    /// It could not be encrypted.
    #[error("it could not be encrypted")]
    Encrypt,
}

/// A key as read, and whether its file was encrypted.
pub(crate) struct Parsed {
    pub(crate) key: KeyPair,
    pub(crate) encrypted: bool,
}

/// Reads one private key in PEM: PKCS#8 (encrypted too), or the older shapes of RSA (PKCS#1) and EC keys (SEC 1).
pub(crate) fn parse_key(text: &str, passphrase: Option<&[u8]>) -> Result<Parsed, KeyPemError> {
    let block = only_block(text)?;
    let (label, document) = SecretDocument::from_pem(&block).map_err(|_reason| KeyPemError::NotPem)?;
    let (der, encrypted) = match label {
        "PRIVATE KEY" => (document.to_bytes(), false),
        "ENCRYPTED PRIVATE KEY" => {
            let passphrase = passphrase.ok_or(KeyPemError::Locked)?;
            let sealed = EncryptedPrivateKeyInfoOwned::from_der(document.as_bytes());
            let sealed = sealed.map_err(|_reason| KeyPemError::Malformed)?;
            let opened = sealed.decrypt(passphrase).map_err(|_reason| KeyPemError::Passphrase)?;
            (opened.to_bytes(), true)
        }
        "RSA PRIVATE KEY" => {
            let algorithm = AlgorithmIdentifierRef { oid: RSA, parameters: Some(AnyRef::NULL) };
            (wrapped(algorithm, document.as_bytes())?, false)
        }
        "EC PRIVATE KEY" => (wrapped_ec(document.as_bytes())?, false),
        other => return Err(KeyPemError::Label(other.into())),
    };
    let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(der.as_slice())).map_err(|_reason| {
        // A whole PKCS#8 whose key is not taken is one of another kind.
        PrivateKeyInfoRef::from_der(&der).map_or(KeyPemError::Malformed, |_key| KeyPemError::Kind)
    })?;
    Ok(Parsed { key, encrypted })
}

/// PKCS#8 in PEM, encrypted where there is a passphrase.
pub(crate) fn write_key(key: &KeyPair, passphrase: Option<&[u8]>) -> Result<Zeroizing<String>, KeyPemError> {
    let failed = |_reason| KeyPemError::Encrypt;
    let der = key.serialized_der();
    let Some(passphrase) = passphrase else {
        let document = SecretDocument::try_from(der).map_err(failed)?;
        return document.to_pem("PRIVATE KEY", LineEnding::LF).map_err(failed);
    };
    let salt: [u8; 16] = random_bytes().map_err(|_none| KeyPemError::Encrypt)?;
    let iv: [u8; 16] = random_bytes().map_err(|_none| KeyPemError::Encrypt)?;
    let parameters = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(ROUNDS, &salt, iv);
    let parameters = parameters.map_err(|_reason| KeyPemError::Encrypt)?;
    let info = PrivateKeyInfoRef::from_der(der).map_err(failed)?;
    let sealed = info.encrypt_with_params(parameters, passphrase).map_err(|_reason| KeyPemError::Encrypt)?;
    sealed.to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).map_err(failed)
}

/// What OWASP asks of PBKDF2-HMAC-SHA256: about a third of a second, once for each start.
const ROUNDS: u32 = 600_000;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// The one PEM block of a text, without what stands around it. OpenSSL writes the curve of an EC key in a block before it.
fn only_block(text: &str) -> Result<Zeroizing<String>, KeyPemError> {
    let mut found = None;
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, body) = after.split_once("-----").ok_or(KeyPemError::NotPem)?;
        let end = format!("-----END {label}-----");
        let (body, after) = body.split_once(&end).ok_or(KeyPemError::NotPem)?;
        rest = after;
        if label == "EC PARAMETERS" {
            continue;
        }
        if found.is_some() {
            return Err(KeyPemError::Several);
        }
        let mut block = Zeroizing::new(String::with_capacity(body.len() + 2 * end.len() + 16));
        for part in ["-----BEGIN ", label, "-----\n"] {
            block.push_str(part);
        }
        // Blank lines, carriage returns and indentation, as they come out of a careless YAML file, mean nothing.
        for line in body.lines().map(str::trim).filter(|line| !line.is_empty()) {
            block.push_str(line);
            block.push('\n');
        }
        block.push_str(&end);
        block.push('\n');
        found = Some(block);
    }
    found.ok_or(KeyPemError::NotPem)
}

fn wrapped(algorithm: AlgorithmIdentifierRef<'_>, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyPemError> {
    let malformed = |_reason| KeyPemError::Malformed;
    let key = OctetStringRef::new(key).map_err(malformed)?;
    let info = PrivateKeyInfoRef::new(algorithm, key);
    info.to_der().map(Zeroizing::new).map_err(malformed)
}

/// RFC 5915: the curve is inside, and PKCS#8 wants it outside.
fn wrapped_ec(der: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyPemError> {
    use pkcs8::der::{Reader, SliceReader, TagNumber};
    let malformed = |_reason| KeyPemError::Malformed;
    let mut reader = SliceReader::new(der).map_err(malformed)?;
    let curve = reader.sequence(|fields| {
        let _version: u8 = fields.decode()?;
        let _key: &OctetStringRef = fields.decode()?;
        let curve = ContextSpecific::<ObjectIdentifier>::decode_explicit(fields, TagNumber(0))?;
        while !fields.is_finished() {
            let _more: AnyRef<'_> = fields.decode()?;
        }
        Ok::<_, pkcs8::der::Error>(curve)
    });
    let curve = curve.map_err(malformed)?.ok_or(KeyPemError::Malformed)?.value;
    wrapped(AlgorithmIdentifierRef { oid: EC, parameters: Some(AnyRef::from(&curve)) }, der)
}
