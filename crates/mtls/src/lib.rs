//! Mutual TLS between SPIFFE identities: one verifier, live credentials, acceptor and connector.
//!
//! ```text
//!   watch of Credentials ──▶ Acceptor ──accept(io)──▶ Accepted  { stream, peer, alpn, server_name }
//!                       └──▶ Connector ─connect(io)─▶ Connected { stream, peer, alpn }
//!                                 │
//!   rustls ──▶ thin verifiers ────┴──▶ verify_peer(chain, bundles, side, now) ──▶ PeerIdentity | VerifyPeerError
//! ```
//!
//! [`grpc`] puts tonic on top: a channel that reconnects with the credentials of the moment, and a stream
//! of accepted connections whose handlers know their peer. [`web`] is HTTPS: documents that are fetched from
//! others, and the few that we publish.
//!
//! Invariants:
//! - [`verify_peer`] is the one judge of peers; both sides of every connection stand on it, and only it
//!   makes a [`PeerIdentity`].
//! - What was taken back is not believed: a handshake holds its peer against the revocations of its credentials, and
//!   [`until_revoked`] tells whoever keeps a connection open when that changes. gRPC connections end by it.
//! - A handshake sees one consistent [`Credentials`](alcazar_identity::Credentials): the certificate that
//!   is shown and the roots that are believed come from the same snapshot.
//! - TLS 1.3 alone between identities ([`web`] PKI takes 1.2 as well); no resumption, no tickets, no early data: each connection is a full handshake, so no
//!   session skips the verifier.
//! - Nothing here reads a clock of its own: the caller passes a [`Clock`].
//! - No other crate of the workspace names rustls: the provider is chosen in one module.

mod accept;
mod connect;
mod expected;
pub mod grpc;
mod handshake;
mod live;
mod machine;
mod peer;
mod provider;
mod refusal;
mod revoked;
mod stream;
mod verifier;
mod verify;
pub mod web;

use std::sync::Arc;
use std::time::SystemTime;

pub use accept::{AcceptError, Accepted, Acceptor, Clients};
pub use connect::{ConnectError, Connected, Connector};
pub use expected::Expected;
pub use live::{CredentialsError, LiveCredentials};
pub use machine::{Machine, MachineError, MachineRoots, MachineRootsError, has_signed};
pub use peer::PeerIdentity;
pub use provider::install_default_provider;
pub use refusal::Refusal;
pub use revoked::until_revoked;
pub use stream::TlsStream;
pub use verify::{IssuerFault, Link, Presented, Roots, Side, TrustDomains, VerifyPeerError, verify_peer};

/// Tells the time; the process has one, and passes it in.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;
