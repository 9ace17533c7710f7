use std::{path::PathBuf, time::Duration};

use alcazar_identity::SpiffeId;
use thiserror::Error;

use super::administration::TOKEN_MAX_TTL;
use crate::{
    callers::CallersError,
    config::{ConfigError, RegistrationError},
    federation::{EndpointError, ForeignError},
    hierarchy::HierarchyError,
    ledger::{LedgerError, OpenLedgerError},
    records::RecordError,
    replicas::{DataFolderError, JoinError},
    revocation::Barred,
    serial::NoRandomness,
    serving::ServingError,
    storage::OpenStoreError,
};

/// Why a CA did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// What is held of other trust domains cannot be read.
    #[error("the bundles of other trust domains cannot be used")]
    Federation(#[from] ForeignError),
    /// What the bundle endpoint is to serve with cannot be used.
    #[error("bundleEndpoint cannot be served")]
    Endpoint(#[from] EndpointError),
    /// The configuration makes no sense.
    #[error("the CA's configuration makes no sense")]
    Config(#[from] ConfigError),
    /// Who may ask cannot be told from the configuration.
    #[error("the CA cannot tell who may ask it")]
    Callers(#[from] CallersError),
    /// The data folder cannot be used.
    #[error("cannot use the data folder {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the disk said.
        source: std::io::Error,
    },
    /// The data folder is in use, or cannot be.
    #[error(transparent)]
    Folder(#[from] DataFolderError),
    /// The data folder is somebody else's: its permissions are not ours to change.
    #[error(
        "{} has something else in it and nothing of a CA; name a folder of the CA's own as dataDir (one that is missing is made)",
        .0.display()
    )]
    ForeignDir(PathBuf),
    /// The store did not open.
    #[error("the CA's store did not open")]
    Store(#[from] OpenStoreError),
    /// The hierarchy did not open.
    #[error("the CA's certificates did not open")]
    Hierarchy(#[from] HierarchyError),
    /// No intermediate from the other replicas.
    #[error("this replica of the CA has nothing to sign with")]
    Join(#[from] JoinError),
    /// The records cannot be read.
    #[error("the CA's records cannot be used")]
    Records(#[from] RecordError),
    /// The ledger did not open.
    #[error("the CA's ledger did not open")]
    OpenLedger(#[from] OpenLedgerError),
    /// The ledger did not take what is to be on record.
    #[error("the CA's ledger cannot be used")]
    Ledger(#[from] LedgerError),
    /// No serving certificate.
    #[error("the CA has no certificate to serve with")]
    Serving(#[from] ServingError),
    /// The revocations on record cannot be put in force.
    #[error("the revocations on record cannot be put in force")]
    Revocations(#[from] crate::revocation::RefreshError),
    /// The configured registrations were not put into the store.
    #[error("the configured registrations cannot be used")]
    Registrations(#[source] Box<AdminError>),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The process is ending.
    #[error("opening was interrupted")]
    Interrupted,
}

/// Why an act of administration failed.
#[derive(Debug, Error)]
pub enum AdminError {
    /// A token is for nodes of this trust domain.
    #[error("{0} is not the identity of a node of this trust domain (spiffe://<trust domain>/node/<cluster>/<node>)")]
    NotANode(SpiffeId),
    /// A node of another cluster.
    #[error("{node} is not a node of the cluster {cluster}; the CA of its own cluster vouches for it")]
    OtherCluster {
        /// The node.
        node: SpiffeId,
        /// The CA's cluster.
        cluster: String,
    },
    /// A machine of this name would be taken for the node of Kubernetes.
    #[error(
        "{0} is the name of a node of Kubernetes that has pods, and whoever is this node gets the certificates of them all: choose another name, or, if it is for that very node, say so (alcazar-ca token --kubernetes-node)"
    )]
    KubernetesNode(SpiffeId),
    /// It is not known whether it is one.
    #[error(
        "the pods of the cluster are not known yet, so {0} could be the name of a node that has some: try again later, or, if it is for that very node, say so (alcazar-ca token --kubernetes-node)"
    )]
    NoPods(SpiffeId),
    /// A revoked node.
    #[error(transparent)]
    Revoked(#[from] Barred),
    /// Another trust domain.
    #[error("{0} is of another trust domain")]
    Foreign(SpiffeId),
    /// A token lives shortly.
    #[error("a join token may live for {TOKEN_MAX_TTL:?}, not for {0:?}")]
    TokenTtl(Duration),
    /// Its profile does not allow it.
    #[error("the registration does not keep to its profile")]
    Profile(#[from] RegistrationError),
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}
