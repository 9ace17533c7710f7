//! JWT-SVIDs: the keys that sign them, and the signing.
//!
//! ```text
//!  trust state (store): public halves, times ──▶ bundle of the trust domain ──▶ everybody who checks tokens
//!  key store: private halves (jwt-<key id>)  ──▶ signers of this replica
//!  IssueJwtSvids: node ─▶ registration ─▶ audience ─▶ sign ─▶ record ─▶ reply
//! ```
//!
//! # Invariants
//! - A key is in the bundle before it signs (five refresh hints before, but for the very first), and until the last token that it
//!   signed has expired.
//! - A token is on record, durably, before anybody has it. The token itself is nowhere but in the reply.
//! - Each replica signs with keys of its own; the bundle holds those of all.

mod config;
mod issue;
pub(crate) mod keys;
mod upkeep;

pub use self::{
    config::{JwtConfig, JwtConfigError},
    upkeep::JwtKeyError,
};
pub(crate) use self::{
    issue::{IssuedJwt, JwtFacts, JwtIssueError},
    upkeep::JwtKeys,
};
