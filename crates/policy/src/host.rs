//! The host that rules see.

use std::borrow::Cow;
use std::fmt;

/// The host a request asks for: lower case, without port, without the dot at the end.
///
/// Borrowed, without allocation, when it was normal already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host<'a>(Cow<'a, str>);

impl<'a> Host<'a> {
    /// Normalises the authority of a request target or the value of a `Host` header.
    ///
    /// # Errors
    /// When it names no host, or carries what a host cannot.
    pub fn normalize(authority: &'a str) -> Result<Self, RefusedHost> {
        let host = without_port(authority)?;
        let host = host.strip_suffix('.').unwrap_or(host);
        let name = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if name.is_empty() || name.ends_with('.') {
            return Err(RefusedHost::Empty);
        }
        // `%61dmin` is `admin` to some servers and another host to others; in an address it begins the zone.
        let is_address = name.len() != host.len();
        if let Some(c) = name.chars().find(|c| !is_host_char(*c) || (*c == '%' && !is_address)) {
            return Err(RefusedHost::Character(c));
        }
        if host.bytes().any(|b| b.is_ascii_uppercase()) {
            return Ok(Self(Cow::Owned(host.to_ascii_lowercase())));
        }
        Ok(Self(Cow::Borrowed(host)))
    }

    /// The host that rules are matched against. An IPv6 address keeps its brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a host is refused before any rule sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedHost {
    /// There is no name in it.
    #[error("the host is empty")]
    Empty,
    /// What follows the colon is not a port.
    #[error("the host's port is not a number from 0 to 65535")]
    Port,
    /// `user@`, a slash, a space, a control character, ...
    #[error("the host contains {0:?}")]
    Character(char),
}

fn without_port(authority: &str) -> Result<&str, RefusedHost> {
    // The colons of an IPv6 address are within its brackets.
    let after_brackets = authority.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = authority.get(after_brackets..).and_then(|rest| rest.find(':')) else {
        return Ok(authority);
    };
    let (host, port) = authority.split_at(after_brackets + colon);
    let port = port.strip_prefix(':').unwrap_or(port);
    // An empty port is the scheme's own (RFC 3986 §3.2.3).
    let is_port = port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if is_port { Ok(host) } else { Err(RefusedHost::Port) }
}

/// The characters of host names and addresses. Names beyond ASCII come as `xn--` labels.
fn is_host_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '~' | '%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_mean_the_same_become_the_same() {
        for (authority, expected) in [
            ("reviews.shop", Ok("reviews.shop")),
            ("Reviews.Shop:9080", Ok("reviews.shop")),
            ("reviews.shop.:80", Ok("reviews.shop")),
            ("reviews:", Ok("reviews")),
            ("[::1]:8080", Ok("[::1]")),
            ("[FE80::1]", Ok("[fe80::1]")),
            ("10.0.0.1:80", Ok("10.0.0.1")),
            ("", Err(RefusedHost::Empty)),
            (":80", Err(RefusedHost::Empty)),
            (".", Err(RefusedHost::Empty)),
            ("a..", Err(RefusedHost::Empty)),
            ("reviews:http", Err(RefusedHost::Port)),
            ("reviews:70000", Err(RefusedHost::Port)),
            ("a:1:2", Err(RefusedHost::Port)),
            ("a::80", Err(RefusedHost::Port)),
            ("me@reviews", Err(RefusedHost::Character('@'))),
            ("me:x@reviews", Err(RefusedHost::Port)),
            ("a b", Err(RefusedHost::Character(' '))),
            ("a/b", Err(RefusedHost::Character('/'))),
            ("%61dmin.shop", Err(RefusedHost::Character('%'))),
            ("[fe80::1%25eth0]:80", Ok("[fe80::1%25eth0]")),
            ("[::1]x", Err(RefusedHost::Character('['))),
        ] {
            assert_eq!(Host::normalize(authority).map(|h| h.to_string()), expected.map(str::to_owned), "{authority:?}");
        }
    }
}
