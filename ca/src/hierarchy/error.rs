use std::{io, path::PathBuf};

use alcazar_identity::Fingerprint;
use thiserror::Error;

use crate::{
    authority::AuthorityError,
    cacerts::CacertsError,
    csr::CsrError,
    keys::{KeyError, ParseKeyLabelError},
    records::RecordError,
    serial::NoRandomness,
};

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
    /// Whoever checks by CRLs would refuse what it signs.
    #[error("the CRL of the intermediate {intermediate} cannot be told before it signs: {reason}")]
    Announce {
        /// Which.
        intermediate: Fingerprint,
        /// What is wrong.
        reason: String,
    },
    /// Nobody believes what it signs.
    #[error("the intermediate {intermediate} is revoked: nothing is signed with it any more; have another one made")]
    Revoked {
        /// Which.
        intermediate: Fingerprint,
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
    /// An authority that is not here.
    #[error(
        "there is no certificate {fingerprint} in {}; restore the folder from its backup, or bring the certificate from where it is kept",
        folder.display()
    )]
    Unknown {
        /// The folder.
        folder: PathBuf,
        /// The certificate.
        fingerprint: Fingerprint,
    },
    /// An authority that something stands on.
    #[error("{fingerprint} is in use: it is trusted, or what signs stands on it")]
    InUse {
        /// The certificate.
        fingerprint: Fingerprint,
    },
    /// An intermediate of a root that nobody trusts.
    #[error("the intermediate {intermediate} cannot sign: its root {root} is not trusted yet")]
    NotTrusted {
        /// The intermediate.
        intermediate: Fingerprint,
        /// Its root.
        root: Fingerprint,
    },
    /// An intermediate of another cluster.
    #[error(
        "the intermediate {intermediate} is one of the cluster {stated:?}, and the configuration says `cluster: {cluster}`; put the name back, or give the other cluster a data folder and an intermediate of its own"
    )]
    OtherCluster {
        /// Which.
        intermediate: Fingerprint,
        /// The cluster that it states.
        stated: String,
        /// The cluster of the configuration.
        cluster: String,
    },
    /// What a person plugged in does not fit.
    #[error("the CA's certificates in {} cannot be used", folder.display())]
    PluggedIn {
        /// The folder.
        folder: PathBuf,
        /// What is wrong, and how to mend it.
        source: Box<CacertsError>,
    },
    /// What a person plugged in passes each check, and verifiers refuse what it signs all the same.
    #[error(
        "verifiers refuse what the CA's certificate in {} signs; compare it with the requirements in docs/ca.md",
        folder.display()
    )]
    Trial {
        /// The folder.
        folder: PathBuf,
        /// What a verifier said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A new root, at a start, and nothing that could sign until everybody has heard of it.
    #[error(
        "the root {root} in {} is new to those who are connected to this CA: they trust {old}, would refuse it and could not be told. The key of \
         what signed before is not here. Put the set of before back, with both roots in its root-cert.pem, and start; when everybody has heard \
         of the new root (now it would cut off: {waits}), exchange the set. To cut everybody off now, so that each node joins anew, \
         set cacerts.cutOverTo: {root}",
        folder.display()
    )]
    NewToEverybody {
        /// Where it comes from.
        folder: PathBuf,
        /// The root.
        root: Fingerprint,
        /// The roots that are trusted.
        old: String,
        /// Who would be cut off.
        waits: String,
    },
    /// The root's key is not here.
    #[error(
        "the key of the root is not here: the CA's certificate comes from {}. To renew it, run here `alcazar ca request --config ca.yaml`, where the root is kept `alcazar root sign REQUEST --root DIR`, and here `alcazar ca install DIR --config ca.yaml`",
        folder.display()
    )]
    RootElsewhere {
        /// Where the certificate comes from.
        folder: PathBuf,
    },
    /// A certificate was asked for, and has not come.
    #[error(
        "this CA waits for its certificate: have {} signed where the root is kept (`alcazar root sign`), and bring the set by `alcazar ca install DIR --config ca.yaml` to {}. To begin with a root of its own instead, remove the request",
        request.display(), folder.display()
    )]
    Waiting {
        /// The request.
        request: PathBuf,
        /// Where the set goes.
        folder: PathBuf,
    },
    /// A request of ours that cannot be read.
    #[error("the request {} is damaged; restore it from a backup, or remove it and make another", file.display())]
    Request {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: CsrError,
    },
    /// What another replica gave.
    #[error("what another replica gave to sign with cannot be used: {what}")]
    Given {
        /// What is wrong.
        what: String,
    },
    /// What another replica asks for.
    #[error("what another replica asks for is not a request for an intermediate of this cluster: {what}")]
    Asked {
        /// What is wrong.
        what: String,
    },
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A label that is none.
    #[error(transparent)]
    Label(#[from] ParseKeyLabelError),
    /// A root in the store that is none.
    #[error("a root in the store (ca/trust/state) cannot be read; restore the store from its backup")]
    Record(#[source] AuthorityError),
    /// The store has lost the trust state since this CA opened.
    #[error(
        "the store does not know which roots are trusted (ca/trust/state is gone); restore the store from its backup"
    )]
    NoState,
    /// Two replicas changed the trust state at once.
    #[error("another replica changed which roots are trusted at the same moment; it is looked at again")]
    Raced,
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// What signs was not put on record, so it does not sign.
    #[error("a certificate of the CA could not be put on record")]
    Ledger(#[source] Box<crate::ledger::LedgerError>),
    /// The process is ending.
    #[error("it was interrupted")]
    Interrupted,
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
    /// The roots are not a bundle.
    #[error("the root cannot be a trust bundle")]
    Bundle(#[source] alcazar_identity::BundleError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl HierarchyError {
    /// Whether somebody else changed the trust state first.
    pub(crate) fn is_race(&self) -> bool {
        matches!(self, Self::Raced) || self.is_conflict()
    }

    /// Whether it was one record that somebody else changed first.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Records(error) if error.is_conflict())
    }
}

impl From<crate::ledger::LedgerError> for HierarchyError {
    fn from(error: crate::ledger::LedgerError) -> Self {
        Self::Ledger(Box::new(error))
    }
}
