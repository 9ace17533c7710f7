use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use alcazar_api::mesh::v1;
use alcazar_identity::{ParseSpiffeIdError, SpiffeId};

use super::DEFAULT_PORT;
use crate::authority::Authority;

/// The workload in front of which a proxy stands.
#[derive(Debug, Clone)]
pub struct Workload {
    name: String,
    namespace: String,
    service_account: String,
    spiffe_id: SpiffeId,
    address: IpAddr,
    ports: BTreeMap<u16, Port>,
    /// Host -> port of the service -> port of the workload.
    routes: HashMap<String, BTreeMap<u16, u16>>,
}

/// A port on which the application listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// How what is spoken there is read and decided.
    pub protocol: Protocol,
    /// The port's name says that HTTP/2 alone is spoken there (`grpc`, `http2`, `h2c`).
    pub h2: bool,
}

/// How the bytes on a port are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Requests, each decided.
    Http,
    /// Bytes, decided once per connection.
    Tcp,
}

impl Workload {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Its identity.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// Where one of its ports is.
    pub fn socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// A port of the application.
    pub fn port(&self, number: u16) -> Option<Port> {
        self.ports.get(&number).copied()
    }

    /// Which of our ports a request for `authority` means.
    ///
    /// # Errors
    /// When it is for somebody else.
    pub fn route(&self, authority: &Authority<'_>) -> Result<(u16, Port), Misdirected> {
        let host = authority.host().as_str();
        let ports = self.routes.get(host).ok_or_else(|| Misdirected::Host(host.to_owned()))?;
        let asked = authority.port().unwrap_or(DEFAULT_PORT);
        let number = *ports.get(&asked).ok_or_else(|| Misdirected::Port(host.to_owned(), asked))?;
        let port = self.port(number).ok_or_else(|| Misdirected::Port(host.to_owned(), asked))?;
        Ok((number, port))
    }

    /// Which of our ports a tunnel to `authority` means: our own address and a port of ours.
    ///
    /// # Errors
    /// When it is for somebody else.
    pub fn tunnel(&self, authority: &Authority<'_>) -> Result<(u16, Port), Misdirected> {
        let host = authority.host().as_str();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if address != Ok(self.address) {
            return Err(Misdirected::Address(host.to_owned()));
        }
        let number = authority.port().ok_or(Misdirected::NoPort)?;
        let port = self.port(number).ok_or_else(|| Misdirected::Port(host.to_owned(), number))?;
        Ok((number, port))
    }
}

impl TryFrom<v1::Workload> for Workload {
    type Error = InvalidWorkload;

    fn try_from(message: v1::Workload) -> Result<Self, InvalidWorkload> {
        let spiffe_id = message.spiffe_id.parse().map_err(InvalidWorkload::Identity)?;
        let address = message.address.parse().map_err(|_| InvalidWorkload::Address(message.address.clone()))?;
        let mut ports = BTreeMap::new();
        for port in &message.ports {
            let number = port_number(port.number)?;
            ports.insert(number, Port { protocol: port.protocol().try_into()?, h2: says_h2(&port.name) });
        }
        let mut routes: HashMap<String, BTreeMap<u16, u16>> = HashMap::new();
        for service in &message.services {
            for host in &service.hosts {
                let route = routes.entry(host.to_ascii_lowercase()).or_default();
                for port in &service.ports {
                    route.insert(port_number(port.number)?, port_number(port.target_port)?);
                }
            }
        }
        let v1::Workload { name, namespace, service_account, .. } = message;
        Ok(Self { name, namespace, service_account, spiffe_id, address, ports, routes })
    }
}

impl TryFrom<v1::Protocol> for Protocol {
    type Error = InvalidWorkload;

    fn try_from(protocol: v1::Protocol) -> Result<Self, InvalidWorkload> {
        match protocol {
            v1::Protocol::Http => Ok(Self::Http),
            v1::Protocol::Tcp => Ok(Self::Tcp),
            v1::Protocol::Unspecified => Err(InvalidWorkload::Protocol),
        }
    }
}

/// Why a request is not for the workload that it reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misdirected {
    /// No service of ours has this name.
    #[error("{0:?} is no service of this workload")]
    Host(String),
    /// The name is ours, the port is not.
    #[error("{0:?} has no port {1} on this workload")]
    Port(String, u16),
    /// A tunnel to another address.
    #[error("{0:?} is not the address of this workload")]
    Address(String),
    /// A tunnel without a port.
    #[error("a tunnel needs a port")]
    NoPort,
}

