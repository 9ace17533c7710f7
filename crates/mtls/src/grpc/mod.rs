//! gRPC over mutual TLS: tonic on our acceptor and connector, because its own TLS reads its files once.
//!
//! ```text
//!   channel(target, connector, expected) ──▶ tonic Channel: lazy, reconnects, the credentials of the moment
//!   server().serve_with_incoming(incoming(listener, acceptor)) ──▶ handlers find a PeerInfo in the extensions
//!   dealt(listener, acceptor, lanes) ──▶ the same for several runtimes, a dealer before them
//! ```

mod channel;
mod dealer;
mod handshakes;
mod incoming;
mod seats;
mod stream;

use std::time::Duration;

pub use channel::{ParseTargetError, Target, channel};
pub use dealer::{Dealer, dealt};
pub use incoming::{Bounds, Incoming, incoming, incoming_within};
pub use stream::{MtlsStream, PeerInfo};

/// The one protocol of gRPC, for the ALPN of acceptors and connectors.
pub const ALPN: &[&[u8]] = &[b"h2"];

/// A tonic server that notices dead clients, and does so many things at a time for one of them.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(Some(STREAMS))
}

/// How long a connection may be silent before the other side is asked whether it lives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Streams of one connection; further ones wait at the client.
const STREAMS: u32 = 128;
/// How long it may take to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
