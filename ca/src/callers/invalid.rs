//! What in `callers` of `ca.yaml` makes no sense.

use std::{io, path::PathBuf};

use alcazar_identity::ParseSelectorError;
use alcazar_mtls::{MachineRootsError, web::RootsError};
use thiserror::Error;

use super::{account::ParseServiceAccountError, rules::RuleConfigError};
use crate::{kubernetes::KubernetesError, serial::NoRandomness};

/// What in `callers` makes no sense, or cannot be used.
#[derive(Debug, Error)]
pub enum CallersError {
    /// Not the name of an account.
    #[error("callers.kubernetes")]
    Account(#[from] ParseServiceAccountError),
    /// Neither a namespace nor an account.
    #[error("callers.kubernetes.podsExcept: write namespaces, and accounts as <namespace>/<name>")]
    Except(#[source] ParseSelectorError),
    /// Too long.
    #[error("callers.kubernetes.cacheFor: at most 10m, since who was removed from the cluster is believed for so long")]
    CacheFor,
    /// Keys that nobody would read.
    #[error("callers.kubernetes.jwks is for verify: offline; with tokenReview the API server verifies")]
    KeysForReview,
    /// Keys without an issuer.
    #[error("callers.kubernetes: verify: offline needs the issuer of the cluster's tokens (--service-account-issuer)")]
    OfflineIssuer,
    /// The API of the cluster is needed.
    #[error("callers.kubernetes needs the API of the cluster")]
    NoClient,
    /// No client of the API.
    #[error("callers.kubernetes needs the API of the cluster")]
    Kubernetes(#[source] KubernetesError),
    /// An issuer that cannot be used.
    #[error("callers.oidc: {issuer}: {what}")]
    Oidc {
        /// The issuer.
        issuer: String,
        /// What is wrong.
        what: String,
    },
    /// Two plugs of one issuer: which of them decides would be chance.
    #[error("callers: the issuer {0} stands twice")]
    Twice(String),
    /// Rules that make no sense.
    #[error("callers: {of}")]
    Rules {
        /// Whose.
        of: String,
        /// What is wrong.
        source: RuleConfigError,
    },
    /// A file that cannot be read.
    #[error("callers: cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Roots for https.
    #[error("callers.oidc: {issuer}: the roots cannot be used")]
    WebRoots {
        /// The issuer.
        issuer: String,
        /// What is wrong.
        source: RootsError,
    },
    /// Roots of machine certificates.
    #[error("callers.machines: {} cannot be used", path.display())]
    MachineRoots {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: MachineRootsError,
    },
    /// A name that certificates do not have.
    #[error("callers.machines: {0:?} is not a name in a certificate; match commonName, dns or uri")]
    MachineName(String),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}
