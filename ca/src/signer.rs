//! The only holder of a CA key.

use std::{error::Error, fmt, sync::Arc};

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use thiserror::Error;

/// Signs with a CA key that nobody else sees: one read from a file, or one that a PKCS#11 token keeps.
pub trait Signer: Send + Sync {
    /// The algorithm of its signatures.
    fn algorithm(&self) -> &'static SignatureAlgorithm;

    /// The public key's bit string, as a SubjectPublicKeyInfo holds it.
    fn public_key(&self) -> &[u8];

    /// Signs a message. May block.
    ///
    /// # Errors
    /// When the holder of the key cannot or will not.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;

    /// Whether signing waits for something outside of this process: then it belongs on a thread that may block.
    fn is_remote(&self) -> bool {
        false
    }
}

/// Why a signature was not made.
#[derive(Debug, Error)]
#[error("the CA key could not sign")]
pub struct SignError(#[source] pub Box<dyn Error + Send + Sync>);

/// A key in memory, read from a file.
pub(crate) struct KeySigner(KeyPair);

impl KeySigner {
    pub(crate) fn new(key: KeyPair) -> Self {
        Self(key)
    }
}

impl Signer for KeySigner {
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }

    fn public_key(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        SigningKey::sign(&self.0, message).map_err(|error| SignError(Box::new(error)))
    }
}

/// A signer as rcgen wants it.
#[derive(Clone)]
pub(crate) struct SigningHandle(pub(crate) Arc<dyn Signer>);

impl PublicKeyData for SigningHandle {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for SigningHandle {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message).map_err(|error| {
            // rcgen's error has no room for the cause.
            tracing::error!(error = %alcazar_service::process::chain(&error), "a CA key could not sign");
            rcgen::Error::RemoteKeyError
        })
    }
}

impl fmt::Debug for dyn Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(redacted)")
    }
}
