//! One value of a document to one matcher, refusing what could never match or would match too much.

use std::net::IpAddr;

use alcazar_yaml::{Reader, Text};
use ipnet::IpNet;

use crate::model::Matcher;
use crate::path::{EncodedSlash, NormalizedPath};

/// Exact, `prefix*`, `*suffix` or `*`.
pub(crate) fn pattern(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    let text = value.text.as_str();
    if text.is_empty() {
        reader.error_with_help(
            &value.span,
            "an empty text matches nothing",
            "remove it, or write `\"*\"` for anything",
        );
        return None;
    }
    if text == "*" {
        return Some(Matcher::Present);
    }
    let matcher = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(suffix), _) if !suffix.contains('*') => Matcher::Suffix(suffix.to_owned()),
        (None, Some(prefix)) if !prefix.contains('*') => Matcher::Prefix(prefix.to_owned()),
        (None, None) if !text.contains('*') => Matcher::Exact(text.to_owned()),
        _ => {
            let message = format!("`{text}`: a `*` can stand at the start or at the end only, and once");
            reader.error_with_help(&value.span, message, "write one value for each prefix, or each suffix");
            return None;
        }
    };
    Some(matcher)
}

/// A pattern of paths, as they are after normalisation.
pub(crate) fn path(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    let matcher = pattern(reader, value)?;
    // A letter where the pattern leaves off makes a whole path of it, without making or breaking a dot segment.
    let (whole, added_before, added_after) = match &matcher {
        Matcher::Exact(path) => (path.clone(), "", ""),
        Matcher::Prefix(prefix) => (format!("{prefix}x"), "", "x"),
        Matcher::Suffix(suffix) => (format!("/x{suffix}"), "/x", ""),
        _ => return Some(matcher),
    };
    if whole.contains('?') {
        let message = format!("`{}` can never match: the query (from `?` on) is no part of the path", value.text);
        reader.error_with_help(&value.span, message, "leave the query away");
        return None;
    }
    match NormalizedPath::parse(&whole, EncodedSlash::Refuse) {
        Ok(normal) if normal.as_str() == whole => return Some(matcher),
        Ok(normal) => {
            let message = format!("`{}` can never match: paths are compared after normalisation", value.text);
            let mended = normal.as_str().strip_prefix(added_before).and_then(|path| path.strip_suffix(added_after));
            let star = |added: &str| if added.is_empty() { "" } else { "*" };
            let help = mended.filter(|path| !path.is_empty());
            let help = help.map(|path| format!("write `{}{path}{}`", star(added_before), star(added_after)));
            let help = help.unwrap_or_else(|| "write the path without `.`, `..`, `//` or needless `%..`".to_owned());
            reader.error_with_help(&value.span, message, help);
        }
        Err(refused) => {
            let message = format!("`{}` can never match: {refused}", value.text);
            reader.error_with_help(&value.span, message, "requests with such a path are refused before any rule");
        }
    }
    None
}

/// A pattern of hosts: compared in lower case, without port.
pub(crate) fn host(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    let lower = |text: &str| text.to_ascii_lowercase();
    let matcher = match pattern(reader, value)? {
        Matcher::Exact(host) => Matcher::Exact(lower(host.strip_suffix('.').unwrap_or(&host))),
        Matcher::Prefix(host) => Matcher::Prefix(lower(&host)),
        Matcher::Suffix(host) => Matcher::Suffix(lower(host.strip_suffix('.').unwrap_or(&host))),
        other => other,
    };
    let text = match &matcher {
        Matcher::Exact(text) | Matcher::Prefix(text) | Matcher::Suffix(text) => text.as_str(),
        _ => return Some(matcher),
    };
    if text.is_empty() {
        let message = format!("`{}` names no host", value.text);
        reader.error_with_help(&value.span, message, "write the host, or `\"*\"` for any");
        return None;
    }
    if let Some(c) = text.chars().find(|c| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#' | '%')) {
        reader.error(&value.span, format!("`{}` can never match: no host contains {c:?}", value.text));
        return None;
    }
    // The colons of an IPv6 address are followed by its bracket.
    let port = text.rfind(']').map_or(text, |bracket| text.get(bracket..).unwrap_or_default()).contains(':');
    if port && !text.starts_with('[') || text.rfind("]:").is_some() {
        let message = format!("`{}` can never match: hosts are compared without their port", value.text);
        reader.error_with_help(&value.span, message, "leave the port away, and use `ports` if it matters");
        return None;
    }
    Some(matcher)
}

/// A pattern of principals, without `spiffe://`.
pub(crate) fn principal(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    if let Some(principal) = value.text.strip_prefix("spiffe://") {
        let message = format!("`{}` can never match: a principal is written without `spiffe://`", value.text);
        reader.error_with_help(&value.span, message, format!("write `{principal}`"));
        return None;
    }
    pattern(reader, value)
}

/// An address or a network.
pub(crate) fn network(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    let address = value.text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    let net = address.or_else(|_| value.text.parse::<IpNet>());
    match net {
        Ok(net) => Some(Matcher::Cidr(canonical(net.trunc()))),
        Err(_) => {
            let message = format!("`{}` is neither an address nor a network", value.text);
            reader.error_with_help(&value.span, message, "write it like `10.0.0.1`, `10.0.0.0/8` or `2001:db8::/32`");
            None
        }
    }
}

/// Addresses are compared in their canonical form, so networks must be too.
fn canonical(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let length = net.prefix_len().checked_sub(MAPPED);
    let mapped = match (net, length) {
        (IpNet::V6(v6), Some(length)) => v6.addr().to_ipv4_mapped().map(|v4| IpNet::new(v4.into(), length)),
        _ => None,
    };
    mapped.and_then(Result::ok).unwrap_or(net)
}

/// A port number.
pub(crate) fn port(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    match value.text.parse::<u16>() {
        Ok(port) if port > 0 => Some(Matcher::Port(port)),
        _ => {
            reader.error(&value.span, format!("port {} is not a number from 1 to 65535", value.text));
            None
        }
    }
}

/// The name of a header that a constraint or property may look at, in lower case.
pub(crate) fn header_name(reader: &mut Reader<'_>, key: &Text, name: &str) -> Option<String> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let pseudo = match name.to_ascii_lowercase().as_str() {
        ":path" => Some("paths"),
        ":method" => Some("methods"),
        ":authority" | "host" => Some("hosts"),
        _ => None,
    };
    if let Some(field) = pseudo {
        let message = format!("`{name}` is not a header that a rule can look at");
        reader.error_with_help(&key.span, message, format!("use `{field}` of a ServiceRole"));
        return None;
    }
    if name.is_empty() || !name.chars().all(is_token) {
        reader.error(&key.span, format!("`{name}` is not the name of a header"));
        return None;
    }
    Some(name.to_ascii_lowercase())
}

/// The text between the brackets of `prefix[...]`.
pub(crate) fn bracketed<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    key.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')
}
