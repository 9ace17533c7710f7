use crate::{Algorithm, Claims, ClaimsError, Expectations, Jwk, Jwks, KeyKind, ParseTokenError, Token};

/// Reads a token, checks its signature, and that it is for us, now.
///
/// # Errors
/// [`VerifyError::UnknownKey`] when its key is not in the set: whoever can fetch a newer set may do so, and ask again.
/// Every other error is final.
pub fn verify(token: &str, keys: &Jwks, expected: &Expectations<'_>) -> Result<Claims, VerifyError> {
    let claims = Token::parse(token)?.verify(keys)?;
    claims.meet(expected)?;
    Ok(claims)
}

impl Token<'_> {
    /// What the token says, if one of these keys signed it. Whether it is for us, and good now, is [`Claims::meet`]'s.
    ///
    /// # Errors
    /// When none did, or the claims make no sense.
    pub fn verify(self, keys: &Jwks) -> Result<Claims, VerifyError> {
        let algorithm = self.header().algorithm;
        let good = |key: &Jwk| key.key().verify(algorithm, self.signed.as_bytes(), &self.signature).is_ok();
        let fitting = |key: &&Jwk| key.allows(algorithm);
        let signed = match &self.header().key_id {
            Some(key_id) => {
                let Some(first) = keys.named(key_id).next() else {
                    return Err(VerifyError::UnknownKey(key_id.clone()));
                };
                if !keys.named(key_id).any(|key| key.allows(algorithm)) {
                    let (key_id, kind) = (key_id.clone(), first.key().kind());
                    return Err(VerifyError::Algorithm { key_id, kind, algorithm });
                }
                keys.named(key_id).filter(fitting).any(good)
            }
            // Where there is a choice, the token must make it.
            None => {
                let mut fitting = keys.keys().iter().filter(fitting);
                let (Some(only), None) = (fitting.next(), fitting.next()) else {
                    return Err(VerifyError::NoKeyId(algorithm));
                };
                good(only)
            }
        };
        if signed { Ok(Claims::from_json(self.payload)?) } else { Err(VerifyError::Signature) }
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a token.
    #[error("it is not a token that can be read")]
    Token(#[from] ParseTokenError),
    /// Signed with a key that is not in the set; a newer set may have it.
    #[error("the token is signed with the key {0:?}, which is not among the issuer's keys known here")]
    UnknownKey(String),
    /// It names no key, and not exactly one fits.
    #[error("the token names no key (\"kid\"), and there is not exactly one key for {0}")]
    NoKeyId(Algorithm),
    /// The key that it names is not for its algorithm.
    #[error("the token is signed by {algorithm}, for which the issuer's {kind} key {key_id:?} is not used")]
    Algorithm {
        /// The key.
        key_id: String,
        /// What it is.
        kind: KeyKind,
        /// What the token says.
        algorithm: Algorithm,
    },
    /// Made by somebody else, or altered.
    #[error("the token's signature is wrong: it was altered, or signed with another key of the same name")]
    Signature,
    /// Not for us, or not now.
    #[error("the token's claims are refused")]
    Claims(#[from] ClaimsError),
}
