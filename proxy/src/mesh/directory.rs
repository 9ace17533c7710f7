use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use alcazar_api::mesh::v1;
use alcazar_identity::SpiffeId;
use alcazar_mtls::Expected;

use super::workload::{InvalidWorkload, port_number};
use super::{DEFAULT_PORT, Protocol};
use crate::authority::Authority;

/// The services of the mesh, by every name that they answer to for one caller.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    by_host: HashMap<String, Arc<Service>>,
}

/// A service as its callers see it.
#[derive(Debug, Clone)]
pub struct Service {
    name: String,
    namespace: String,
    hosts: Vec<String>,
    ports: BTreeMap<u16, ServicePort>,
}

/// A port of a service.
#[derive(Debug, Clone)]
pub struct ServicePort {
    /// How what is spoken there is read.
    pub protocol: Protocol,
    /// The port of the workloads behind it.
    pub target: u16,
    /// Who serves it.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// One workload behind a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `<namespace>/<workload>`.
    pub workload: String,
    /// Where its proxy listens for the mesh.
    pub mesh_address: SocketAddr,
    /// Where its application listens.
    pub address: IpAddr,
    /// Whom its proxy must prove to be.
    pub identity: SpiffeId,
    /// The same, as the handshake asks for it.
    pub expected: Expected,
}

/// What a name and a port lead to.
#[derive(Debug, Clone)]
pub struct Route {
    /// The service.
    pub service: Arc<Service>,
    /// Its port's number.
    pub number: u16,
}

impl Directory {
    /// The directory as a caller in `namespace` sees it.
    pub fn new<'s>(services: impl IntoIterator<Item = &'s Arc<Service>>, namespace: &str) -> Self {
        let mut by_host = HashMap::new();
        for service in services {
            for host in &service.hosts {
                by_host.insert(host.clone(), service.clone());
            }
            // The short name is for its own namespace.
            if service.namespace == namespace {
                by_host.insert(service.name.to_ascii_lowercase(), service.clone());
            }
        }
        Self { by_host }
    }

    /// Finds the service and port that an authority names; `default_port` where it names none.
    ///
    /// # Errors
    /// When the mesh has no such service, or that has no such port.
    pub fn route(&self, authority: &Authority<'_>, default_port: Option<u16>) -> Result<Route, Unknown> {
        let host = authority.host().as_str();
        let service = self.by_host.get(host).ok_or_else(|| Unknown::Host(host.to_owned()))?;
        let number = authority.port().or(default_port).unwrap_or(DEFAULT_PORT);
        if !service.ports.contains_key(&number) {
            return Err(Unknown::Port { service: service.to_string(), port: number });
        }
        Ok(Route { service: service.clone(), number })
    }

    /// Every endpoint's mesh address.
    pub(crate) fn mesh_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let ports = self.by_host.values().flat_map(|service| service.ports.values());
        ports.flat_map(|port| port.endpoints.iter().map(|endpoint| endpoint.mesh_address))
    }
}

