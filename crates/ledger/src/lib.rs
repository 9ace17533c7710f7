//! An append-only Merkle log (RFC 9162) in checksummed segment files, durable before an append is acknowledged.
//!
//! ```text
//!  append ──┐ hash    ┌── one thread ─────────────────────────────────────────────────┐
//!  append ──┤ queue   │ take all that wait │ one write │ one fdatasync │ acknowledge  │
//!  append ──┘────────▶└────────────────────────────────────────────────────────────────┘
//!                          │ every 2^14 entries, while the next ones are appended
//!  <dir>/000000000000.entries   the entries of a segment, each with its length and checksum
//!  <dir>/000000000000.tree      sealed: every hash of its subtree, where each entry is, sorted indexes
//!  <dir>/000000016384.entries   the open segment: its hashes and indexes are in memory until it is sealed
//!  <dir>/acknowledged           how far the log went, and its root, when an append was last acknowledged
//!
//!  head, inclusion, consistency, entry, search: read what is durable, a few hundred bytes of it for each proof
//! ```
//!
//! # Invariants
//! - **An acknowledged entry is on the disk, and is never cut off again.** A tail that was not acknowledged may be torn by a
//!   power cut: it is removed at the next start, and said. Damage anywhere else is a [`Damage`] that names file and offset.
//! - **A failed fsync ends the log** until it is opened again. What was not known to be durable is then written again, with the
//!   same bytes, and synced: the kernel may show what the disk never had.
//! - **Nothing is shown that is not durable**: heads, proofs and searches see acknowledged entries alone.
//! - **Memory does not grow with the log**: about a hundred bytes for each sealed segment, and one open segment.
//! - **A segment is a full subtree**, so that its hashes never change once it is sealed, and a `.tree` file can be made
//!   again from its entries.

mod append;
mod error;
mod facts;
mod format;
mod health;
mod ledger;
pub mod merkle;
mod open;
mod read;
mod seal;
mod search;
mod segment;
mod state;
mod verify;

pub use append::{Hooks, Observe, Step, SyncData};
pub use error::{AppendError, Damage, OpenError, ReadError};
pub use facts::{Describe, Facts, TERMS, Term};
pub use format::{MAX_ENTRY, examine};
pub use health::Health;
pub use ledger::{Head, Ledger, LogId, Options};
pub use open::Repair;
pub use search::Query;
pub use verify::{Report, verify_files, verify_files_at};
