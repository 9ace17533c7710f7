//! Envoy's Secret Discovery Service: the secrets that carry an SVID and a trust bundle, and a client that keeps
//! [`alcazar_identity::Credentials`] fresh from an agent's socket.

mod client;
mod held;
mod lists;
mod outbound;
mod secret;

pub use client::{Clock, connect, connect_as};
pub use outbound::Outbound;
pub use secret::{
    ReadBundles, SecretError, bundle_from_secret, bundle_secret, bundles_from_secret, bundles_secret,
    checked_bundle_secret, revocations_from_secret, revocations_secret, svid_from_secret, svid_secret,
};

/// The name of the caller's own certificate.
pub const DEFAULT: &str = "default";
/// The name of the bundle of the caller's own trust domain.
pub const ROOT_CA: &str = "ROOTCA";
/// The name of all bundles, each for its own trust domain.
pub const ALL: &str = "ALL";
/// The name of the signed lists of revocations: a generic secret of `alcazar.ca.v1.SignedRevocations`.
pub const REVOCATIONS: &str = "REVOCATIONS";
