//! The store on a disk: what the trait promises, after a kill and after damage too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod damage_is_told;
mod kill_loses_nothing_acknowledged;
mod sled_conforms;
