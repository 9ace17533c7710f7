//! What the parts of a mesh file have in common: required fields, addresses, port numbers, protocols.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use alcazar_yaml::{Mapping, Node, Reader, Span, Text, YamlError, suggest};

use crate::world::Protocol;

/// A value and where it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

impl<T> Located<T> {
    pub(super) fn new(value: T, span: &Span) -> Self {
        Self { value, span: span.clone() }
    }
}

/// The value of a field that must be there. Notes it if it is not.
pub(super) fn required<'n>(
    reader: &mut Reader<'_>,
    fields: &mut Mapping<'n>,
    name: &'static str,
    of: &str,
) -> Option<&'n Node> {
    let node = fields.take(name);
    if node.is_none() {
        let error = YamlError::new(reader.file(), fields.span().clone(), format!("{of} has no `{name}`"));
        reader.push(error.with_label(format!("`{name}` is missing")));
    }
    node
}

/// `HTTP` or `TCP`.
pub(super) fn protocol(reader: &mut Reader<'_>, node: &Node) -> Option<Protocol> {
    let text = reader.text(node, "protocol")?;
    let help = match text.text.as_str() {
        "HTTP" => return Some(Protocol::Http),
        "TCP" => return Some(Protocol::Tcp),
        other => match other.to_ascii_uppercase().as_str() {
            "GRPC" | "HTTP2" | "HTTP/2" | "H2" | "H2C" | "GRPC-WEB" => {
                "write `HTTP`: HTTP/1.1, HTTP/2 and gRPC are told apart by themselves".to_owned()
            }
            "HTTPS" | "TLS" | "MTLS" | "MONGO" | "MYSQL" | "REDIS" | "POSTGRES" => {
                "write `TCP`: what the proxy cannot read is decided per connection".to_owned()
            }
            _ => suggest(other, ["HTTP", "TCP"]).unwrap_or_default(),
        },
    };
    let message = format!("`{}` is not a protocol", text.text);
    reader.push(YamlError::new(reader.file(), text.span, message).with_help(help));
    None
}

/// A port number, 1 to 65535.
pub(super) fn port_number(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Located<u16>> {
    let text = reader.text(node, what)?;
    match text.text.parse::<u16>() {
        Ok(number) if number > 0 => Some(Located::new(number, &text.span)),
        _ => {
            let message = format!("`{}` is not a port number", text.text);
            reader.error_with_help(&text.span, message, "a port is a number from 1 to 65535");
            None
        }
    }
}

/// Where an application listens: an IP address, or `localhost`.
pub(super) fn ip_address(reader: &mut Reader<'_>, node: &Node) -> Option<IpAddr> {
    let text = reader.text(node, "address")?;
    if text.text == "localhost" {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let help = match text.text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
            "state the one address that the application can be reached at".to_owned()
        }
        Ok(ip) => return Some(ip),
        Err(_) => match text.text.parse::<SocketAddr>() {
            Ok(with_port) => format!("write `{}`: the port stands in `ports`", with_port.ip()),
            Err(_) => "an address is an IP address, as in `127.0.0.1`, or `localhost`".to_owned(),
        },
    };
    let message = format!("`{}` is not an address of an application", text.text);
    reader.error_with_help(&text.span, message, help);
    None
}

/// Where a proxy listens: `127.0.0.1:15101`.
pub(super) fn socket_address(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Located<SocketAddr>> {
    let text = reader.text(node, what)?;
    let numeric = match text.text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.text.clone(),
    };
    let help = match numeric.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => format!("state the port, or leave `{what}` out to have one chosen"),
        Ok(address) => return Some(Located::new(address, &text.span)),
        Err(_) => format!("`{what}` is an IP address and a port, as in `127.0.0.1:15101`"),
    };
    let message = format!("`{}` is not an address to listen on", text.text);
    reader.error_with_help(&text.span, message, help);
    None
}

/// A mapping of texts: labels, a selector.
pub(super) fn labels(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Vec<(Text, Text)>> {
    let mut fields = reader.mapping(node, what)?;
    let mut labels = Vec::new();
    for (key, value) in fields.take_rest() {
        let Some(value) = reader.text(value, &key.text) else { continue };
        if !super::names::is_label_key(&key.text) {
            let help = "a key is a name of letters, digits, `-`, `_` and `.`, with an optional `prefix.example/`";
            reader.error_with_help(&key.span, format!("`{}` cannot be the key of a label", key.text), help);
        } else if !super::names::is_label_value(&value.text) {
            let help = "a value has at most 63 letters, digits, `-`, `_` and `.`, a letter or digit at both ends";
            reader.error_with_help(&value.span, format!("`{}` cannot be the value of a label", value.text), help);
        } else {
            labels.push((key, value));
        }
    }
    Some(labels)
}
