mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use alcazar_identity::{SpiffeId, X509Svid};

pub use report::{
    CertificateReport, ClientReport, NarrowingReport, NodeReport, OutboundReport, RegistrationReport, StatusReport,
};

/// What the agent holds and does, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The node itself.
    pub node: NodeStatus,
    /// The workloads registered for it, by the id of their registration.
    pub registrations: Vec<Arc<RegistrationStatus>>,
    /// How the agent's own file narrows them, where it has one.
    pub narrowing: Option<NarrowingStatus>,
}

/// The agent's own file, which narrows what the CA has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarrowingStatus {
    /// The file.
    pub file: PathBuf,
    /// Why it cannot be used as it is now; what it said before is in force then.
    pub error: Option<String>,
    /// The ids of the registrations that are withheld, since no entry speaks of them.
    pub withheld: Vec<String>,
    /// Of whom entries speak that are not registered for this node.
    pub unknown: Vec<String>,
}

/// The node's own identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Who the node is.
    pub spiffe_id: SpiffeId,
    /// Its certificate, once it has one.
    pub certificate: Option<CertificateStatus>,
    /// By what the node proved itself for it, and why by nothing else that comes before.
    pub proved_by: Option<String>,
    /// When the next certificate will be asked for; `None`: as soon as can be.
    pub next_rotation: Option<SystemTime>,
    /// What went wrong last; `None` when the last attempt went well.
    pub last_error: Option<String>,
    /// Why what the node holds is not on its disk; `None` while it is.
    pub disk_error: Option<String>,
    /// Why the CA cannot be followed now; `None` while it is.
    pub ca_error: Option<String>,
    /// What this machine's clock and the CA's said at the last answer, where they differ.
    pub clock_error: Option<String>,
    /// Why the pods of this node are not listed now; `None` while they are, and where nobody is told to.
    pub pods_error: Option<String>,
}

impl NodeStatus {
    /// Of a node that has nothing yet.
    pub(crate) fn new(spiffe_id: SpiffeId) -> Self {
        Self {
            spiffe_id,
            certificate: None,
            proved_by: None,
            next_rotation: None,
            last_error: None,
            disk_error: None,
            ca_error: None,
            clock_error: None,
            pods_error: None,
        }
    }
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationStatus {
    /// The registration's id.
    pub id: String,
    /// Who the workload is.
    pub spiffe_id: SpiffeId,
    /// Its certificate, while it has one that is good.
    pub certificate: Option<CertificateStatus>,
    /// When the next certificate will be asked for; `None`: as soon as can be.
    pub next_rotation: Option<SystemTime>,
    /// What went wrong last; `None` when the last attempt went well.
    pub last_error: Option<String>,
    /// The socket made for it, where its selectors ask for one. It is there once there is a certificate.
    pub socket: Option<PathBuf>,
}

/// A certificate, as people ask about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateStatus {
    /// Lower-case hexadecimal.
    pub serial: String,
    /// From when it is good.
    pub not_before: SystemTime,
    /// Until when it is good.
    pub not_after: SystemTime,
}

impl CertificateStatus {
    pub(crate) fn of(svid: &X509Svid) -> Self {
        let validity = svid.validity();
        Self { serial: svid.serial().to_owned(), not_before: validity.not_before(), not_after: validity.not_after() }
    }
}
