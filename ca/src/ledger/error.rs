//! Why the ledger did not do what was asked of it.

use std::{io, path::PathBuf};

use alcazar_identity::TrustDomain;
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
    /// Another process goes on with a ledger of the same name.
    #[error("{0}")]
    Forked(String),
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
    /// It is not the one that the CA had.
    #[error(
        "the ledger here is {found}, with {size} entries, but this CA had the ledger {expected}, with at least {signed} entries: it was lost, moved away or exchanged; put its folder back, or restore it from a backup. Where it is lost for good: move the folder `ledger` away, set `ledger: {{replaces: {expected}}}` in the CA's configuration, and a new one begins"
    )]
    Exchanged {
        /// The name of the one that is there.
        found: String,
        /// How many entries it has.
        size: u64,
        /// The name of the one that should be there.
        expected: String,
        /// How many entries a signed head says it had.
        signed: u64,
    },
    /// It was given up.
    #[error("the ledger {ledger} was given up, and {by} goes on after it; put the folder of that one back")]
    Replaced {
        /// Its name.
        ledger: String,
        /// The one after it.
        by: String,
    },
    /// It is somebody else's.
    #[error(
        "the ledger {ledger} is of the trust domain {trust_domain} and its cluster {cluster}, not of this CA; put this CA's own back"
    )]
    OfAnother {
        /// Its name.
        ledger: String,
        /// The trust domain of its CA.
        trust_domain: TrustDomain,
        /// The cluster of its CA.
        cluster: String,
    },
    /// The file of its name.
    #[error("cannot {doing} {}", path.display())]
    Name {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// The file of its name has something else in it.
    #[error("{} does not hold the name of a ledger (32 hexadecimal digits); restore it from a backup, or write the name that `alcazar ledger verify --dir` says of the folder beside it", path.display())]
    NameFile {
        /// The file.
        path: PathBuf,
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
