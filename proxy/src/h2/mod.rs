//! HTTP/2, by the `h2` crate: between proxies, and for applications that speak it in clear.
//!
//! Invariants:
//! - A body is read only as fast as the other side takes it: window updates follow what was passed on.
//! - A stream that breaks is reset, never ended as if it were complete.

mod client;
mod pump;
mod received;
mod server;
mod stream;

pub(crate) use client::{Channel, SendError};
pub(crate) use received::Received;
pub(crate) use server::serve;
pub(crate) use stream::H2Stream;

/// What one stream may have in flight.
const STREAM_WINDOW: u32 = 1 << 20;
/// What all streams of a connection together may have in flight: this bounds a connection's memory.
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_FRAME: u32 = 32 * 1024;
const MAX_HEADERS: u32 = 64 * 1024;
const MAX_STREAMS: u32 = 4096;
const MAX_SEND_BUFFER: usize = 256 * 1024;
