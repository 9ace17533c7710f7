//! Join tokens: what a new node shows once.

use std::{fmt, str::FromStr};

use alcazar_identity::Fingerprint;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::digest;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::serial::{NoRandomness, random_bytes};

/// A secret that admits one node once, with the pin by which the node knows the CA.
///
/// **Shape**: `alcazar-join-v1.<32 random bytes, base64url>.<SHA-256 of the root's DER, hexadecimal>`.
#[derive(Clone)]
pub struct JoinToken {
    secret: Zeroizing<[u8; SECRET]>,
    pin: TrustPin,
}

/// The fingerprint of the root that a node must find at the top of the CA's chain.
pub type TrustPin = Fingerprint;

impl JoinToken {
    /// A fresh token.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random(pin: TrustPin) -> Result<Self, NoRandomness> {
        Ok(Self { secret: Zeroizing::new(random_bytes()?), pin })
    }

    /// The text to hand out. It is the secret: show it to whom it is for.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}.{}.{}", URL_SAFE_NO_PAD.encode(*self.secret), self.pin))
    }

    /// The root it pins.
    pub fn pin(&self) -> TrustPin {
        self.pin
    }

    /// What the CA keeps instead of it.
    pub fn hash(&self) -> TokenHash {
        let digest = digest::digest(&digest::SHA256, &*self.secret);
        TokenHash(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl FromStr for JoinToken {
    type Err = ParseJoinTokenError;

    /// Reads a token; white space around it means nothing. Errors never quote it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(secret), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseJoinTokenError::Shape);
        };
        let secret = secret_of(secret).ok_or(ParseJoinTokenError::Secret)?;
        // As it is written and in no other way, so that one token has one text.
        let pin: TrustPin = pin.parse().map_err(|_reason| ParseJoinTokenError::Pin).and_then(|parsed: TrustPin| {
            if parsed.to_string() == pin { Ok(parsed) } else { Err(ParseJoinTokenError::Pin) }
        })?;
        Ok(Self { secret, pin })
    }
}

/// Never shows the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken(pin {})", self.pin)
    }
}

/// The SHA-256 of a token's secret, in hexadecimal: what is stored, and what a log may show.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash(String);

impl TokenHash {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseJoinTokenError {
    /// Not three parts with the right beginning.
    #[error("a join token has the shape {PREFIX}.<secret>.<pin>")]
    Shape,
    /// The secret is not 32 bytes in base64url.
    #[error("the join token's secret is cut or altered")]
    Secret,
    /// The pin is not a SHA-256.
    #[error("the join token's pin is cut or altered")]
    Pin,
}

const PREFIX: &str = "alcazar-join-v1";
const SECRET: usize = 32;

/// Decodes a secret without leaving a copy of it behind.
fn secret_of(text: &str) -> Option<Zeroizing<[u8; SECRET]>> {
    // The decoder wants room for its estimate, which may be a little more than what comes out.
    let mut room = Zeroizing::new([0; SECRET + 4]);
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut *room).ok()?;
    (length == SECRET).then_some(())?;
    Some(Zeroizing::new(*room.first_chunk()?))
}
