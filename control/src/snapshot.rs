//! A world as resources: compiled and encoded once for everybody; what did not change is taken from before.

use std::collections::BTreeMap;
use std::sync::Arc;

use alcazar_api::mesh::v1;
use alcazar_policy::WorkloadPolicy;

use crate::resource::{Kind, Name, Resource, Set};
use crate::world::{Changes, Protocol, Service, Workload, World, by_key};

/// Everything that can be pushed at one moment.
pub(crate) struct Snapshot {
    /// Counts the snapshots of this process, from 1.
    pub(crate) number: u64,
    pub(crate) world: Arc<World>,
    policies: Set,
    workloads: Set,
    services: Set,
    /// What each workload's resources were compiled from.
    compiled: BTreeMap<Name, Compiled>,
}

struct Compiled {
    workload: Arc<Workload>,
    fronts: Vec<Front>,
    policy: Arc<WorkloadPolicy>,
}

/// A service in front of a workload, and which of the service's ports the workload serves.
struct Front {
    service: Arc<Service>,
    ports: Vec<u16>,
}

impl Snapshot {
    /// The first snapshot.
    pub(crate) fn first(world: Arc<World>) -> Self {
        Self::compile(world, None)
    }

    /// The next snapshot, and what it changes.
    pub(crate) fn next(&self, world: Arc<World>) -> (Self, Changes) {
        let mut changes = Changes::between(&self.world, &world);
        let next = Self::compile(world, Some(self));
        let is_new = |name: &Name| !self.policies.contains_key(name);
        let is_changed = |(name, resource): &(&Name, &Arc<Resource>)| {
            !is_new(name) && self.policies.get(*name).is_none_or(|before| before.version != resource.version)
        };
        changes.policies = next.policies.iter().filter(is_changed).map(|(name, _)| name.to_string()).collect();
        (next, changes)
    }

    /// The resources of one kind.
    pub(crate) fn set(&self, kind: Kind) -> &Set {
        match kind {
            Kind::Policy => &self.policies,
            Kind::Workload => &self.workloads,
            Kind::Service => &self.services,
        }
    }

    fn compile(world: Arc<World>, before: Option<&Self>) -> Self {
        let mut snapshot = Self {
            number: before.map_or(0, |before| before.number) + 1,
            policies: Set::new(),
            workloads: Set::new(),
            services: Set::new(),
            compiled: BTreeMap::new(),
            world: Arc::clone(&world),
        };
        let services = before.map(|before| by_key(&before.world.services, Service::key)).unwrap_or_default();
        for service in &world.services {
            snapshot.add_service(service, &services, before);
        }
        let mut fronts = fronts(&world);
        for workload in &world.workloads {
            let fronts = fronts.remove(workload.key().as_str()).unwrap_or_default();
            snapshot.add_workload(workload, fronts, before);
        }
        snapshot
    }

    fn add_service(
        &mut self,
        service: &Arc<Service>,
        services: &BTreeMap<String, &Arc<Service>>,
        before: Option<&Self>,
    ) {
        let name: Name = service.key().into();
        let is_same = services.get(&*name).is_some_and(|was| Arc::ptr_eq(was, service));
        let same = before.and_then(|before| before.services.get(&name)).filter(|_| is_same).cloned();
        let resource = same.unwrap_or_else(|| Arc::new(Resource::new(&service_message(service), None)));
        self.services.insert(name, resource);
    }

    fn add_workload(&mut self, workload: &Arc<Workload>, fronts: Vec<Front>, before: Option<&Self>) {
        let name: Name = workload.key().into();
        let owner = || Some(workload.spiffe_id.clone());
        let was = before.and_then(|before| Some((before, before.compiled.get(&name)?)));
        let is_same = was.is_some_and(|(_, was)| was.stands_on(workload, &fronts));
        let old = |set: fn(&Self) -> &Set| was.and_then(|(before, _)| set(before).get(&name).cloned());

        let resource = old(|before| &before.workloads).filter(|_| is_same);
        let resource =
            resource.unwrap_or_else(|| Arc::new(Resource::new(&workload_message(workload, &fronts), owner())));
        self.workloads.insert(name.clone(), resource);

        let same_policy = is_same && before.is_some_and(|before| Arc::ptr_eq(&before.world.policy, &self.world.policy));
        let policy = match was {
            Some((_, was)) if same_policy => Arc::clone(&was.policy),
            _ => Arc::new(policy_for(&self.world, workload, &fronts)),
        };
        // A policy that decides the same for this workload is not encoded again.
        let unchanged =
            was.is_some_and(|(_, was)| was.policy == policy && was.workload.spiffe_id == workload.spiffe_id);
        let resource = old(|before| &before.policies).filter(|_| unchanged);
        let resource = resource.unwrap_or_else(|| Arc::new(Resource::new(&v1::Policy::from(&*policy), owner())));
        self.policies.insert(name.clone(), resource);
        self.compiled.insert(name, Compiled { workload: Arc::clone(workload), fronts, policy });
    }
}

