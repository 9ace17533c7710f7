//! One entry of `workloads`, read and checked by itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_yaml::{Mapping, Node, Reader, Span, Text, YamlError};

use super::fields::{Located, ip_address, labels, port_number, protocol, required, socket_address};
use super::names::{label, subdomain};
use crate::world::{Port, Protocol};

/// A workload as the file states it: proxies' addresses may still have to be chosen.
#[derive(Debug, Clone)]
pub(crate) struct Stated {
    pub(crate) name: Text,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) labels: BTreeMap<String, String>,
    /// The `app` label, which names the default service.
    pub(super) app: Option<Text>,
    pub(crate) address: IpAddr,
    pub(crate) command: Option<Vec<String>>,
    pub(super) ports: Vec<StatedPort>,
    pub(super) inbound: Option<Located<SocketAddr>>,
    pub(super) outbound: Option<Located<SocketAddr>>,
    pub(super) forwards: Vec<StatedForward>,
    /// Where the entry begins.
    pub(crate) span: Span,
}

/// One entry of `ports`.
#[derive(Debug, Clone)]
pub(super) struct StatedPort {
    pub(super) name: Text,
    pub(super) number: Located<u16>,
    pub(super) protocol: Protocol,
}

/// One entry of `forwards`.
#[derive(Debug, Clone)]
pub(super) struct StatedForward {
    pub(super) listen: Located<SocketAddr>,
    pub(super) to: Text,
}

impl Stated {
    /// `<namespace>/<name>`.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name.text)
    }

    pub(crate) fn inbound(&self) -> Option<SocketAddr> {
        self.inbound.as_ref().map(|inbound| inbound.value)
    }

    pub(crate) fn outbound(&self) -> Option<SocketAddr> {
        self.outbound.as_ref().map(|outbound| outbound.value)
    }

    pub(crate) fn ports(&self) -> Vec<Port> {
        let port = |port: &StatedPort| Port {
            name: port.name.text.clone(),
            number: port.number.value,
            protocol: port.protocol,
        };
        self.ports.iter().map(port).collect()
    }

    pub(super) fn port(&self, number: u16) -> Option<&StatedPort> {
        self.ports.iter().find(|port| port.number.value == number)
    }
}

/// Reads one entry of `workloads`.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node, trust_domain: &TrustDomain) -> Option<Stated> {
    let mut fields = reader.mapping(node, "workloads")?;
    let name = required(reader, &mut fields, "name", "this workload").and_then(|node| label(reader, node, "name"));
    let of = name.as_ref().map_or_else(|| "this workload".to_owned(), |name| format!("the workload `{}`", name.text));
    let namespace = required(reader, &mut fields, "namespace", &of).and_then(|node| namespace(reader, node));
    let account =
        required(reader, &mut fields, "serviceAccount", &of).and_then(|node| subdomain(reader, node, "serviceAccount"));
    let labels = fields.take("labels").and_then(|node| labels(reader, node, "labels")).unwrap_or_default();
    let place = place(reader, &mut fields, &of);
    let ports = fields.take("ports").map(|node| ports(reader, node)).unwrap_or_default();
    let inbound = fields.take("inbound").and_then(|node| inbound(reader, node));
    let outbound = fields.take("outbound").and_then(|node| socket_address(reader, node, "outbound"));
    let forwards = fields.take("forwards").map(|node| forwards(reader, node)).unwrap_or_default();
    let span = fields.span().clone();
    reader.finish(fields);

    let (name, namespace, account, (address, command)) = (name?, namespace?, account?, place?);
    let spiffe_id = match SpiffeId::workload(trust_domain, &namespace, &account.text) {
        Ok(id) => id,
        Err(error) => {
            reader.error(&account.span, error.to_string());
            return None;
        }
    };
    let app = labels.iter().find(|(key, _)| key.text == "app").map(|(_, value)| value.clone());
    let labels = labels.into_iter().map(|(key, value)| (key.text, value.text)).collect();
    let service_account = account.text;
    Some(Stated {
        name,
        namespace,
        service_account,
        spiffe_id,
        labels,
        app,
        address,
        command,
        ports,
        inbound,
        outbound,
        forwards,
        span,
    })
}

/// A namespace that is not our own: who could name a workload there would be given the identity of our CA.
pub(super) fn namespace(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    let text = label(reader, node, "namespace")?;
    if text.text == RESERVED {
        let message = format!("the namespace `{RESERVED}` is that of Alcazar's own parts");
        reader.error_with_help(&text.span, message, "choose another namespace");
        return None;
    }
    Some(text.text)
}

