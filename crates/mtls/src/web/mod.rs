//! HTTPS at the edges of the mesh: documents that are fetched from others, and the few that we publish.
//!
//! ```text
//!   HttpsUrl ──▶ WebClient ──fetch──▶ bytes   (JWKS, OIDC discovery, SPIFFE bundle documents)
//!                   │ trust: the system's roots │ roots from PEM │ a SPIFFE bundle and the server's identity
//!   PEM files │ live SVID ──▶ WebAcceptor ──accept(io)──▶ TlsStream
//! ```
//!
//! Web PKI names servers by DNS and asks clients for no certificate, so nothing here makes a
//! [`PeerIdentity`](crate::PeerIdentity) for anybody to authorise. A server that is known by its SPIFFE ID is judged
//! by [`verify_peer`](crate::verify_peer), as everywhere.
//!
//! - TLS 1.2 or later with web PKI; 1.3 alone with SPIFFE, where no session is resumed.
//! - A fetch is bounded in time and in bytes, follows no redirect, and looks for no proxy in the environment.

mod client;
mod error;
mod fetch;
mod server;
mod url;

pub use client::WebClient;
pub use error::{FetchError, RootsError, ServerFilesError};
pub use fetch::{Document, Fetched, Limits};
pub use server::{LOOK_AT_FILES, ServerFiles, WebAcceptor};
pub use url::{HttpsUrl, ParseHttpsUrlError};
