//! The state of the whole mesh at one moment, from what each part shows of itself.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use alcazar_control::World;
use alcazar_service::Readiness;
use tokio::sync::watch;

use super::authority::Authority;
use super::fleet::Processes;
use crate::status::{Status, Workload};

/// Where to look.
#[derive(Clone)]
pub(crate) struct Survey {
    world: watch::Receiver<Arc<World>>,
    agent: watch::Receiver<Arc<alcazar_node_agent::Status>>,
    authority: Authority,
    readiness: Readiness,
    processes: Processes,
}

impl Survey {
    pub(crate) fn new(
        world: watch::Receiver<Arc<World>>,
        agent: watch::Receiver<Arc<alcazar_node_agent::Status>>,
        authority: Authority,
        readiness: Readiness,
        processes: Processes,
    ) -> Self {
        Self { world, agent, authority, readiness, processes }
    }

    /// Looks.
    pub(crate) fn status(&self) -> Status {
        let (world, agent) = (self.world.borrow().clone(), self.agent.borrow().clone());
        let pending = self.readiness.pending();
        let workloads = world.workloads.iter().map(|workload| {
            let registration = workload.socket_name();
            let held = agent.registrations.iter().find(|held| held.id == registration);
            let certificate = held.and_then(|held| held.certificate.as_ref());
            Workload {
                name: workload.name.clone(),
                namespace: workload.namespace.clone(),
                spiffe_id: workload.spiffe_id.to_string(),
                serial: certificate.map(|certificate| certificate.serial.clone()),
                not_after: certificate.map(|certificate| seconds(certificate.not_after)),
                next_rotation: held.and_then(|held| held.next_rotation).map(seconds),
                outbound: workload.outbound.map(|address| address.to_string()),
                inbound: workload.inbound.to_string(),
                address: workload.address.to_string(),
                pid: self.processes.of(&workload.key()),
                error: held.and_then(|held| held.last_error.clone()),
            }
        });
        let (root, intermediate) = self.authority.hierarchy();
        Status {
            trust_domain: world.trust_domain.to_string(),
            cluster: world.cluster.clone(),
            pid: std::process::id(),
            ready: pending.is_empty(),
            pending,
            root,
            intermediate,
            crls: self.authority.ca().crl_address().map(|address| format!("http://{address}/crl")),
            workloads: workloads.collect(),
        }
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
