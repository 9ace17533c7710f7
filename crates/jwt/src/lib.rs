//! JWTs and JWKS: parse, verify, sign.
//!
//! ```text
//!  JWKS document ──Jwks::parse──▶ Jwks ─────────────┐
//!  "header.payload.signature" ──Token::parse──▶ Token ──verify──▶ Claims ──meet(&Expectations)──▶ who it is
//!                                                 unproved          the key signed them    and they are for us, now
//!  claims ──sign(&header, &claims, &dyn SignJwt)──▶ "header.payload.signature"
//! ```
//!
//! # Invariants
//! - An algorithm is one of [`Algorithm`]: there is no `none` and no HMAC, so that a public key is never a shared secret.
//! - A key verifies with the algorithms of its own kind, and only with its own where it names one; the token chooses among
//!   the caller's keys and never brings one (`jwk`, `jku`, `x5c` and `x5u` in a header mean nothing).
//! - A token without an end is refused. A claim is read after the signature is good; before, issuer and end may be
//!   looked at, to choose who decides and for how long that is remembered.
//! - A text has one meaning: strict base64url, no member twice, nothing that a verifier must understand and does not.
//! - Nothing here reads a clock, a file or a socket; `now` is an argument.
//!
//! **Source**: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518 (algorithms), RFC 7519 (JWT), RFC 7638 (thumbprints), RFC 8037
//! (Ed25519), RFC 8725 (best practice).

mod algorithm;
mod claims;
mod der;
mod ecdsa;
mod json;
mod jwk;
mod jwks;
mod key;
mod moment;
mod sign;
mod token;
mod verify;

pub use algorithm::{Algorithm, KeyKind, UnknownAlgorithm};
pub use claims::{Claims, ClaimsError, Expectations, Issuer};
pub use ecdsa::{EcdsaDerError, fixed_of_der};
pub use json::{JsonError, object};
pub use jwk::{Jwk, JwkError};
pub use jwks::{Jwks, JwksError, Skipped};
pub use key::{PublicKey, PublicKeyError, WrongSignature};
pub use sign::{SignError, SignJwt, sign};
pub use token::{Header, ParseTokenError, Token};
pub use verify::{VerifyError, verify};
