use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use crate::{
    Algorithm, KeyKind, PublicKey, PublicKeyError, UnknownAlgorithm,
    key::{Material, coordinates},
};

/// A public key with what its owner says about it.
///
/// **Source**: RFC 7517 §4, RFC 7518 §6, RFC 8037 §2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwk {
    key: PublicKey,
    key_id: Option<String>,
    algorithm: Option<Algorithm>,
    usage: Option<String>,
}

impl Jwk {
    /// A key of this name (`kid`).
    pub fn new(key_id: impl Into<String>, key: PublicKey) -> Self {
        Self { key, key_id: Some(key_id.into()), algorithm: None, usage: None }
    }

    /// The same, for this use alone: `sig`, or `jwt-svid` in a SPIFFE bundle.
    #[must_use]
    pub fn with_usage(self, usage: impl Into<String>) -> Self {
        Self { usage: Some(usage.into()), ..self }
    }

    /// The same, for this algorithm alone. One that is not of the key's kind makes a key that verifies nothing.
    #[must_use]
    pub fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm: Some(algorithm), ..self }
    }

    /// Reads one key of a set.
    ///
    /// # Errors
    /// When it is of a kind or for a use that is not wanted here, malformed, or holds private numbers.
    pub fn from_json(members: &Map<String, Value>) -> Result<Self, JwkError> {
        // A private key that was published is everybody's: what it signed proves nothing.
        if let Some(member) = PRIVATE.iter().find(|name| members.contains_key(**name)) {
            return Err(JwkError::Private(member));
        }
        let text = |name: &'static str| match members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(JwkError::Member(name)),
        };
        let usage = text("use")?;
        if let Some(other) = usage.filter(|usage| !USES.contains(usage)) {
            return Err(JwkError::Use(other.chars().take(40).collect()));
        }
        if let Some(operations) = members.get("key_ops") {
            let operations = operations.as_array().ok_or(JwkError::Member("key_ops"))?;
            if !operations.iter().any(|operation| operation == "verify") {
                return Err(JwkError::Use("key_ops without \"verify\"".into()));
            }
        }
        let key_id = text("kid")?.map(str::to_owned);
        if key_id.as_ref().is_some_and(|id| id.len() > MAX_KEY_ID) {
            return Err(JwkError::Member("kid"));
        }
        let key = public_key(members)?;
        let algorithm = text("alg")?.map(str::parse).transpose()?;
        if let Some(algorithm) = algorithm.filter(|algorithm: &Algorithm| algorithm.key_kind() != key.kind()) {
            return Err(JwkError::Mismatch { algorithm, kind: key.kind() });
        }
        Ok(Self { key, key_id, algorithm, usage: usage.map(str::to_owned) })
    }

    /// As a member of `keys`.
    pub fn to_json(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut object = match &self.key.0 {
            Material::Rsa { modulus, exponent } => {
                json!({"kty": "RSA", "n": encode(modulus), "e": encode(exponent)})
            }
            Material::P256(point) => {
                let (x, y) = coordinates(point);
                json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)})
            }
            Material::P384(point) => {
                let (x, y) = coordinates(point);
                json!({"kty": "EC", "crv": "P-384", "x": encode(x), "y": encode(y)})
            }
            Material::Ed25519(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key)}),
        };
        let said = [
            ("kid", self.key_id.as_deref()),
            ("alg", self.algorithm.map(Algorithm::as_str)),
            ("use", self.usage.as_deref()),
        ];
        if let Some(members) = object.as_object_mut() {
            let said = said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
            members.extend(said);
        }
        object
    }

    /// The key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Its name (`kid`).
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// The only algorithm that its owner uses it with, where the owner says so (`alg`).
    pub fn algorithm(&self) -> Option<Algorithm> {
        self.algorithm
    }

    /// What it is for (`use`): `sig`, `jwt-svid`, or not said.
    pub fn usage(&self) -> Option<&str> {
        self.usage.as_deref()
    }

    /// Whether it may check signatures of this algorithm.
    pub fn allows(&self, algorithm: Algorithm) -> bool {
        algorithm.key_kind() == self.key.kind() && self.algorithm.is_none_or(|own| own == algorithm)
    }
}

fn public_key(members: &Map<String, Value>) -> Result<PublicKey, JwkError> {
    let text = |name: &'static str| members.get(name).and_then(Value::as_str).ok_or(JwkError::Member(name));
    let bytes = |name: &'static str| URL_SAFE_NO_PAD.decode(text(name)?).map_err(|_reason| JwkError::Member(name));
    let coordinate = |name, size| bytes(name).ok().filter(|b| b.len() == size).ok_or(JwkError::Member(name));
    let wrong_point = |_reason| JwkError::Member("x");
    match text("kty")? {
        "RSA" => Ok(PublicKey::rsa(&bytes("n")?, &bytes("e")?)?),
        "EC" => match text("crv")? {
            "P-256" => {
                let point = [vec![4], coordinate("x", 32)?, coordinate("y", 32)?].concat();
                Ok(PublicKey::p256(point.try_into().map_err(wrong_point)?)?)
            }
            "P-384" => {
                let point = [vec![4], coordinate("x", 48)?, coordinate("y", 48)?].concat();
                Ok(PublicKey::p384(point.try_into().map_err(wrong_point)?)?)
            }
            other => Err(JwkError::Kind(format!("EC {other:.20}"))),
        },
        "OKP" => match text("crv")? {
            "Ed25519" => Ok(PublicKey(Material::Ed25519(coordinate("x", 32)?.try_into().map_err(wrong_point)?))),
            other => Err(JwkError::Kind(format!("OKP {other:.20}"))),
        },
        other => Err(JwkError::Kind(format!("{other:.20}"))),
    }
}

/// Why a key of a set is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// Not an object.
    #[error("it is not an object")]
    NotAnObject,
    /// It holds private numbers, or a shared secret.
    #[error(
        "it has the private member {0:?}: whoever can read the set can sign with it; the issuer must replace the key"
    )]
    Private(&'static str),
    /// It is not for signatures.
    #[error("it is for another use: {0}")]
    Use(String),
    /// A kind of key that is not known.
    #[error("keys of the kind {0} are not used here; RSA, EC P-256, EC P-384 and OKP Ed25519 are")]
    Kind(String),
    /// An algorithm that is not known.
    #[error(transparent)]
    Algorithm(#[from] UnknownAlgorithm),
    /// An algorithm of another kind of key.
    #[error("it names the algorithm {algorithm}, which is not one for {kind} keys")]
    Mismatch {
        /// What it names.
        algorithm: Algorithm,
        /// What it is.
        kind: KeyKind,
    },
    /// A member that is missing or makes no sense.
    #[error("its member {0:?} is missing or malformed")]
    Member(&'static str),
    /// A key that proves nothing.
    #[error(transparent)]
    Key(#[from] PublicKeyError),
    /// The same key under the same name again.
    #[error("it stands in the set already")]
    Twice,
}

/// RFC 7518 §6.2.2, §6.3.2, §6.4.1.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// `jwt-svid` is what SPIFFE bundles have.
const USES: [&str; 2] = ["sig", "jwt-svid"];

pub(crate) const MAX_KEY_ID: usize = 512;