/// `address` or `command`: exactly one.
fn place(reader: &mut Reader<'_>, fields: &mut Mapping<'_>, of: &str) -> Option<(IpAddr, Option<Vec<String>>)> {
    let help = "`address` is for something that runs already, `command` for something to start";
    match (fields.take_with_key("address"), fields.take_with_key("command")) {
        (Some((_, node)), None) => Some((ip_address(reader, node)?, None)),
        (None, Some((_, node))) => Some((LOOPBACK, Some(command(reader, node)?))),
        (Some((address, _)), Some((command, _))) => {
            let error = YamlError::new(reader.file(), command.span.clone(), format!("{of} has both places to be"))
                .with_label("a command")
                .with_also(address.span.clone(), "and an address");
            reader.push(error.with_help(format!("keep one: {help}")));
            None
        }
        (None, None) => {
            let error = YamlError::new(
                reader.file(),
                fields.span().clone(),
                format!("{of} has neither `address` nor `command`"),
            );
            reader.push(error.with_label("one of them is missing").with_help(help));
            None
        }
    }
}

fn command(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let words = reader.texts(node, "command")?;
    match words.first() {
        Some(program) if !program.text.is_empty() => Some(words.into_iter().map(|word| word.text).collect()),
        _ => {
            let help = "the first word is the program, as in `[python3, -m, http.server, \"9080\"]`";
            reader.error_with_help(&node.span, "the command names no program", help);
            None
        }
    }
}

fn inbound(reader: &mut Reader<'_>, node: &Node) -> Option<Located<SocketAddr>> {
    let inbound = socket_address(reader, node, "inbound")?;
    if inbound.value.ip().is_unspecified() {
        let message = format!("`{}` is not an address that callers can connect to", inbound.value);
        reader.error_with_help(&inbound.span, message, "state the address at which other machines reach this proxy");
        return None;
    }
    Some(inbound)
}

fn ports(reader: &mut Reader<'_>, node: &Node) -> Vec<StatedPort> {
    let mut ports: Vec<StatedPort> = Vec::new();
    for item in reader.list(node, "ports").unwrap_or_default() {
        let Some(port) = port(reader, item) else { continue };
        let twin = ports.iter().find_map(|other| {
            if other.number.value == port.number.value {
                Some((
                    &port.number.span,
                    other.number.span.clone(),
                    format!("the port {} stands twice", port.number.value),
                ))
            } else if other.name.text == port.name.text {
                Some((&port.name.span, other.name.span.clone(), format!("two ports are named `{}`", port.name.text)))
            } else {
                None
            }
        });
        match twin {
            Some((span, first, message)) => {
                let error = YamlError::new(reader.file(), span.clone(), message);
                reader.push(error.with_label("again here").with_also(first, "first here"));
            }
            None => ports.push(port),
        }
    }
    ports
}

fn port(reader: &mut Reader<'_>, node: &Node) -> Option<StatedPort> {
    let mut fields = reader.mapping(node, "ports")?;
    let name = required(reader, &mut fields, "name", "this port").and_then(|node| label(reader, node, "name"));
    let number =
        required(reader, &mut fields, "number", "this port").and_then(|node| port_number(reader, node, "number"));
    let protocol = required(reader, &mut fields, "protocol", "this port").and_then(|node| protocol(reader, node));
    reader.finish(fields);
    Some(StatedPort { name: name?, number: number?, protocol: protocol? })
}

fn forwards(reader: &mut Reader<'_>, node: &Node) -> Vec<StatedForward> {
    let items = reader.list(node, "forwards").unwrap_or_default();
    items.iter().filter_map(|item| forward(reader, item)).collect()
}

fn forward(reader: &mut Reader<'_>, node: &Node) -> Option<StatedForward> {
    let mut fields = reader.mapping(node, "forwards")?;
    let listen =
        required(reader, &mut fields, "listen", "this forward").and_then(|node| socket_address(reader, node, "listen"));
    let to = required(reader, &mut fields, "to", "this forward").and_then(|node| reader.text(node, "to"));
    reader.finish(fields);
    Some(StatedForward { listen: listen?, to: to? })
}

/// The namespace of the CA and of the control plane.
const RESERVED: &str = "alcazar-system";
/// Where a command is told to listen.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
