//! Several processes that are one CA: a data folder each, a store that they share.
//!
//! ```text
//! <dataDir>/lock               held by the process that has the folder open
//! <dataDir>/replica            its id: random, made once
//!
//! ca/trust/active-<id>         the intermediate that the replica signs with
//! ca/replicas/<id>             how the replica is: it says so every 15 seconds, and at each change
//! ```
//!
//! # Invariants
//! - A ledger and a key file have one writer: whoever holds the lock.
//! - The id is on the disk before anything else bears it.
//! - What only one replica may do is done under a lease, whose holder is the id.

mod folder;
mod presence;

pub(crate) use self::{folder::DataFolder, presence::Presences};
pub use self::{
    folder::{DataFolderError, ParseReplicaIdError, ReplicaId},
    presence::{HeldIntermediate, Phase, Presence, ReplicaState},
};
