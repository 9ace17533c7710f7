//! From what is stated to a world: addresses are chosen, endpoints bound, the policy joined.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use alcazar_policy::{Policy, Settings};
use alcazar_yaml::{SourceFile, YamlError, YamlErrors};

use super::{Endpoint, Service, Workload, World, by_key};
use crate::addresses::{AddressBook, Role};
use crate::mesh::{self, Bound, Mesh, Stated};

/// Where the addresses of proxies come from.
pub enum Addresses<'a> {
    /// Each workload states its `inbound`; one without `outbound` has none.
    Stated,
    /// What is not stated is remembered, or chosen and remembered.
    Chosen {
        /// What was chosen before; new choices are added.
        book: &'a mut AddressBook,
        /// Whether nothing listens on an address yet.
        is_free: &'a dyn Fn(SocketAddr) -> bool,
    },
}

impl World {
    /// Reads a mesh file and policy files into a world.
    ///
    /// Pure but for what `addresses` does. The file's own `policies` is not followed: the caller reads files.
    ///
    /// # Errors
    /// Everything that is wrong with any of the files, together.
    pub fn build(mesh: &SourceFile, policies: &[SourceFile], addresses: Addresses<'_>) -> Result<Self, YamlErrors> {
        let policy = Policy::from_files(policies, &Settings::default());
        join(mesh::read(mesh).mesh, policy.map(Arc::new), addresses, None)
    }
}

/// Joins what was read; parts that are as in `previous` are shared with it.
pub(crate) fn join(
    mesh: Result<Mesh, YamlErrors>,
    policy: Result<Arc<Policy>, YamlErrors>,
    addresses: Addresses<'_>,
    previous: Option<&World>,
) -> Result<World, YamlErrors> {
    let (mesh, policy) = match (mesh, policy) {
        (Ok(mesh), Ok(policy)) => (mesh, policy),
        (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => return Err(errors),
        (Err(mut errors), Err(more)) => {
            errors.extend(more);
            return Err(errors);
        }
    };
    if let Some(error) = previous.and_then(|world| mesh.moved_from(&world.trust_domain, &world.cluster)) {
        return Err(error.into());
    }
    let workloads = workloads(&mesh, addresses, previous)?;
    let before = previous.map(|world| by_key(&world.services, Service::key)).unwrap_or_default();
    let services = mesh.services.iter().map(|bound| {
        let service = service(bound, &workloads);
        let before = before.get(&service.key()).copied();
        share(service, before)
    });
    Ok(World {
        services: services.collect(),
        trust_domain: mesh.trust_domain,
        cluster: mesh.cluster,
        ttl: mesh.ttl,
        workloads,
        policy,
        warnings: mesh.warnings,
    })
}

fn workloads(
    mesh: &Mesh,
    mut addresses: Addresses<'_>,
    previous: Option<&World>,
) -> Result<Vec<Arc<Workload>>, YamlErrors> {
    let mut errors = YamlErrors::default();
    let taken: BTreeSet<u16> = mesh::claimed_ports(&mesh.workloads).collect();
    if let Addresses::Chosen { book, .. } = &mut addresses {
        let present: BTreeSet<String> = mesh.workloads.iter().map(Stated::key).collect();
        book.prepare(&present, &taken);
    }
    let before = previous.map(|world| by_key(&world.workloads, Workload::key)).unwrap_or_default();
    let mut workloads = Vec::new();
    for (index, stated) in mesh.workloads.iter().enumerate() {
        match place(&mesh.file, stated, &mut addresses, &taken) {
            Ok((inbound, outbound)) => {
                let workload = workload(stated, inbound, outbound, mesh, index);
                let before = before.get(&stated.key()).copied();
                workloads.push(share(workload, before));
            }
            Err(error) => errors.push(error),
        }
    }
    errors.or(workloads)
}

/// The addresses of a workload's proxy.
fn place(
    file: &SourceFile,
    stated: &Stated,
    addresses: &mut Addresses<'_>,
    taken: &BTreeSet<u16>,
) -> Result<(SocketAddr, Option<SocketAddr>), YamlError> {
    let key = stated.key();
    match addresses {
        Addresses::Stated => {
            let inbound = stated.inbound().ok_or_else(|| {
                YamlError::new(file, stated.span.clone(), format!("the workload {key} has no `inbound`"))
                    .with_label("`inbound` is missing")
                    .with_help("state where its proxy listens, or give control an `addresses` file to choose by")
            })?;
            Ok((inbound, stated.outbound()))
        }
        Addresses::Chosen { book, is_free } => {
            let mut choose = |role: Role| {
                book.address(&key, role, taken, is_free).ok_or_else(|| {
                    let message = format!("no port is left for the {role} address of {key}");
                    YamlError::new(file, stated.span.clone(), message).with_help(format!("state `{role}`"))
                })
            };
            let inbound = stated.inbound().map_or_else(|| choose(Role::Inbound), Ok)?;
            let outbound = stated.outbound().map_or_else(|| choose(Role::Outbound), Ok)?;
            Ok((inbound, Some(outbound)))
        }
    }
}

fn workload(stated: &Stated, inbound: SocketAddr, outbound: Option<SocketAddr>, mesh: &Mesh, index: usize) -> Workload {
    Workload {
        name: stated.name.text.clone(),
        namespace: stated.namespace.clone(),
        service_account: stated.service_account.clone(),
        spiffe_id: stated.spiffe_id.clone(),
        labels: stated.labels.clone(),
        address: stated.address,
        ports: stated.ports(),
        command: stated.command.clone(),
        outbound,
        inbound,
        forwards: mesh.forwards(index).to_vec(),
    }
}

fn service(bound: &Bound, workloads: &[Arc<Workload>]) -> Service {
    let endpoint = |(index, ports): &(usize, Vec<u16>)| {
        let workload = workloads.get(*index)?;
        Some(Endpoint {
            workload: workload.key(),
            inbound: workload.inbound,
            address: workload.address,
            spiffe_id: workload.spiffe_id.clone(),
            ports: ports.clone(),
        })
    };
    Service {
        name: bound.name.clone(),
        namespace: bound.namespace.clone(),
        ports: bound.ports.clone(),
        endpoints: bound.endpoints.iter().filter_map(endpoint).collect(),
    }
}

/// What was there before, if it is the same: then nobody has to look at it again.
fn share<T: PartialEq>(value: T, before: Option<&Arc<T>>) -> Arc<T> {
    match before {
        Some(before) if **before == value => Arc::clone(before),
        _ => Arc::new(value),
    }
}
