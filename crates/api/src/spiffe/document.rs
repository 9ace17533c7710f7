//! SPIFFE bundle documents: what a bundle endpoint serves.

use std::time::Duration;

use alcazar_identity::{
    BundleError, CertificateDer, Fingerprint, JwtAuthority, JwtAuthorityError, TrustBundle, TrustDomain,
};
use alcazar_jwt::{JsonError, Jwk, PublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// A bundle from a document, and what of the document was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBundle {
    /// The bundle.
    pub bundle: TrustBundle,
    /// Whether the document says which version it is. Where it does not, the one that was read last is the newest.
    pub numbered: bool,
    /// Keys that are not used.
    pub ignored: Vec<Ignored>,
}

/// A key of a document that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// Its place in the document, from zero.
    pub place: usize,
    /// Why.
    pub reason: String,
}

/// Reads the bundle document of a trust domain. A document does not say whose it is: the reader knows, by where it
/// came from.
///
/// Keys of unknown kind or use are ignored, as the standard asks. A root that cannot be read refuses the whole: half
/// of a bundle would cut off peers that its owner vouches for.
///
/// # Errors
/// When it is no such document, has no root, or is of a size that no honest one has.
///
/// **Source**: SPIFFE Trust Domain and Bundle §4; X509-SVID §6; JWT-SVID §6.
pub fn read_bundle(trust_domain: TrustDomain, document: &[u8]) -> Result<ReadBundle, BundleDocumentError> {
    if document.len() > MAX_DOCUMENT {
        return Err(BundleDocumentError::TooLong(document.len()));
    }
    let document = alcazar_jwt::object(document)?;
    let number = |name: &'static str| match document.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(BundleDocumentError::Number(name)),
    };
    let (sequence, hint) = (number("spiffe_sequence")?, number("spiffe_refresh_hint")?);
    let keys = document.get("keys").and_then(Value::as_array).ok_or(BundleDocumentError::NoKeys)?;
    if keys.len() > MAX_KEYS {
        return Err(BundleDocumentError::TooMany(keys.len()));
    }
    let (mut roots, mut authorities, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
    for (place, key) in keys.iter().enumerate() {
        let key = key.as_object().ok_or(BundleDocumentError::Key { place, what: "it is not an object" })?;
        match key.get("use").and_then(Value::as_str) {
            Some("x509-svid") => roots.push(root(place, key)?),
            Some("jwt-svid") => match jwt_authority(key) {
                Ok(authority) => authorities.push(authority),
                Err(reason) => ignored.push(Ignored { place, reason }),
            },
            Some(other) => {
                let reason = format!("its use is unknown: {other:.40}");
                ignored.push(Ignored { place, reason });
            }
            None => ignored.push(Ignored { place, reason: "it says no use".into() }),
        }
    }
    let bundle = TrustBundle::new(trust_domain, sequence.unwrap_or(0), roots)?
        .with_jwt_authorities(authorities)?
        .with_refresh_hint(hint.filter(|hint| *hint > 0).map(Duration::from_secs));
    Ok(ReadBundle { bundle, numbered: sequence.is_some(), ignored })
}

/// Writes a bundle as a document.
///
/// # Errors
/// When a root's key is of a kind that has no JWK here.
pub fn write_bundle(bundle: &TrustBundle) -> Result<String, BundleDocumentError> {
    let mut keys = Vec::new();
    for root in bundle.roots() {
        let unknown = || BundleDocumentError::RootKey(Fingerprint::of(root));
        let (_, parsed) = X509Certificate::from_der(root).map_err(|_reason| unknown())?;
        let key = PublicKey::from_spki_der(parsed.public_key().raw).map_err(|_reason| unknown())?;
        let mut key = Jwk::new("", key).with_usage("x509-svid").to_json();
        if let Some(members) = key.as_object_mut() {
            // A root has no name; X509-SVIDs name their issuers otherwise.
            members.remove("kid");
            members.insert("x5c".into(), json!([STANDARD.encode(root)]));
        }
        keys.push(key);
    }
    for key in jwt_keys(bundle) {
        keys.push(key?);
    }
    let mut document = json!({"keys": keys, "spiffe_sequence": bundle.sequence()});
    if let (Some(hint), Some(members)) = (bundle.refresh_hint(), document.as_object_mut()) {
        members.insert("spiffe_refresh_hint".into(), hint.as_secs().into());
    }
    Ok(document.to_string())
}

