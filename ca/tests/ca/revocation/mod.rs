//! What is taken back is issued no more and is told to every node, signed; what is given back is new.
#![allow(clippy::print_stderr, reason = "one of them measures")]

mod ahead;
mod certificates;
mod crls;
mod crowd;
mod federated;
pub(crate) mod hands;
mod identities;
mod imported;
mod intermediates;
mod offline;
mod records;
mod told;
