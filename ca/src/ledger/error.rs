//! Why the ledger did not do what was asked of it.

use alcazar_ledger::{AppendError, OpenError, ReadError, merkle::Hash};
use thiserror::Error;

use super::{DecodeEntryError, EncodeEntryError};
use crate::{records::RecordError, signer::SignError};

/// Why something is not on record, or was not found there.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// It is not on record.
    #[error("it could not be put on record, so nobody gets it")]
    Append(#[from] AppendError),
    /// It is too large.
    #[error(transparent)]
    Encode(#[from] EncodeEntryError),
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An entry is none that this program writes.
    #[error("entry {index} of the ledger cannot be read")]
    Entry {
        /// Its number.
        index: u64,
        /// Why.
        source: DecodeEntryError,
    },
    /// The head was not signed.
    #[error("the ledger's head was not signed")]
    Sign(#[from] SignError),
    /// The head was not kept.
    #[error("the ledger's head was not kept")]
    Records(#[from] RecordError),
    /// The process is ending.
    #[error("reading the ledger was interrupted")]
    Interrupted,
}

/// Why the ledger did not open.
#[derive(Debug, Error)]
pub enum OpenLedgerError {
    /// Its files.
    #[error(transparent)]
    Files(#[from] OpenError),
    /// It has less than it had.
    #[error(
        "the ledger {ledger} has {size} entries, but a head of {signed} entries was signed: it was rolled back (an old backup?); restore all of its folder, as it was last"
    )]
    Shrunk {
        /// Its name.
        ledger: String,
        /// What it has.
        size: u64,
        /// What it had.
        signed: u64,
    },
    /// It has something else than it had.
    #[error(
        "the first {size} entries of the ledger {ledger} have the root {found}, but {signed} was signed: its files were changed; restore all of its folder from a backup, and keep this one as evidence"
    )]
    Changed {
        /// Its name.
        ledger: String,
        /// How many entries were signed for.
        size: u64,
        /// Their root.
        found: Hash,
        /// What it was.
        signed: Hash,
    },
    /// It cannot be compared with its signed head.
    #[error("the ledger cannot be compared with its last signed head")]
    Read(#[from] ReadError),
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] crate::serial::NoRandomness),
    /// The process is ending.
    #[error("opening was interrupted")]
    Interrupted,
}
