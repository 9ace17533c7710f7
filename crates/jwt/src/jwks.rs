use serde_json::{Value, json};

use crate::{JsonError, Jwk, JwkError, json};

/// The keys of an issuer.
///
/// **Source**: RFC 7517 §5.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jwks {
    keys: Vec<Jwk>,
    skipped: Vec<Skipped>,
}

/// A key of a document that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its place in the document, from zero.
    pub place: usize,
    /// Its name, where it has one.
    pub key_id: Option<String>,
    /// Why.
    pub reason: JwkError,
}

impl Jwks {
    /// Reads a JWKS document. Keys that are not for signatures, or of a kind that is not known, are skipped and noted: an
    /// issuer may have others for other readers. Several keys of one name are kept; a token is checked with each.
    ///
    /// # Errors
    /// When it is no such document, or of a size that no honest issuer has.
    pub fn parse(document: &[u8]) -> Result<Self, JwksError> {
        if document.len() > MAX_DOCUMENT {
            return Err(JwksError::TooLong(document.len()));
        }
        let document = json::object(document)?;
        let entries = document.get("keys").and_then(Value::as_array).ok_or(JwksError::NoKeys)?;
        if entries.len() > MAX_KEYS {
            return Err(JwksError::TooMany(entries.len()));
        }
        let mut jwks = Self::default();
        for (place, entry) in entries.iter().enumerate() {
            let members = entry.as_object().ok_or(JwkError::NotAnObject);
            match members.and_then(Jwk::from_json) {
                Ok(key) if !jwks.keys.contains(&key) => jwks.keys.push(key),
                outcome => {
                    let key_id = entry.get("kid").and_then(Value::as_str).map(|id| id.chars().take(80).collect());
                    let reason = outcome.err().unwrap_or(JwkError::Twice);
                    jwks.skipped.push(Skipped { place, key_id, reason });
                }
            }
        }
        Ok(jwks)
    }

    /// The document.
    pub fn to_json(&self) -> Value {
        json!({"keys": self.keys.iter().map(Jwk::to_json).collect::<Vec<_>>()})
    }

    /// The keys, in the order of the document.
    pub fn keys(&self) -> &[Jwk] {
        &self.keys
    }

    /// What stood in the document and is not used.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The keys of this name: one, as a rule.
    pub fn named<'a>(&'a self, key_id: &'a str) -> impl Iterator<Item = &'a Jwk> + 'a {
        self.keys.iter().filter(move |key| key.key_id() == Some(key_id))
    }
}

impl FromIterator<Jwk> for Jwks {
    fn from_iter<I: IntoIterator<Item = Jwk>>(keys: I) -> Self {
        Self { keys: keys.into_iter().collect(), skipped: Vec::new() }
    }
}

/// Why a document is not a set of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Larger than any honest one.
    #[error("the JWKS document has {0} bytes; at most {MAX_DOCUMENT} are read")]
    TooLong(usize),
    /// Not a JSON object.
    #[error("the JWKS document cannot be read")]
    Json(#[from] JsonError),
    /// No array `keys`.
    #[error("the JWKS document has no array \"keys\"")]
    NoKeys,
    /// More keys than any honest one.
    #[error("the JWKS document has {0} keys; at most {MAX_KEYS} are read")]
    TooMany(usize),
}

const MAX_DOCUMENT: usize = 1 << 20;
const MAX_KEYS: usize = 256;
