//! What is taken back is issued no more and is told to every node, signed; what is given back is new.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test stops at the first surprise; one of them measures"
)]

#[path = "../support/mod.rs"]
mod support;

mod certificates;
mod crls;
mod crowd;
mod hands;
mod identities;
mod intermediates;
mod records;
