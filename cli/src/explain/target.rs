//! What stands behind the service that is called: as a mesh file says, or as its name suggests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use alcazar_control::{AddressBook, Addresses, Protocol, ReadError, Service, ServicePort, World, read};
use alcazar_identity::{ParseTrustDomainError, TrustDomain};
use alcazar_yaml::{SourceFile, YamlErrors};

use crate::args::{Called, ExplainArgs};

/// A workload behind the service, and the port that the call ends at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) labels: BTreeMap<String, String>,
    /// The full host names of the services it is behind.
    pub(super) services: Vec<String>,
    pub(super) trust_domain: TrustDomain,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) is_http: bool,
}

/// Why it is not known what is called.
#[derive(Debug, thiserror::Error)]
pub(super) enum FindTargetError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the mesh file has errors")]
    Mesh(#[from] YamlErrors),
    #[error("the trust domain is wrong")]
    TrustDomain(#[from] ParseTrustDomainError),
    #[error("the mesh has no service {service}.{namespace}; it has {known}")]
    NoService { service: String, namespace: String, known: String },
    #[error("the service {service} has no port {port}; it has {known}")]
    NoPort { service: String, port: u16, known: String },
    #[error("no workload is behind the port {port} of the service {service}")]
    NoWorkload { service: String, port: u16 },
}

/// Finds the workloads behind the service.
pub(super) fn find(args: &ExplainArgs, policies: &[SourceFile]) -> Result<Vec<Target>, FindTargetError> {
    match &args.mesh {
        Some(mesh) => in_mesh(mesh, policies, &args.to, args.port, args.trust_domain.as_ref()),
        None => Ok(vec![assumed(args)?]),
    }
}

/// Without a mesh: one workload of the service's name, account and `app` label.
fn assumed(args: &ExplainArgs) -> Result<Target, ParseTrustDomainError> {
    let (service, namespace) = (args.to.service.clone(), args.to.namespace.clone());
    let trust_domain = match &args.trust_domain {
        Some(trust_domain) => trust_domain.clone(),
        None => DEFAULT_TRUST_DOMAIN.parse()?,
    };
    Ok(Target {
        services: vec![format!("{service}.{namespace}.svc.cluster.local")],
        labels: BTreeMap::from([("app".to_owned(), service.clone())]),
        service_account: service.clone(),
        name: service,
        namespace,
        trust_domain,
        address: Ipv4Addr::LOCALHOST.into(),
        port: args.port.unwrap_or(80),
        is_http: args.method.is_some(),
    })
}

/// As in a mesh file.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

fn in_mesh(
    mesh: &Path,
    policies: &[SourceFile],
    to: &Called,
    port: Option<u16>,
    trust_domain: Option<&TrustDomain>,
) -> Result<Vec<Target>, FindTargetError> {
    // Nothing listens here: any address will do where the file states none.
    let mut book = AddressBook::default();
    let addresses = Addresses::Chosen { book: &mut book, is_free: &|_| true };
    let world = World::build(&read(mesh)?, policies, addresses)?;
    let service = world.service(&to.namespace, &to.service).ok_or_else(|| FindTargetError::NoService {
        service: to.service.clone(),
        namespace: to.namespace.clone(),
        known: list(world.services.iter().map(|service| format!("{}.{}", service.name, service.namespace))),
    })?;
    let port = pick_port(service, port)?;
    let behind = service.endpoints.iter().filter(|endpoint| endpoint.ports.contains(&port.number));
    let targets: Vec<Target> = behind
        .filter_map(|endpoint| world.workloads.iter().find(|workload| workload.key() == endpoint.workload))
        .map(|workload| Target {
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
            labels: workload.labels.clone(),
            services: fronts(&world, &workload.key()),
            trust_domain: trust_domain.unwrap_or(&world.trust_domain).clone(),
            address: workload.address,
            port: port.target,
            is_http: port.protocol == Protocol::Http,
        })
        .collect();
    match targets.is_empty() {
        true => Err(FindTargetError::NoWorkload { service: service.key(), port: port.number }),
        false => Ok(targets),
    }
}

/// The full names of the services that a workload is behind.
fn fronts(world: &World, workload: &str) -> Vec<String> {
    let is_behind = |service: &&Arc<Service>| service.endpoints.iter().any(|endpoint| endpoint.workload == workload);
    world.services.iter().filter(is_behind).map(|service| service.full_name()).collect()
}

fn pick_port(service: &Service, port: Option<u16>) -> Result<&ServicePort, FindTargetError> {
    let found = match port {
        Some(number) => service.ports.iter().find(|port| port.number == number),
        None => service.ports.first(),
    };
    found.ok_or_else(|| FindTargetError::NoPort {
        service: service.key(),
        port: port.unwrap_or_default(),
        known: list(service.ports.iter().map(|port| port.number.to_string())),
    })
}

fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
