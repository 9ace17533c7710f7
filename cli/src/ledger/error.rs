//! Why a ledger command failed.

use std::io;
use std::path::PathBuf;

use alcazar_ca::ledger::{DecodeEntryError, HeadError};
use alcazar_identity::BundleError;
use alcazar_ledger::merkle::ProofError;

use crate::operator::OperatorError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerCommandError {
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} has no root certificates, in PEM, that can be used", path.display())]
    Roots { path: PathBuf, source: BundleError },
    #[error("the CA shows roots that cannot be used")]
    ShownRoots(#[source] BundleError),
    #[error(
        "{} is not a state that `alcazar ledger verify` has written; give another file, or remove it to begin anew", path.display()
    )]
    State { path: PathBuf, source: serde_json::Error },
    #[error("the head of the ledger is not to be believed (roots from {roots})")]
    Head { roots: String, source: HeadError },
    #[error(
        "this CA has the ledger {found}, and the last head seen was of the ledger {known} (in {}); each replica has its own: keep a state for each. If this is the same CA, its record of what it issued was lost or replaced",
        path.display()
    )]
    OtherLedger { found: String, known: String, path: PathBuf },
    #[error(
        "the ledger does not go on from the head of {known} entries that was seen at {seen}: its past was changed, or it was rolled back; ask who had access to the CA's files, and keep them"
    )]
    Inconsistent { known: u64, seen: String, source: ProofError },
    #[error(
        "the ledger does not go on from the {seen} entries that the replica {replica} has seen and signed for: its past was changed, or it was rolled back; ask who had access to the CA's files, and keep them"
    )]
    Witness { replica: String, seen: u64, source: ProofError },
    #[error("entry {index} ({serial}) is not in the ledger that the CA signed for")]
    NotIncluded { index: u64, serial: String, source: ProofError },
    #[error("entry {index} cannot be read")]
    Entry { index: u64, source: DecodeEntryError },
    #[error(
        "entry {index} is {found} in the ledger, and was listed as {listed}: the CA does not say what is on record"
    )]
    Listed { index: u64, found: String, listed: String },
    #[error("the CA does not list entry {index}, which is among the newest that its signed head covers")]
    NotListed { index: u64 },
    #[error("the CA was asked for {asked} and answered with {found}: it does not say what is on record")]
    Other { asked: String, found: String },
    #[error(
        "the head is of {there} by the CA's clock, and the clock here says {here}: it may hide what was issued since (see --max-age)"
    )]
    Stale { there: String, here: String },
    #[error(
        "these files are of the ledger {found}, and the last head seen was of the ledger {known} (in {})", path.display()
    )]
    OtherFiles { found: String, known: String, path: PathBuf },
    #[error(
        "these files end after {found} entries, and the head that was seen at {seen} had {known}: they are older than that, or were cut; hold them against an earlier state, or ask without --state"
    )]
    OlderFiles { found: u64, known: u64, seen: String },
    #[error(
        "the first {known} entries in these files are not those of the head that was seen at {seen}: they were changed; ask who had access, and keep them"
    )]
    ChangedFiles { known: u64, seen: String },
    #[error(transparent)]
    Files(#[from] alcazar_ledger::OpenError),
}

impl From<tonic::Status> for LedgerCommandError {
    fn from(status: tonic::Status) -> Self {
        Self::Operator(status.into())
    }
}
