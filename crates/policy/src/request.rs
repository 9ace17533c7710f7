//! What is decided about: a request, or a connection, as the proxy saw it. Borrowed throughout.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use alcazar_identity::{SpiffeId, TrustDomain};

use crate::{Host, NormalizedPath};

/// One request (HTTP) or one connection (TCP) to decide about.
///
/// ```
/// use alcazar_policy::{Host, Http, NormalizedPath, Protocol, Request};
///
/// let host = Host::normalize("Reviews.shop:80")?;
/// let path = NormalizedPath::parse("/ratings/7?full=1", Default::default())?;
/// let ours = "cluster.local".parse().expect("a trust domain");
/// let request = Request {
///     source: None,
///     trust_domain: &ours,
///     source_ip: [10, 0, 0, 7].into(),
///     destination: ([10, 0, 0, 9], 9080).into(),
///     sni: None,
///     protocol: Protocol::Http(Http { host: Some(&host), path: &path, method: "GET", headers: &[("x-token", "a")] }),
/// };
/// assert!(request.protocol.is_http());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who calls: the verified identity of the TLS peer. `None`: not authenticated (plaintext).
    pub source: Option<&'a SpiffeId>,
    /// The mesh's own trust domain. The namespaces in policies are those of its workloads: another trust domain, with which it
    /// federates, gives its own workloads whatever names it likes.
    pub trust_domain: &'a TrustDomain,
    /// Where the connection came from.
    pub source_ip: IpAddr,
    /// Where the connection was made to: the workload's own address and port, not the mesh port.
    pub destination: SocketAddr,
    /// The server name of the TLS handshake, if the handshake carried one.
    pub sni: Option<&'a str>,
    /// What is spoken, with the attributes that only it has.
    pub protocol: Protocol<'a>,
}

impl<'a> Request<'a> {
    /// The namespace of a caller that is of the mesh's own trust domain.
    pub(crate) fn source_namespace(&self) -> Option<&'a str> {
        self.source.filter(|source| source.trust_domain() == self.trust_domain)?.namespace()
    }
}

/// What is spoken on the connection.
#[derive(Debug, Clone, Copy)]
pub enum Protocol<'a> {
    /// A request of HTTP/1.x, HTTP/2 or gRPC.
    Http(Http<'a>),
    /// A connection of which nothing more is known.
    Tcp,
}

impl Protocol<'_> {
    /// Whether this is an HTTP request.
    pub fn is_http(&self) -> bool {
        matches!(self, Self::Http(_))
    }
}

/// The attributes of an HTTP request.
#[derive(Clone, Copy)]
pub struct Http<'a> {
    /// The host asked for; `None` when the request names none (HTTP/1.0).
    pub host: Option<&'a Host<'a>>,
    /// The path, normalised: forward [`NormalizedPath::forward`], so that what was decided is what is sent.
    pub path: &'a NormalizedPath<'a>,
    /// The method, as sent.
    pub method: &'a str,
    /// The header fields.
    pub headers: &'a dyn Headers,
}

impl fmt::Debug for Http<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers carry secrets.
        f.debug_struct("Http")
            .field("host", &self.host)
            .field("path", &self.path)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// Looks up header fields. A name may stand several times.
pub trait Headers {
    /// Calls `visit` with each value of `name` (given in lower case), until `visit` returns false.
    ///
    /// A value is what one field line said: a comma-separated list is one value.
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool);
}

/// A list of names and values, for tests and tools. Names are compared without regard to case.
impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for [(N, V)] {
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        for (_, value) in self.iter().filter(|(n, _)| n.as_ref().eq_ignore_ascii_case(name)) {
            if !visit(value.as_ref()) {
                return;
            }
        }
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>, const LEN: usize> Headers for [(N, V); LEN] {
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        self.as_slice().visit(name, visit);
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for Vec<(N, V)> {
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        self.as_slice().visit(name, visit);
    }
}

/// No headers at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn visit(&self, _name: &str, _visit: &mut dyn FnMut(&[u8]) -> bool) {}
}
