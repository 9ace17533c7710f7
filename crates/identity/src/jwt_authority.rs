use std::fmt;

use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A public key that signs a trust domain's JWT-SVIDs, and the name (`kid`) by which a token names it.
///
/// The name is 1 to 256 bytes without control characters; the key is a whole SubjectPublicKeyInfo.
///
/// **Source**: SPIFFE Trust Domain and Bundle §4.2.2; JWT-SVID §2.3.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JwtAuthority {
    key_id: String,
    public_key: Vec<u8>,
}

impl JwtAuthority {
    /// The authority of this name, with this key (SubjectPublicKeyInfo in DER).
    ///
    /// # Errors
    /// When the name cannot be one, or the key cannot be read.
    pub fn new(key_id: impl Into<String>, public_key: impl Into<Vec<u8>>) -> Result<Self, JwtAuthorityError> {
        let (key_id, public_key) = (key_id.into(), public_key.into());
        if key_id.is_empty() || key_id.len() > LONGEST_KEY_ID || key_id.chars().any(char::is_control) {
            return Err(JwtAuthorityError::KeyId(key_id));
        }
        match SubjectPublicKeyInfo::from_der(&public_key) {
            Ok(([], _)) => Ok(Self { key_id, public_key }),
            _ => Err(JwtAuthorityError::PublicKey(key_id)),
        }
    }

    /// The name that a token's header gives (`kid`).
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key: SubjectPublicKeyInfo, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

impl fmt::Debug for JwtAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JwtAuthority").field(&self.key_id).finish()
    }
}

/// Why something is not a JWT authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtAuthorityError {
    /// The name.
    #[error("{0:?} cannot be the key id of a JWT authority: 1 to 256 bytes, no control characters")]
    KeyId(String),
    /// The key.
    #[error("the public key of the JWT authority {0:?} is not a SubjectPublicKeyInfo in DER")]
    PublicKey(String),
}

const LONGEST_KEY_ID: usize = 256;