/// Writes the keys for JWT-SVIDs alone, as the Workload API gives them to workloads. A key of a kind that has no JWK here is left
/// out: no token is good by it here either, and the others are not to suffer by it.
///
/// **Source**: SPIFFE Workload API §6.2.2.
pub fn write_jwt_bundle(bundle: &TrustBundle) -> String {
    let keys: Vec<Value> = jwt_keys(bundle).filter_map(Result::ok).collect();
    json!({"keys": keys}).to_string()
}

fn jwt_keys(bundle: &TrustBundle) -> impl Iterator<Item = Result<Value, BundleDocumentError>> {
    bundle.jwt_authorities().map(|authority| match PublicKey::from_spki_der(authority.public_key()) {
        Ok(key) => Ok(Jwk::new(authority.key_id(), key).with_usage("jwt-svid").to_json()),
        Err(_kind) => Err(BundleDocumentError::JwtKey(authority.key_id().into())),
    })
}

/// The one certificate of a root.
fn root(place: usize, key: &Map<String, Value>) -> Result<CertificateDer<'static>, BundleDocumentError> {
    let wrong = |what| BundleDocumentError::Key { place, what };
    let [Value::String(text)] = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default() else {
        return Err(wrong("its x5c is not exactly one certificate"));
    };
    let der = STANDARD.decode(text).map_err(|_reason| wrong("its x5c is not base64"))?;
    let root = CertificateDer::from(der);
    let parsed = match X509Certificate::from_der(&root) {
        Ok(([], parsed)) => parsed,
        _ => return Err(wrong("its x5c is not a certificate")),
    };
    // The key stands there twice. Where both can be read and differ, one of them is a lie.
    let mut bare = key.clone();
    bare.retain(|name, _| matches!(name.as_str(), "kty" | "crv" | "x" | "y" | "n" | "e"));
    let (said, certified) = (Jwk::from_json(&bare).ok(), PublicKey::from_spki_der(parsed.public_key().raw).ok());
    match (said, certified) {
        (Some(said), Some(certified)) if *said.key() != certified => {
            Err(wrong("its key is not the one in its certificate"))
        }
        _ => Ok(root),
    }
}

fn jwt_authority(key: &Map<String, Value>) -> Result<JwtAuthority, String> {
    let jwk = Jwk::from_json(key).map_err(|error| error.to_string())?;
    let key_id = jwk.key_id().ok_or("it has no kid")?;
    JwtAuthority::new(key_id, jwk.key().to_spki_der()).map_err(|error: JwtAuthorityError| error.to_string())
}

/// Why a document is not a bundle, or a bundle has no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleDocumentError {
    /// Larger than any honest one.
    #[error("the bundle document has {0} bytes; at most {MAX_DOCUMENT} are read")]
    TooLong(usize),
    /// Not a JSON object.
    #[error("the bundle document cannot be read")]
    Json(#[from] JsonError),
    /// No array `keys`.
    #[error("the bundle document has no array \"keys\"")]
    NoKeys,
    /// More keys than any honest one.
    #[error("the bundle document has {0} keys; at most {MAX_KEYS} are read")]
    TooMany(usize),
    /// A number that is none.
    #[error("{0:?} in the bundle document is not a whole number of 64 bits")]
    Number(&'static str),
    /// A root that cannot be read.
    #[error("the key at place {place} in the bundle document cannot be used: {what}")]
    Key {
        /// Its place, from zero.
        place: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The keys make no bundle.
    #[error("the bundle document holds no bundle that can be used")]
    Bundle(#[from] BundleError),
    /// A root whose key cannot be written.
    #[error("the root with the SHA-256 fingerprint {0} has a key of a kind that cannot stand in a bundle document")]
    RootKey(Fingerprint),
    /// A key for JWT-SVIDs that cannot be written.
    #[error("the JWT authority {0:?} has a key of a kind that cannot stand in a bundle document")]
    JwtKey(String),
}

/// Far beyond any bundle; most have some kilobytes.
const MAX_DOCUMENT: usize = 1 << 20;
const MAX_KEYS: usize = 256;
