//! Tokens and key sets: what is accepted, and everything that is not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

mod key_sets_are_read;
mod published_examples_hold;
mod tokens_are_verified;
