//! The mesh as one immutable value: what is stated, what was chosen, and the policy over it.

mod build;
mod changes;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_policy::Policy;
use alcazar_yaml::YamlErrors;

pub use self::build::Addresses;
pub(crate) use self::build::join;
pub use self::changes::{Changed, Changes};

/// Everything that the control plane knows at one moment. Only [`World::build`] makes one, from files that are right.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct World {
    /// Who vouches for every identity here.
    pub trust_domain: TrustDomain,
    /// The cluster's name.
    pub cluster: String,
    /// How long certificates live, where the file says so.
    pub ttl: Option<Duration>,
    /// In the order of the file; unique by namespace and name.
    pub workloads: Vec<Arc<Workload>>,
    /// In the order of the file; unique by namespace and name.
    pub services: Vec<Arc<Service>>,
    /// Who may call whom.
    pub policy: Arc<Policy>,
    /// What works and is probably not meant, with its place.
    pub warnings: YamlErrors,
}

impl World {
    /// The workload of that namespace and name.
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads.iter().find(|workload| workload.namespace == namespace && workload.name == name)
    }

    /// The service of that namespace and name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| service.namespace == namespace && service.name == name)
    }
}

/// Something that runs, its identity, and where its proxy listens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Workload {
    /// A DNS label, unique in its namespace.
    pub name: String,
    /// A DNS label.
    pub namespace: String,
    /// Whose identity it has.
    pub service_account: String,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`; several workloads may share one.
    pub spiffe_id: SpiffeId,
    /// What selectors and policies match.
    pub labels: BTreeMap<String, String>,
    /// Where the application listens; 127.0.0.1 for a command.
    pub address: IpAddr,
    /// What the application listens on; the first is the `PORT` of a command.
    pub ports: Vec<Port>,
    /// What to start; `None` for something that runs already.
    pub command: Option<Vec<String>>,
    /// Where the application finds its proxy for calls to others.
    pub outbound: Option<SocketAddr>,
    /// Where the proxy listens for the mesh.
    pub inbound: SocketAddr,
    /// Further listeners of the proxy, each for one TCP service.
    pub forwards: Vec<Forward>,
}

impl Workload {
    /// `<namespace>/<name>`: the name of its resources, and of its ADS node.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// `<namespace>.<name>`: the name of its socket at the node agent.
    pub fn socket_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }
}

/// A port of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Port {
    /// A DNS label, unique in the workload.
    pub name: String,
    /// 1 to 65535, unique in the workload.
    pub number: u16,
    /// How its bytes are read.
    pub protocol: Protocol,
}

/// How the bytes on a port are read, and so how they are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1, HTTP/2 and gRPC, request by request.
    Http,
    /// Opaque bytes, by the connection.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Tcp => "TCP",
        })
    }
}

/// A listener of a proxy that leads to one port of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forward {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// `<service>.<namespace>`.
    pub host: String,
    /// The service's port, a TCP one.
    pub port: u16,
}

/// A name that callers use, and the workloads behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// A DNS label, unique in its namespace.
    pub name: String,
    /// A DNS label.
    pub namespace: String,
    /// Unique by number.
    pub ports: Vec<ServicePort>,
    /// Possibly none.
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// `<namespace>/<name>`: the name of its resource.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The names it answers to everywhere; the bare name is for callers of its own namespace.
    pub fn hosts(&self) -> [String; 3] {
        host_names(&self.name, &self.namespace)
    }

    /// The full one of its names, which policies write.
    pub fn full_name(&self) -> String {
        let [_, _, full] = self.hosts();
        full
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServicePort {
    /// A DNS label.
    pub name: String,
    /// What callers write.
    pub number: u16,
    /// The port of the workloads behind it.
    pub target: u16,
    /// How its bytes are read.
    pub protocol: Protocol,
}

/// A workload behind a service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// `<namespace>/<name>` of the workload.
    pub workload: String,
    /// Where its proxy listens for the mesh.
    pub inbound: SocketAddr,
    /// Where the application listens.
    pub address: IpAddr,
    /// The one identity that the server must prove.
    pub spiffe_id: SpiffeId,
    /// The service's ports that it serves, by their number.
    pub ports: Vec<u16>,
}

/// The names that a service answers to everywhere, the shortest first; the last is the full one.
pub(crate) fn host_names(name: &str, namespace: &str) -> [String; 3] {
    [format!("{name}.{namespace}"), format!("{name}.{namespace}.svc"), format!("{name}.{namespace}.svc.{DNS_DOMAIN}")]
}

/// An index of many, for those who look many up.
pub(crate) fn by_key<T>(items: &[Arc<T>], key: impl Fn(&T) -> String) -> BTreeMap<String, &Arc<T>> {
    items.iter().map(|item| (key(item), item)).collect()
}

/// The DNS domain of services, as in Kubernetes; it is no trust domain.
const DNS_DOMAIN: &str = "cluster.local";
