use std::{io, path::PathBuf};

use alcazar_identity::Fingerprint;
use thiserror::Error;

use crate::{authority::AuthorityError, serial::NoRandomness};

/// Why there is no hierarchy to issue from. Each says what to do about it.
#[derive(Debug, Error)]
pub enum HierarchyError {
    /// The folder is gone.
    #[error(
        "the root {fingerprint} is lost: the folder {} is missing; restore it from a backup. Only if the root is gone for good, and every \
         workload may lose its identity, move the whole data folder away to begin with a new root",
        folder.display()
    )]
    Lost {
        /// Where it should be.
        folder: PathBuf,
        /// The root that the store remembers.
        fingerprint: Fingerprint,
    },
    /// The folder holds another root.
    #[error(
        "the root in {} is {found}, but this CA has issued under {expected}; restore the folder from the backup that belongs to this data folder",
        folder.display()
    )]
    Exchanged {
        /// The folder.
        folder: PathBuf,
        /// The root that the store remembers.
        expected: Fingerprint,
        /// The root that is there.
        found: Fingerprint,
    },
    /// A part of the set is missing.
    #[error("the file {} is missing beside others of its set; restore it from a backup", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// A certificate that is not what it should be.
    #[error("the file {} is damaged or of another set; restore it from a backup", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: AuthorityError,
    },
    /// A certificate that does not fit the others, or the configuration.
    #[error(
        "the file {} does not fit: {what}; restore the set from one backup, and check trustDomain in the configuration",
        file.display()
    )]
    Mismatch {
        /// The file.
        file: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A key that cannot be read.
    #[error("the private key in {} cannot be read; restore it from a backup", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: rcgen::Error,
    },
    /// A key that others can read.
    #[error(
        "the private key in {} is open to others (mode {mode:04o}); if nobody else has had it, run: chmod 600 {}",
        file.display(), file.display()
    )]
    Exposed {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The disk refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// A certificate was not made.
    #[error("cannot make a certificate authority")]
    Make(#[source] AuthorityError),
    /// A key was not made.
    #[error("cannot make a key")]
    Generate(#[source] rcgen::Error),
    /// The roots are not a bundle.
    #[error("the root cannot be a trust bundle")]
    Bundle(#[source] alcazar_identity::BundleError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}
