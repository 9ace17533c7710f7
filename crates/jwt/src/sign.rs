use std::error::Error;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{Algorithm, Header};

/// Signs tokens with a key that it holds; it may be far away.
pub trait SignJwt: Send + Sync {
    /// The algorithm of its signatures.
    fn algorithm(&self) -> Algorithm;

    /// Its key's name, by which verifiers find the public half.
    fn key_id(&self) -> &str;

    /// Signs a message. May block.
    ///
    /// **Shape**: as JWS has it; ECDSA is r and s of fixed length ([`crate::fixed_of_der`]).
    ///
    /// # Errors
    /// When the holder of the key cannot or will not.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;
}

/// Makes a token of these claims, with `kind` as its `typ`. Blocks as long as the signer does.
///
/// # Errors
/// When the claims are not a JSON object, or the signer does not sign.
pub fn sign(kind: Option<&str>, claims: &impl Serialize, signer: &dyn SignJwt) -> Result<String, SignError> {
    let header = Header {
        algorithm: signer.algorithm(),
        key_id: Some(signer.key_id().to_owned()),
        kind: kind.map(str::to_owned),
    };
    let claims = serde_json::to_value(claims).ok().filter(Value::is_object).ok_or(SignError::Claims)?;
    let mut token = URL_SAFE_NO_PAD.encode(header.to_json().to_string());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
    let signature = signer.sign(token.as_bytes()).map_err(SignError::Signer)?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}

impl Header {
    fn to_json(&self) -> Value {
        let members =
            [("alg", Some(self.algorithm.as_str())), ("kid", self.key_id.as_deref()), ("typ", self.kind.as_deref())];
        let members = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        Value::Object(members.collect::<Map<_, _>>())
    }
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The claims are not an object.
    #[error("the claims of a token are a JSON object")]
    Claims,
    /// The holder of the key did not sign.
    #[error("the token's key could not sign")]
    Signer(#[source] Box<dyn Error + Send + Sync>),
}
