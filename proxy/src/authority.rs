//! The authority of a request: who is asked for, and on which port.

use std::fmt;

use alcazar_policy::{Host, RefusedHost};

/// A host and perhaps a port, as `:authority`, `Host` and absolute request targets carry them.
///
/// The host is lower case, without the dot at the end. User information is refused.
///
/// **Source**: RFC 9110 §4.2, RFC 3986 §3.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority<'a> {
    host: Host<'a>,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads an authority.
    ///
    /// # Errors
    /// When it is not a host with, perhaps, a port from 1 to 65535.
    pub fn parse(text: &'a str) -> Result<Self, RefusedAuthority> {
        if text.contains('@') {
            return Err(RefusedAuthority::UserInfo);
        }
        let host = Host::normalize(text)?;
        // The colons of an IPv6 address are within its brackets.
        let after_brackets = text.rfind(']').map_or(0, |at| at + 1);
        let port = match text.get(after_brackets..).and_then(|rest| rest.split_once(':')) {
            None | Some((_, "")) => None,
            Some((_, port)) => match port.parse() {
                Ok(0) | Err(_) => return Err(RefusedAuthority::Port),
                Ok(port) => Some(port),
            },
        };
        Ok(Self { host, port })
    }

    /// Who is asked for.
    pub fn host(&self) -> &Host<'a> {
        &self.host
    }

    /// The port, where one was written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => fmt::Display::fmt(&self.host, f),
        }
    }
}

/// Why an authority is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedAuthority {
    /// `user@host`: parsers differ on what it names, and it carries secrets.
    #[error("the authority contains user information")]
    UserInfo,
    /// Not a number from 1 to 65535.
    #[error("the authority's port is not a number from 1 to 65535")]
    Port,
    /// The host cannot be one.
    #[error(transparent)]
    Host(#[from] RefusedHost),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        let check = |text: &str, expected: Option<(&str, Option<u16>)>| {
            let parsed = Authority::parse(text).ok();
            let parsed = parsed.as_ref().map(|a| (a.host().as_str(), a.port()));
            assert_eq!(parsed, expected, "{text:?}");
        };
        check("reviews.shop", Some(("reviews.shop", None)));
        check("Reviews.Shop.:9080", Some(("reviews.shop", Some(9080))));
        check("reviews:", Some(("reviews", None)));
        check("10.0.0.1:80", Some(("10.0.0.1", Some(80))));
        check("[::1]:80", Some(("[::1]", Some(80))));
        check("[::1]", Some(("[::1]", None)));
        for bad in [
            "", ":80", "a:0", "a:65536", "a:-1", "a:+1", "a:1:2", "a b", "a/b", "me@a", "me:x@a", "a:80@b", "a\0b",
            "a,b", "http://a", "a?x", "a#x", "[::1", "é.shop", "a::80",
        ] {
            check(bad, None);
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_something_that_parses_to_the_same(text in "[a-zA-Z0-9.:@\\[\\]-]{0,12}(:[0-9]{1,6})?") {
            if let Ok(authority) = Authority::parse(&text) {
                let printed = authority.to_string();
                let again = Authority::parse(&printed);
                prop_assert_eq!(again.as_ref(), Ok(&authority));
            }
        }
    }
}
