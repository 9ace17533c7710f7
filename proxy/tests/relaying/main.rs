//! The data plane with real sockets, real mutual TLS and real applications, and no control plane: snapshots and
//! credentials are handed in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and its tasks end with its runtime"
)]

mod common;

mod bodies_are_streamed_with_bounded_memory;
mod changes_take_effect_without_loss;
mod control_plane_is_followed;
mod grpc_streams_both_ways;
mod mesh_port_takes_only_the_mesh;
mod requests_are_decided_and_forwarded;
mod smuggled_requests_are_refused;
mod tcp_is_tunnelled;
mod the_applications_port_is_its_users;
mod websockets_pass;
