use std::time::SystemTime;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use crate::{Algorithm, JsonError, UnknownAlgorithm, json, jwk::MAX_KEY_ID, moment};

/// A token that was read, but of which nothing is proved.
///
/// **Source**: RFC 7515 §3.1, §5.2; RFC 7519 §7.2.
#[derive(Debug, Clone)]
pub struct Token<'a> {
    header: Header,
    pub(crate) payload: Map<String, Value>,
    /// Header and payload as they were signed.
    pub(crate) signed: &'a str,
    pub(crate) signature: Vec<u8>,
}

/// What a token says about its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// How it is signed (`alg`).
    pub algorithm: Algorithm,
    /// With which key (`kid`).
    pub key_id: Option<String>,
    /// What kind of token it says it is (`typ`).
    pub kind: Option<String>,
}

impl<'a> Token<'a> {
    /// Reads a token in the compact form.
    ///
    /// # Errors
    /// When it is none, longer than an honest one, or asks for something that is not understood here.
    pub fn parse(text: &'a str) -> Result<Self, ParseTokenError> {
        if text.len() > MAX_TOKEN {
            return Err(ParseTokenError::TooLong(text.len()));
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseTokenError::Shape);
        };
        let signed = text.get(..header.len() + 1 + payload.len()).ok_or(ParseTokenError::Shape)?;
        let bytes = |part, text| URL_SAFE_NO_PAD.decode(text).map_err(|_reason| ParseTokenError::Base64(part));
        let object =
            |part, text| json::object(&bytes(part, text)?).map_err(|source| ParseTokenError::Json { part, source });
        Ok(Self {
            header: Header::from_json(&object("header", header)?)?,
            payload: object("payload", payload)?,
            signed,
            signature: bytes("signature", signature)?,
        })
    }

    /// What it says about its signature.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Who it claims to be from (`iss`), to choose whose keys decide. Nothing is proved by it.
    pub fn claimed_issuer(&self) -> Option<&str> {
        self.payload.get("iss").and_then(Value::as_str)
    }

    /// When it claims to end (`exp`), for whoever has others vouch for it and remembers what they said. Nothing is proved
    /// by it.
    pub fn claimed_end(&self) -> Option<SystemTime> {
        self.payload.get("exp").and_then(moment::parse)
    }

    /// Whom it claims to be for (`aud`), for whoever has others verify it and need not ask when it is for somebody else;
    /// `None` where it does not say. Nothing is proved by it.
    pub fn claimed_audiences(&self) -> Option<Vec<&str>> {
        match self.payload.get("aud")? {
            Value::String(one) => Some(vec![one]),
            Value::Array(several) => Some(several.iter().filter_map(Value::as_str).collect()),
            _ => Some(Vec::new()),
        }
    }

    /// Whom it claims to be about (`sub`), to choose the trust domain whose keys decide. Nothing is proved by it.
    pub fn claimed_subject(&self) -> Option<&str> {
        self.payload.get("sub").and_then(Value::as_str)
    }
}

impl Header {
    fn from_json(members: &Map<String, Value>) -> Result<Self, ParseTokenError> {
        // It names what a reader must understand, and we understand none of it.
        if members.contains_key("crit") {
            return Err(ParseTokenError::Critical);
        }
        let text = |name: &'static str| match members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(ParseTokenError::Member(name)),
        };
        let algorithm = text("alg")?.ok_or(ParseTokenError::Member("alg"))?.parse()?;
        let key_id = text("kid")?;
        if key_id.is_some_and(|id| id.len() > MAX_KEY_ID) {
            return Err(ParseTokenError::Member("kid"));
        }
        Ok(Self { algorithm, key_id: key_id.map(str::to_owned), kind: text("typ")?.map(str::to_owned) })
    }
}

/// Why a text is not a token. It never quotes the token, which may be somebody's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    /// Longer than any honest one.
    #[error("the token has {0} bytes; at most {MAX_TOKEN} are read")]
    TooLong(usize),
    /// Not three parts.
    #[error("a token has the shape <header>.<payload>.<signature>")]
    Shape,
    /// Not strict base64url.
    #[error("the token's {0} is not base64url (no padding, no white space)")]
    Base64(&'static str),
    /// Not a strict JSON object.
    #[error("the token's {part} cannot be read")]
    Json {
        /// Header or payload.
        part: &'static str,
        /// What is wrong.
        source: JsonError,
    },
    /// A member of the header is missing or makes no sense.
    #[error("the token header's member {0:?} is missing or malformed")]
    Member(&'static str),
    /// An algorithm that proves nothing here.
    #[error("the token's signature cannot be trusted")]
    Algorithm(#[from] UnknownAlgorithm),
    /// An extension that must be understood.
    #[error("the token's header has \"crit\": it asks for an extension that is not understood here")]
    Critical,
}

/// A ServiceAccount token is below 2 KB; one with many groups below 10.
const MAX_TOKEN: usize = 16 * 1024;
