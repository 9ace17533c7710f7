//! Several processes that are one CA: a data folder each, a store that they share.
//!
//! ```text
//! <dataDir>/lock               held by the process that has the folder open
//! <dataDir>/replica            its id: random, made once
//!
//! ca/trust/active-<id>         the intermediate that the replica signs with
//! ca/replicas/<id>             how the replica is: it says so every 15 seconds, and at each change
//! ca/joining/requests/<id>     a replica asks the others for an intermediate, sealed by the secret that all have
//! ca/joining/answers/<id>      and gets it
//! ca/proofs/<ledger>           that a ledger's head goes on from what others have seen of it
//! ca/witnesses/<ledger>/<id>   how much of it a replica has seen
//! ```
//!
//! # Invariants
//! - A ledger and a key file have one writer: whoever holds the lock.
//! - The id is on the disk before anything else bears it.
//! - Where the store knows a root, no replica makes another one.
//! - What another replica gives is checked as if anybody had given it, before anything signs with it.
//! - What only one replica may do is done under a lease, whose holder is the id.

mod config;
mod drain;
mod folder;
mod follow;
mod joining;
mod keeping;
mod letters;
mod presence;
mod sealed;
mod sharing;
mod welcome;
mod witness;

pub use self::{
    config::ReplicasConfig,
    folder::{DataFolderError, ParseReplicaIdError, ReplicaId},
    joining::JoinError,
    letters::{LetterError, read_letter},
    presence::{HeldIntermediate, Phase, Presence, ReplicaState},
    sealed::{SealError, SecretError, open_letter},
};
pub(crate) use self::{folder::DataFolder, joining::open_hierarchy, letters::Shares, presence::Presences};
