//! Where a document is: an `https` URL and nothing else.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::Scheme;

/// An `https` URL with a host, without user information.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpsUrl(Uri);

impl HttpsUrl {
    /// The host: a DNS name, or an address (one of IPv6 without its brackets).
    pub fn host(&self) -> &str {
        let host = self.0.host().unwrap_or_default();
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The port; 443 where the URL names none.
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(443)
    }

    /// Where a `Location` header of an answer from here leads: another `https` URL, or a reference that is relative to this one.
    ///
    /// **Source**: RFC 9110 §10.2.2, RFC 3986 §5.2.
    ///
    /// # Errors
    /// When it leads to anything else.
    pub fn join(&self, location: &str) -> Result<Self, ParseHttpsUrlError> {
        let location = location.split('#').next().unwrap_or_default();
        if let Some(rest) = location.strip_prefix("//") {
            return format!("https://{rest}").parse();
        }
        let scheme = location.split(['/', '?']).next().unwrap_or_default();
        if scheme.contains(':') {
            return location.parse();
        }
        let (path, query) = location.split_once('?').map_or((location, None), |(path, query)| (path, Some(query)));
        let own = self.0.path();
        let path = match path {
            "" => own.to_owned(),
            absolute if absolute.starts_with('/') => without_dots(absolute),
            relative => {
                let folder = own.rsplit_once('/').map_or("", |(folder, _)| folder);
                without_dots(&format!("{folder}/{relative}"))
            }
        };
        let query = query.or_else(|| if location.is_empty() { self.0.query() } else { None });
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("https://{}{path}{query}", self.authority()).parse()
    }

    /// What a request says in its `Host` header.
    pub(super) fn authority(&self) -> &str {
        self.0.authority().map(http::uri::Authority::as_str).unwrap_or_default()
    }

    /// Path and query.
    pub(super) fn target(&self) -> &str {
        self.0.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
    }
}

/// A path that begins with a slash, without its segments `.` and `..`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<_> = path.split('/').skip(1).collect();
    for (place, segment) in segments.iter().enumerate() {
        let last = place + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

impl FromStr for HttpsUrl {
    type Err = ParseHttpsUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |what| ParseHttpsUrlError { text: text.to_owned(), what };
        let uri: Uri = text.parse().map_err(|_reason| wrong("it cannot be read as one"))?;
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(wrong("it should begin with https://"));
        }
        match uri.authority() {
            Some(authority) if authority.as_str().contains('@') => Err(wrong("it should hold no user or password")),
            Some(authority) if authority.host().is_empty() || authority.port_u16() == Some(0) => {
                Err(wrong("it names no server"))
            }
            // A port that is no number: `port_u16` would pass it over.
            Some(authority) if authority.port().is_none() && authority.as_str().len() != authority.host().len() => {
                Err(wrong("its port is none"))
            }
            Some(_) => Ok(Self(uri)),
            None => Err(wrong("it names no server")),
        }
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A text that is not the URL of a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the https URL of a document: {what}")]
pub struct ParseHttpsUrlError {
    text: String,
    what: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_whole_or_relative_to_where_it_was_said() {
        let at: HttpsUrl = "https://other.example:8443/spiffe/v1/bundle?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/b.json", "https://cdn.example/b.json"),
            ("//cdn.example/b.json", "https://cdn.example/b.json"),
            ("/bundle.json", "https://other.example:8443/bundle.json"),
            ("/a/../bundle.json?y=2#part", "https://other.example:8443/bundle.json?y=2"),
            ("bundle.json", "https://other.example:8443/spiffe/v1/bundle.json"),
            ("./latest/", "https://other.example:8443/spiffe/v1/latest/"),
            ("../v2/bundle", "https://other.example:8443/spiffe/v2/bundle"),
            ("../../../..", "https://other.example:8443/"),
            ("?y=2", "https://other.example:8443/spiffe/v1/bundle?y=2"),
            ("", "https://other.example:8443/spiffe/v1/bundle?x=1"),
            ("a:b", ""),
            ("http://other.example/", ""),
            ("https://me@other.example/", ""),
            ("//", ""),
            ("javascript:alert(1)", ""),
        ] {
            let joined = at.join(location);
            match expected {
                "" => assert!(joined.is_err(), "{location}: {joined:?}"),
                expected => assert_eq!(joined.unwrap().to_string(), expected, "{location}"),
            }
        }
        let bare: HttpsUrl = "https://other.example".parse().unwrap();
        assert_eq!(bare.join("b").unwrap().to_string(), "https://other.example/b");
    }

    #[test]
    fn only_https_is_a_url_here() {
        let good = |text: &str, host: &str, port: u16, target: &str| {
            let url: HttpsUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.port(), url.target()), (host, port, target), "{text}");
        };
        good("https://idp.example", "idp.example", 443, "/");
        good("https://idp.example:8443/keys?x=1", "idp.example", 8443, "/keys?x=1");
        good("https://[::1]:9/bundle.json", "::1", 9, "/bundle.json");
        for bad in [
            "",
            "idp.example",
            "/keys",
            "http://idp.example/keys",
            "ftp://idp.example",
            "https://",
            "https:///keys",
            "https://me:secret@idp.example/",
            "https://idp.example:0/",
            "https://idp.example:x/",
            "https://idp.example:99999/",
            "https://idp example/",
        ] {
            assert!(bad.parse::<HttpsUrl>().is_err(), "{bad:?}");
        }
    }
}
