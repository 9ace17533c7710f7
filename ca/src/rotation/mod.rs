//! Exchanging a root, an intermediate or a JWT key while everybody goes on: a machine of plain data.
//!
//! ```text
//!            make B        trust {A,B}         sign by B       sign by B         trust {B}
//!  Prepare ────────▶ Distribute ────────▶ Switch ─────▶ Reissue ────────▶ Retire ────────▶ Forget ──▶ Done
//!                 everybody holds      every CA        no leaf under A   everybody holds   A's key
//!                   both                signs by B       is left          B alone          is gone
//!     │                │                   │               │                 │
//!     └ forget B       └ Retire B          └── Switch back ┘                 └ Distribute back      (abort)
//! ```
//!
//! The way back is the same machine with A and B exchanged, entered where the present state allows. An intermediate has no
//! Distribute and no Retire: whoever verifies a leaf believes roots, and the chain comes with the leaf.
//!
//! # Invariants
//! - Any two live peers can verify each other at every moment, whatever crashes, is late or is cut off, unless a person has
//!   forced a wait and was told who would break.
//! - Nothing is inferred from silence. Who reports is waited for by its reports; who never reports by time that was measured,
//!   not read from a clock; who has fallen silent is named, and only a person goes past it.
//! - Each phase says how the world should be, not what to do: an action may be executed never, once, twice or late. What is
//!   late is refused by its step, because each phase puts its own step on the trust state before its gate is looked at.

mod asks;
mod clusters;
mod driver;
mod gate;
mod jwt;
mod machine;
mod observe;
mod parties;
mod records;
mod state;
mod world;

pub use self::clusters::{ClusterConfig, ClusterConfigError};
pub(crate) use self::{
    asks::{RotationError, Shown},
    clusters::{PATH as STATE_PATH, StateError, check as check_clusters},
    driver::{NoteError, Reissue, Rotations},
    gate::{Standing, Wait, Why},
    machine::{Action, NotAborted, NotForced},
    parties::{Class, Limits, Observations, Observed, Party, Report, Role, Timed, Trust},
    records::{Adopted, Note, Unreported},
    state::{Anchor, Kind, Phase, Rotation},
};

#[cfg(test)]
mod tests;