impl Route {
    /// The port.
    pub fn port(&self) -> Option<&ServicePort> {
        self.service.ports.get(&self.number)
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl TryFrom<v1::Service> for Service {
    type Error = InvalidService;

    fn try_from(message: v1::Service) -> Result<Self, InvalidService> {
        let mut ports = BTreeMap::new();
        for port in &message.ports {
            let protocol = port.protocol().try_into()?;
            let target = port_number(port.target_port)?;
            ports.insert(port_number(port.number)?, ServicePort { protocol, target, endpoints: Vec::new() });
        }
        for endpoint in message.endpoints {
            let served = endpoint.ports.clone();
            let endpoint = Arc::new(Endpoint::try_from(endpoint)?);
            for number in served {
                if let Some(port) = ports.get_mut(&port_number(number)?) {
                    port.endpoints.push(endpoint.clone());
                }
            }
        }
        let hosts = message.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { name: message.name, namespace: message.namespace, hosts, ports })
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = InvalidService;

    fn try_from(message: v1::Endpoint) -> Result<Self, InvalidService> {
        let mesh_address =
            message.mesh_address.parse().map_err(|_| InvalidService::MeshAddress(message.mesh_address.clone()))?;
        let address = message.address.parse().map_err(|_| InvalidWorkload::Address(message.address.clone()))?;
        let identity: SpiffeId = message.spiffe_id.parse().map_err(InvalidWorkload::Identity)?;
        let expected = Expected::id(identity.clone());
        Ok(Self { workload: message.workload, mesh_address, address, identity, expected })
    }
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The mesh has no such service.
    #[error("the mesh has no service {0:?}")]
    Host(String),
    /// The service has no such port.
    #[error("the service {service} has no port {port}")]
    Port {
        /// The service.
        service: String,
        /// What was asked for.
        port: u16,
    },
}

/// Why a service from the control plane is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidService {
    /// Not an address and a port.
    #[error("{0:?} is not an address and a port")]
    MeshAddress(String),
    /// As with workloads.
    #[error(transparent)]
    Workload(#[from] InvalidWorkload),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, namespace: &str) -> Arc<Service> {
        let full = format!("{name}.{namespace}");
        let port = |number, protocol: v1::Protocol| v1::ServicePort {
            number,
            target_port: 9080,
            protocol: protocol.into(),
            ..v1::ServicePort::default()
        };
        let endpoint = |n: u8, ports: &[u32]| v1::Endpoint {
            workload: format!("{namespace}/{name}-{n}"),
            mesh_address: format!("127.0.0.{n}:15008"),
            address: format!("127.0.0.{n}"),
            spiffe_id: format!("spiffe://td/ns/{namespace}/sa/{name}"),
            ports: ports.to_vec(),
        };
        let message = v1::Service {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            hosts: vec![full.clone(), format!("{full}.svc"), format!("{full}.svc.td")],
            ports: vec![port(80, v1::Protocol::Http), port(81, v1::Protocol::Tcp)],
            endpoints: vec![endpoint(1, &[80, 81]), endpoint(2, &[80])],
        };
        Arc::new(message.try_into().unwrap())
    }

    #[test]
    fn a_service_answers_to_its_names_and_the_short_one_at_home() {
        let services = [service("reviews", "shop"), service("reviews", "other"), service("ratings", "other")];
        let directory = Directory::new(&services, "shop");
        let check = |authority: &str, default_port, expected: Result<(&str, u16), Unknown>| {
            let found = directory.route(&Authority::parse(authority).unwrap(), default_port);
            let found = found.map(|route| (route.service.to_string(), route.number));
            assert_eq!(found, expected.map(|(s, n)| (s.to_owned(), n)), "{authority}");
        };
        check("reviews.shop", None, Ok(("reviews.shop", 80)));
        check("REVIEWS.shop.svc:80", None, Ok(("reviews.shop", 80)));
        check("reviews.shop.svc.td.", None, Ok(("reviews.shop", 80)));
        check("reviews", Some(81), Ok(("reviews.shop", 81)));
        check("reviews:80", Some(81), Ok(("reviews.shop", 80)));
        check("reviews.other", None, Ok(("reviews.other", 80)));
        check("ratings", None, Err(Unknown::Host("ratings".to_owned())));
        check("example.com", None, Err(Unknown::Host("example.com".to_owned())));
        check("reviews:82", None, Err(Unknown::Port { service: "reviews.shop".to_owned(), port: 82 }));
    }

    #[test]
    fn a_port_knows_who_serves_it() {
        let directory = Directory::new(&[service("reviews", "shop")], "shop");
        let served = |authority: &str| {
            let route = directory.route(&Authority::parse(authority).unwrap(), None).unwrap();
            route.port().unwrap().endpoints.iter().map(|e| e.workload.clone()).collect::<Vec<_>>()
        };
        assert_eq!(served("reviews:80"), ["shop/reviews-1", "shop/reviews-2"]);
        assert_eq!(served("reviews:81"), ["shop/reviews-1"]);
    }
}
