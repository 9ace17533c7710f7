//! The control plane: what it makes of files, and what proxies get.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

mod mistakes_in_a_mesh;
mod proxies_get_their_configuration;
mod the_binary_refuses;
mod worlds;
