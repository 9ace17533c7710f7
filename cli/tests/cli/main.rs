//! What a person types, and what they are told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod a_ca_that_lies_about_its_ledger_is_caught;
mod certificates_in_words;
mod commands;
mod operators_are_told;
mod the_ledger_is_verified;
