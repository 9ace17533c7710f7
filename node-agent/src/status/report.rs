//! The status as it goes over the agent's administration socket.

use std::time::SystemTime;

use alcazar_service::Health;
use serde::{Deserialize, Serialize};

use super::{CertificateStatus, Status};
use crate::adoption::{Client, Through};
use crate::agent::{IDENTITY, NARROWING};

/// What an agent holds and does: the JSON of `alcazar agent status --json`.
///
/// Fields are added, never renamed or dropped. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The node itself.
    pub node: NodeReport,
    /// Its workloads, by the id of their registration.
    pub registrations: Vec<RegistrationReport>,
    /// Who is served, or was a moment ago.
    pub clients: Vec<ClientReport>,
    /// The agent's own file that narrows, where it has one.
    #[serde(default)]
    pub narrowing: Option<NarrowingReport>,
    /// What else of the agent is not as it should be, though it goes on: files, the sealed store.
    #[serde(default)]
    pub degraded: Vec<String>,
}

/// The node's own identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Who it is.
    pub spiffe_id: String,
    /// Its certificate, while it has one that is good.
    pub certificate: Option<CertificateReport>,
    /// By what it proved itself, and why by nothing else that comes before.
    pub proved_by: Option<String>,
    /// When the next certificate will be asked for.
    pub next_rotation: Option<u64>,
    /// What is wrong, one thing after the other: with its renewal, its disk, the CA, its clock, the list of its pods.
    pub errors: Vec<String>,
}

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationReport {
    /// The registration.
    pub id: String,
    /// Who the workload is.
    pub spiffe_id: String,
    /// Its certificate, while it has one that is good.
    pub certificate: Option<CertificateReport>,
    /// When the next certificate will be asked for.
    pub next_rotation: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Its own socket.
    pub socket: Option<String>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateReport {
    /// Lower-case hexadecimal.
    pub serial: String,
    /// From when it is good.
    pub not_before: u64,
    /// Until when it is good.
    pub not_after: u64,
}

/// One stream of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Who it is, as the kernel says.
    pub caller: String,
    /// Whose certificate it has.
    pub spiffe_id: Option<String>,
    /// Which certificate it has.
    pub serial: Option<String>,
    /// The sequence of the trust bundle by which it judges.
    pub bundle: Option<u64>,
    /// Who may call others through it. Not said of programs that call by themselves.
    #[serde(default)]
    pub outbound: Option<OutboundReport>,
    /// Why it did not take what it was sent last.
    pub refused: Option<String>,
    /// Whether it is connected; if not, it may still have what it had.
    pub connected: bool,
}

/// Who may call others through a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutboundReport {
    /// It does not say, as Envoy does not.
    Unknown,
    /// It says.
    Said {
        /// Where applications connect to it.
        listeners: Vec<String>,
        /// The user whose processes alone are served there; without it, everybody's.
        user: Option<u32>,
    },
}

/// A file that narrows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NarrowingReport {
    /// The file.
    pub file: String,
    /// Why it cannot be used as it is now; what it said before is in force then.
    pub error: Option<String>,
    /// The registrations that are withheld.
    pub withheld: Vec<String>,
    /// Of whom it speaks that are not registered for this node.
    pub unknown: Vec<String>,
}

impl StatusReport {
    pub(crate) fn new(status: &Status, clients: &[Client], parts: &[(String, Health)]) -> Self {
        let node = &status.node;
        let errors = [&node.last_error, &node.disk_error, &node.ca_error, &node.clock_error, &node.pods_error];
        Self {
            node: NodeReport {
                spiffe_id: node.spiffe_id.to_string(),
                certificate: node.certificate.as_ref().map(CertificateReport::from),
                proved_by: node.proved_by.clone(),
                next_rotation: node.next_rotation.map(epoch),
                errors: errors.into_iter().flatten().cloned().collect(),
            },
            registrations: status
                .registrations
                .iter()
                .map(|registration| RegistrationReport {
                    id: registration.id.clone(),
                    spiffe_id: registration.spiffe_id.to_string(),
                    certificate: registration.certificate.as_ref().map(CertificateReport::from),
                    next_rotation: registration.next_rotation.map(epoch),
                    last_error: registration.last_error.clone(),
                    socket: registration.socket.as_ref().map(|path| path.display().to_string()),
                })
                .collect(),
            clients: clients.iter().map(ClientReport::from).collect(),
            narrowing: status.narrowing.as_ref().map(|narrowing| NarrowingReport {
                file: narrowing.file.display().to_string(),
                error: narrowing.error.clone(),
                withheld: narrowing.withheld.clone(),
                unknown: narrowing.unknown.clone(),
            }),
            degraded: parts.iter().filter_map(trouble).collect(),
        }
    }
}

/// What neither the node's own report nor the narrowing file's tells.
fn trouble((name, health): &(String, Health)) -> Option<String> {
    match health {
        Health::Degraded(reason) if ![IDENTITY, NARROWING].contains(&name.as_str()) => {
            Some(format!("{name}: {reason}"))
        }
        _ => None,
    }
}

impl From<&CertificateStatus> for CertificateReport {
    fn from(certificate: &CertificateStatus) -> Self {
        let CertificateStatus { serial, not_before, not_after } = certificate;
        Self { serial: serial.clone(), not_before: epoch(*not_before), not_after: epoch(*not_after) }
    }
}

impl From<&Client> for ClientReport {
    fn from(client: &Client) -> Self {
        let holds = &client.holds;
        Self {
            caller: client.caller.to_string(),
            spiffe_id: holds.id.as_ref().map(ToString::to_string),
            serial: holds.leaf.as_ref().map(|(serial, _)| serial.clone()),
            bundle: holds.sequence,
            outbound: match &client.through {
                Through::Itself => None,
                Through::Unknown => Some(OutboundReport::Unknown),
                Through::Said(outbound) => Some(OutboundReport::Said {
                    listeners: outbound.listeners.iter().map(ToString::to_string).collect(),
                    user: outbound.user,
                }),
            },
            refused: client.refused.clone(),
            connected: client.is_connected(),
        }
    }
}

fn epoch(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
