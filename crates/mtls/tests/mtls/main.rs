//! Mutual TLS over real sockets, with our own peers and with strangers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod common;

mod grpc;
mod handshake;
mod live_credentials;
mod openssl;
mod revocation;
mod verify_peer;
mod web;
