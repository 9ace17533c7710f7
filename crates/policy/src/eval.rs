//! Whether a clause holds for a request: the one place that reads attributes.

use std::net::IpAddr;

use crate::model::{Attribute, Clause, Matcher};
use crate::request::{Http, Protocol, Request};

/// Clauses with more values than this have them sorted, and searched instead of scanned.
pub(crate) const SCANNED_VALUES: usize = 16;

/// Whether every clause holds.
pub(crate) fn all_hold(clauses: &[Clause], request: &Request<'_>) -> bool {
    clauses.iter().all(|clause| holds(clause, request))
}

/// Whether the clause holds.
///
/// A clause about HTTP never holds on TCP, negated or not: that drops its rule or subject. Nor does one about what
/// no request has yet: that a caller is in none of some groups is not known as long as no token is verified.
pub(crate) fn holds(clause: &Clause, request: &Request<'_>) -> bool {
    if clause.attribute.is_unverified() {
        return false;
    }
    let http = match request.protocol {
        Protocol::Http(http) => Some(http),
        Protocol::Tcp if clause.attribute.is_http_only() => return false,
        Protocol::Tcp => None,
    };
    let found = match &clause.attribute {
        Attribute::Header(name) => return header_holds(clause, name, http),
        Attribute::DestinationIp => any_address(&clause.values, request.destination.ip()),
        Attribute::SourceIp => any_address(&clause.values, request.source_ip),
        Attribute::DestinationPort => any_port(&clause.values, request.destination.port()),
        attribute => text(attribute, request).is_some_and(|text| any_text(&clause.values, text.as_bytes())),
    };
    found != clause.negated
}

/// Each value on its own. Positive: there is a value, and none lies outside. Negated: no value matches.
fn header_holds(clause: &Clause, name: &str, http: Option<Http<'_>>) -> bool {
    let mut any = false;
    let mut all = true;
    if let Some(http) = http {
        http.headers.visit(name, &mut |value| {
            let matches = any_text(&clause.values, value);
            any |= matches;
            all &= matches;
            // Goes on only while the answer is open.
            if clause.negated { !any } else { all }
        });
    }
    if clause.negated { !any } else { any && all }
}

/// The attributes that are one text, where the request has it.
pub(crate) fn text<'a>(attribute: &Attribute, request: &Request<'a>) -> Option<&'a str> {
    let http = match request.protocol {
        Protocol::Http(http) => Some(http),
        Protocol::Tcp => None,
    };
    match attribute {
        Attribute::Host => http?.host.map(|host| host.as_str()),
        Attribute::Path => Some(http?.path.as_str()),
        Attribute::Method => Some(http?.method),
        Attribute::Sni => request.sni,
        Attribute::SourcePrincipal => request.source.map(|id| id.principal()),
        Attribute::SourceNamespace => request.source_namespace(),
        Attribute::Header(_)
        | Attribute::DestinationIp
        | Attribute::DestinationPort
        | Attribute::SourceIp
        | Attribute::AuthPrincipal
        | Attribute::AuthAudiences
        | Attribute::AuthPresenter
        | Attribute::AuthClaim(_)
        | Attribute::EnvoyFilter { .. }
        | Attribute::Unknown(_) => None,
    }
}

fn any_text(values: &[Matcher], text: &[u8]) -> bool {
    if values.len() <= SCANNED_VALUES {
        return values.iter().any(|value| matches_text(value, text));
    }
    // Sorted: `Present`, then `Exact`, then the rest.
    let exact_ends = values.partition_point(|value| matches!(value, Matcher::Present | Matcher::Exact(_)));
    let (exact, rest) = values.split_at_checked(exact_ends).unwrap_or((values, &[]));
    let found = exact.binary_search_by(|value| match value {
        Matcher::Exact(exact) => exact.as_bytes().cmp(text),
        _ => std::cmp::Ordering::Less,
    });
    found.is_ok() || exact.first() == Some(&Matcher::Present) || rest.iter().any(|value| matches_text(value, text))
}

fn matches_text(value: &Matcher, text: &[u8]) -> bool {
    match value {
        Matcher::Present => true,
        Matcher::Exact(exact) => exact.as_bytes() == text,
        Matcher::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
        Matcher::Suffix(suffix) => text.ends_with(suffix.as_bytes()),
        Matcher::Cidr(_) | Matcher::Port(_) => false,
    }
}

fn any_address(values: &[Matcher], address: IpAddr) -> bool {
    // An IPv4 peer on an IPv6 socket is still that IPv4 peer.
    let address = address.to_canonical();
    values.iter().any(|value| match value {
        Matcher::Present => true,
        Matcher::Cidr(net) => net.contains(&address),
        _ => false,
    })
}

fn any_port(values: &[Matcher], port: u16) -> bool {
    values.iter().any(|value| match value {
        Matcher::Present => true,
        Matcher::Port(expected) => *expected == port,
        _ => false,
    })
}

/// Whether this version knows what the clause means. If not, its role must never match.
pub(crate) fn is_understood(clause: &Clause) -> bool {
    let fits = |value: &Matcher| match (&clause.attribute, value) {
        (Attribute::Unknown(_), _) => false,
        (_, Matcher::Present) => true,
        (Attribute::DestinationIp | Attribute::SourceIp, value) => matches!(value, Matcher::Cidr(_)),
        (Attribute::DestinationPort, value) => matches!(value, Matcher::Port(_)),
        (_, value) => matches!(value, Matcher::Exact(_) | Matcher::Prefix(_) | Matcher::Suffix(_)),
    };
    !clause.values.is_empty() && clause.values.iter().all(fits)
}