impl Compiled {
    fn stands_on(&self, workload: &Arc<Workload>, fronts: &[Front]) -> bool {
        let same_fronts = self.fronts.len() == fronts.len()
            && self.fronts.iter().zip(fronts).all(|(was, is)| Arc::ptr_eq(&was.service, &is.service));
        same_fronts && Arc::ptr_eq(&self.workload, workload)
    }
}

/// The services in front of each workload, by the workload's key.
fn fronts(world: &World) -> BTreeMap<&str, Vec<Front>> {
    let mut fronts: BTreeMap<&str, Vec<Front>> = BTreeMap::new();
    for service in &world.services {
        for endpoint in &service.endpoints {
            let front = Front { service: Arc::clone(service), ports: endpoint.ports.clone() };
            fronts.entry(&endpoint.workload).or_default().push(front);
        }
    }
    fronts
}

fn policy_for(world: &World, workload: &Workload, fronts: &[Front]) -> WorkloadPolicy {
    let full_names: Vec<String> = fronts.iter().map(|front| front.service.full_name()).collect();
    world.policy.for_workload(&alcazar_policy::Workload {
        name: &workload.name,
        namespace: &workload.namespace,
        service_account: &workload.service_account,
        labels: &workload.labels,
        services: &full_names,
        trust_domain: world.trust_domain.as_str(),
        trust_domain_aliases: &[],
    })
}

fn workload_message(workload: &Workload, fronts: &[Front]) -> v1::Workload {
    let port = |port: &crate::world::Port| v1::WorkloadPort {
        name: port.name.clone(),
        number: port.number.into(),
        protocol: protocol(port.protocol),
    };
    v1::Workload {
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        spiffe_id: workload.spiffe_id.to_string(),
        labels: workload.labels.clone(),
        address: workload.address.to_string(),
        ports: workload.ports.iter().map(port).collect(),
        services: fronts.iter().map(local_service).collect(),
    }
}

/// A service as a workload behind it sees it: the ports that this workload serves.
fn local_service(front: &Front) -> v1::LocalService {
    let service = &front.service;
    let ports = service.ports.iter().filter(|port| front.ports.contains(&port.number));
    v1::LocalService {
        hosts: std::iter::once(service.name.clone()).chain(service.hosts()).collect(),
        ports: ports.map(service_port).collect(),
    }
}

fn service_message(service: &Service) -> v1::Service {
    let endpoint = |endpoint: &crate::world::Endpoint| v1::Endpoint {
        workload: endpoint.workload.clone(),
        mesh_address: endpoint.inbound.to_string(),
        address: endpoint.address.to_string(),
        spiffe_id: endpoint.spiffe_id.to_string(),
        ports: endpoint.ports.iter().copied().map(u32::from).collect(),
    };
    v1::Service {
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        hosts: service.hosts().into(),
        ports: service.ports.iter().map(service_port).collect(),
        endpoints: service.endpoints.iter().map(endpoint).collect(),
    }
}

fn service_port(port: &crate::world::ServicePort) -> v1::ServicePort {
    v1::ServicePort {
        name: port.name.clone(),
        number: port.number.into(),
        target_port: port.target.into(),
        protocol: protocol(port.protocol),
    }
}

