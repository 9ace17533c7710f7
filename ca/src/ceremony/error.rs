use std::{io, path::PathBuf};

use alcazar_identity::TrustDomain;
use thiserror::Error;

use crate::{
    authority::AuthorityError,
    cacerts::CacertsError,
    csr::CsrError,
    hierarchy::HierarchyError,
    keys::{KeyError, ParseKeyLabelError},
    serial::NoRandomness,
};

/// Why a step of the ceremony was not made.
#[derive(Debug, Error)]
pub enum CeremonyError {
    /// The folder is in use.
    #[error("{} has something in it already; a root is made in a folder of its own", .0.display())]
    InUse(PathBuf),
    /// No root there.
    #[error("{} is not the folder of a root: {what}", folder.display())]
    NotARoot {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        what: String,
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
    /// Not a request.
    #[error("{} cannot be used as a request", file.display())]
    Request {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: CsrError,
    },
    /// A request that does not say for whom.
    #[error("{} does not say for which trust domain and cluster it asks; make it with `alcazar ca request`", file.display())]
    Nameless {
        /// The file.
        file: PathBuf,
    },
    /// Another trust domain's.
    #[error(
        "the request is for the trust domain {found}, and this root is that of {expected}; sign it with the root of {found}"
    )]
    TrustDomain {
        /// Whose it is.
        found: TrustDomain,
        /// Whose the root is.
        expected: TrustDomain,
    },
    /// A key that verifiers in the mesh would pay for, or that does not last.
    #[error("the request's key is {0}; an intermediate has P-256 or P-384")]
    Key(String),
    /// A life that makes no sense.
    #[error("a life of {0} days makes no sense here: at least one day, and no longer than the root's own")]
    Life(u64),
    /// The configuration plugs certificates in elsewhere.
    #[error("ca.yaml names {} as cacerts.dir; put the set there yourself, or remove the line", .0.display())]
    Elsewhere(PathBuf),
    /// The set does not fit this CA.
    #[error("the set in {} does not fit this CA", folder.display())]
    Set {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        source: Box<CacertsError>,
    },
    /// Nothing that this root could take back.
    #[error("{what} is not an intermediate that this root has signed; {mend}")]
    NotOurs {
        /// What was named.
        what: String,
        /// What to do.
        mend: &'static str,
    },
    /// What was revoked before cannot be read, and would be forgotten.
    #[error("{} is not what this root has signed last ({what}); put back the file that was carried to the CAs", file.display())]
    Revocations {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// No CRL.
    #[error("cannot make the CRL")]
    Crl(#[from] crate::revocation::crl::CrlError),
    /// The transcript was altered.
    #[error("the transcript is not whole: {entry}: {what}")]
    Transcript {
        /// Which entry.
        entry: String,
        /// What is wrong.
        what: String,
    },
    /// A key.
    #[error(transparent)]
    KeyStore(#[from] KeyError),
    /// A label.
    #[error(transparent)]
    Label(#[from] ParseKeyLabelError),
    /// The CA's own folder.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// A certificate was not made.
    #[error("cannot make the certificate")]
    Make(#[from] AuthorityError),
    /// The request was not made.
    #[error("cannot make the request")]
    MakeRequest(#[source] rcgen::Error),
    /// The signature was not made.
    #[error("cannot sign the transcript")]
    Sign(#[from] crate::signer::SignError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl CeremonyError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