/// Why a workload from the control plane is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWorkload {
    /// The identity is not one.
    #[error("the workload's identity is not a SPIFFE ID")]
    Identity(#[source] ParseSpiffeIdError),
    /// The address is not one.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// Not from 1 to 65535.
    #[error("{0} is not a port")]
    Port(u32),
    /// A port without a protocol, or with one of a newer version.
    #[error("a port has no protocol that this version knows")]
    Protocol,
}

pub(super) fn port_number(number: u32) -> Result<u16, InvalidWorkload> {
    u16::try_from(number).ok().filter(|number| *number > 0).ok_or(InvalidWorkload::Port(number))
}

/// By the convention of Kubernetes and Istio: `<protocol>` or `<protocol>-<anything>`.
fn says_h2(name: &str) -> bool {
    let protocol = name.split('-').next().unwrap_or_default();
    ["grpc", "http2", "h2c"].iter().any(|known| protocol.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviews() -> Workload {
        let port = |name: &str, number, protocol: v1::Protocol| v1::WorkloadPort {
            name: name.to_owned(),
            number,
            protocol: protocol.into(),
        };
        let service = |number, target_port, protocol: v1::Protocol| v1::ServicePort {
            name: String::new(),
            number,
            target_port,
            protocol: protocol.into(),
        };
        let message = v1::Workload {
            name: "reviews-v1".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "reviews".to_owned(),
            spiffe_id: "spiffe://td/ns/shop/sa/reviews".to_owned(),
            address: "127.0.0.1".to_owned(),
            ports: vec![port("http", 9080, v1::Protocol::Http), port("db", 5432, v1::Protocol::Tcp)],
            services: vec![v1::LocalService {
                hosts: vec!["reviews".to_owned(), "reviews.shop".to_owned()],
                ports: vec![service(80, 9080, v1::Protocol::Http), service(5432, 5432, v1::Protocol::Tcp)],
            }],
            ..v1::Workload::default()
        };
        message.try_into().unwrap()
    }

    #[test]
    fn a_request_finds_its_port_or_is_misdirected() {
        let workload = reviews();
        let route = |authority| workload.route(&Authority::parse(authority).unwrap()).map(|(number, _)| number);
        assert_eq!(route("reviews.shop"), Ok(9080));
        assert_eq!(route("Reviews:80"), Ok(9080));
        assert_eq!(route("reviews.shop:5432"), Ok(5432));
        assert_eq!(route("reviews.shop:9080"), Err(Misdirected::Port("reviews.shop".to_owned(), 9080)));
        assert_eq!(route("ratings.shop"), Err(Misdirected::Host("ratings.shop".to_owned())));
        assert_eq!(route("127.0.0.1:9080"), Err(Misdirected::Host("127.0.0.1".to_owned())));
    }

    #[test]
    fn a_tunnel_names_our_address_and_a_port_of_ours() {
        let workload = reviews();
        let tunnel = |authority| workload.tunnel(&Authority::parse(authority).unwrap()).map(|(_, port)| port.protocol);
        assert_eq!(tunnel("127.0.0.1:9080"), Ok(Protocol::Http));
        assert_eq!(tunnel("127.0.0.1:5432"), Ok(Protocol::Tcp));
        assert_eq!(tunnel("127.0.0.1"), Err(Misdirected::NoPort));
        assert_eq!(tunnel("127.0.0.2:5432"), Err(Misdirected::Address("127.0.0.2".to_owned())));
        assert_eq!(tunnel("reviews.shop:5432"), Err(Misdirected::Address("reviews.shop".to_owned())));
        assert_eq!(tunnel("127.0.0.1:22"), Err(Misdirected::Port("127.0.0.1".to_owned(), 22)));
    }

    #[test]
    fn a_port_without_a_protocol_is_refused() {
        let port = v1::WorkloadPort { number: 80, ..v1::WorkloadPort::default() };
        let message = v1::Workload {
            spiffe_id: "spiffe://td/ns/a/sa/b".to_owned(),
            address: "::1".to_owned(),
            ports: vec![port],
            ..v1::Workload::default()
        };
        assert_eq!(Workload::try_from(message).unwrap_err(), InvalidWorkload::Protocol);
    }
}