fn protocol(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Http => v1::Protocol::Http,
        Protocol::Tcp => v1::Protocol::Tcp,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use alcazar_yaml::SourceFile;

    use super::*;
    use crate::world::{Addresses, join};

    const MESH: &str = "workloads:\n\
        - {name: a, namespace: shop, serviceAccount: a, labels: {app: a}, address: 10.0.0.1, inbound: 10.0.0.1:15008, ports: [{name: p, number: 80, protocol: HTTP}]}\n\
        - {name: b, namespace: shop, serviceAccount: b, labels: {app: b}, address: 10.0.0.2, inbound: 10.0.0.2:15008, ports: [{name: p, number: 80, protocol: HTTP}]}\n";
    const ON: &str =
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\nmetadata: {name: default}\nspec: {mode: 'ON'}\n";
    const ROLE: &str = "---\napiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRole\nmetadata: {name: r, namespace: shop}\n\
        spec: {rules: [{services: [a.shop.svc.cluster.local], methods: [GET]}]}\n\
        ---\napiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRoleBinding\nmetadata: {name: r, namespace: shop}\n\
        spec: {subjects: [{user: '*'}], roleRef: {kind: ServiceRole, name: r}}\n";

    /// A step of a mesh's life, as the loader takes it.
    fn world(mesh: &str, policy: &str, before: Option<&Snapshot>) -> Arc<World> {
        let mesh = crate::mesh::read(&SourceFile::new("mesh.yaml", mesh)).mesh;
        let file = SourceFile::new("policy.yaml", policy);
        let policy = alcazar_policy::Policy::from_files(&[file], &alcazar_policy::Settings::default());
        let before = before.map(|before| &*before.world);
        Arc::new(join(mesh, policy.map(Arc::new), Addresses::Stated, before).unwrap())
    }

    /// What is not the very same resource as before.
    fn touched(before: &Snapshot, after: &Snapshot) -> Vec<String> {
        let of_kind = |kind: Kind| {
            let is_new = move |(name, resource): &(&Name, &Arc<Resource>)| {
                !before.set(kind).get(*name).is_some_and(|old| Arc::ptr_eq(old, resource))
            };
            after.set(kind).iter().filter(is_new).map(move |(name, _)| format!("{kind} {name}"))
        };
        Kind::ALL.into_iter().flat_map(of_kind).collect()
    }

    #[test]
    fn a_change_encodes_only_what_it_touches() {
        let first = Snapshot::first(world(MESH, ON, None));
        let check = |mesh: &str, policy: &str, expected: &[&str], said: &str| {
            let (next, changes) = first.next(world(mesh, policy, Some(&first)));
            assert_eq!(touched(&first, &next), expected, "{said}");
            assert_eq!(changes.to_string(), said);
        };
        check(MESH, ON, &[], "nothing that matters");
        // The policy of a alone is another one.
        check(MESH, &format!("{ON}{ROLE}"), &["policy shop/a"], "policy of shop/a");
        // A proxy moves: its callers learn of it, and it learns nothing new but by its own services.
        check(
            &MESH.replace("10.0.0.2:15008", "10.0.0.2:15009"),
            ON,
            &["workload shop/b", "service shop/b"],
            "workloads: changed shop/b; services: changed shop/b",
        );
        check(
            &MESH.replace("name: b, namespace", "name: c, namespace").replace("app: b", "app: c"),
            ON,
            &["policy shop/c", "workload shop/c", "service shop/c"],
            "workloads: new shop/c, gone shop/b; services: new shop/c, gone shop/b",
        );
        check(&format!("certificates: {{ttl: 1h}}\n{MESH}"), ON, &[], "certificates live for 1h (was the default)");
    }

    #[test]
    fn the_same_content_has_the_same_version_in_every_process() {
        let labels = "labels: {app: a, z: '1', y: '2', x: '3', w: '4', v: '5'}";
        let mesh = MESH.replace("labels: {app: a}", labels);
        let versions = |snapshot: &Snapshot| {
            let set = |kind: Kind| snapshot.set(kind).values().map(|resource| resource.version).collect::<Vec<_>>();
            Kind::ALL.map(set)
        };
        let one = versions(&Snapshot::first(world(&mesh, ON, None)));
        for _ in 0..16 {
            assert_eq!(versions(&Snapshot::first(world(&mesh, ON, None))), one);
        }
    }

    #[test]
    fn a_workload_and_its_policy_are_its_own_identity_s() {
        let snapshot = Snapshot::first(world(MESH, ON, None));
        let b = "spiffe://cluster.local/ns/shop/sa/b".parse().unwrap();
        let seen = |kind: Kind| {
            let view = crate::resource::View::new(snapshot.set(kind), &b);
            view.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(Kind::ALL.map(seen), [vec!["shop/b"], vec!["shop/b"], vec!["shop/a", "shop/b"]]);
    }

    #[test]
    fn a_running_mesh_keeps_its_trust_domain_and_cluster() {
        let first = Snapshot::first(world(MESH, ON, None));
        for (field, complaint) in [
            (
                "trustDomain: other.example",
                "the trust domain of a running mesh cannot change from `cluster.local` to `other.example`",
            ),
            ("cluster: west", "the cluster of a running mesh cannot change from `local` to `west`"),
        ] {
            let mesh = crate::mesh::read(&SourceFile::new("mesh.yaml", format!("{field}\n{MESH}"))).mesh;
            let policy = Ok(Arc::new(alcazar_policy::Policy::default()));
            let errors = join(mesh, policy, Addresses::Stated, Some(&first.world)).unwrap_err();
            let messages: Vec<&str> = errors.iter().map(|error| error.message()).collect();
            assert_eq!(messages, [complaint]);
        }
    }
}
