use std::fmt;

use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// The private key of an SVID: PKCS#8 DER, zeroized when dropped, never printed.
#[derive(Clone)]
pub struct SvidKey {
    pkcs8: Zeroizing<Vec<u8>>,
    /// Kept: to derive it costs as much as a signature.
    public_key: Box<[u8]>,
}

impl SvidKey {
    /// A key from PKCS#8 DER: ECDSA P-256 or P-384, Ed25519, or RSA.
    ///
    /// # Errors
    /// When it is not such a key.
    pub fn from_pkcs8(der: impl Into<Vec<u8>>) -> Result<Self, KeyError> {
        let pkcs8 = Zeroizing::new(der.into());
        let public_key = public_key(&pkcs8)?.into();
        Ok(Self { pkcs8, public_key })
    }

    /// A key from the first `PRIVATE KEY` block of a PEM text.
    ///
    /// # Errors
    /// When there is none, or it is not a key that [`SvidKey::from_pkcs8`] takes.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let mut key = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::NoPem)?;
        let parsed = Self::from_pkcs8(key.secret_pkcs8_der());
        zeroize::Zeroize::zeroize(&mut key);
        parsed
    }

    /// The PKCS#8 DER. The caller must not let it outlive the key.
    pub fn secret_pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key as PEM, for those who asked for a file or speak SDS.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(crate::pem::pem_block("PRIVATE KEY", &self.pkcs8))
    }

    /// The key as rustls takes it.
    pub fn to_private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }

    /// The public half, as the bit string of a certificate's SubjectPublicKeyInfo holds it.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

/// The public half of a key in PKCS#8.
fn public_key(pkcs8: &[u8]) -> Result<Vec<u8>, KeyError> {
    let random = ring::rand::SystemRandom::new();
    let ecdsa = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &random);
    if let Ok(pair) = ecdsa(&signature::ECDSA_P256_SHA256_ASN1_SIGNING) {
        return Ok(pair.public_key().as_ref().to_vec());
    }
    if let Ok(pair) = ecdsa(&signature::ECDSA_P384_SHA384_ASN1_SIGNING) {
        return Ok(pair.public_key().as_ref().to_vec());
    }
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8) {
        return Ok(pair.public_key().as_ref().to_vec());
    }
    match RsaKeyPair::from_pkcs8(pkcs8) {
        Ok(pair) => Ok(pair.public_key().as_ref().to_vec()),
        Err(rejected) => Err(KeyError::Unusable(rejected)),
    }
}

impl fmt::Debug for SvidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SvidKey(redacted)")
    }
}

/// Why bytes are not a private key that an SVID can have.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    /// The PEM has no `PRIVATE KEY` block.
    #[error("the PEM has no PKCS#8 \"PRIVATE KEY\" block")]
    NoPem,
    /// Not PKCS#8, or of an algorithm or size that nobody here uses.
    #[error("the key is not a PKCS#8 key of P-256, P-384, Ed25519 or RSA: {0}")]
    Unusable(ring::error::KeyRejected),
}
