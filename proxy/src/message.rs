//! What both sides of the proxy read out of a request, and how they write it again.

use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, Method, StatusCode, Uri, Version};
use http_body::Body as _;

use crate::body::Body;
use crate::hop;
use crate::reply::Reply;

/// The authority that a request is for, as it was written.
///
/// An absolute request target overrides `Host` (RFC 9112 §3.2.2); in HTTP/2 the two must agree, so that nobody can
/// decide by one and route by the other.
///
/// # Errors
/// When there is more than one, or they differ.
pub(crate) fn authority(head: &Parts) -> Result<Option<&str>, BadRequest> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadRequest::ManyHosts);
    }
    let host = host.map(HeaderValue::to_str).transpose().map_err(|_| BadRequest::Host)?;
    let target = head.uri.authority().map(http::uri::Authority::as_str);
    match (target, host) {
        (Some(target), Some(host)) if head.version == Version::HTTP_2 && !target.eq_ignore_ascii_case(host) => {
            Err(BadRequest::HostDiffers)
        }
        (Some(target), _) => Ok(Some(target)),
        (None, host) => Ok(host),
    }
}

/// Takes the change to WebSocket out of a request that asks for it (`Upgrade`, or extended CONNECT): whether it does.
/// What is left is the `GET` that it began as.
///
/// No other protocol is changed to. What follows a change is not looked at, so one that carries requests (`h2c`, alone or
/// in a list) would take them past the decisions.
///
/// A request with another wish, another method or a body keeps the latter two and loses the wish, as RFC 9110 §7.8
/// allows: what is decided must be what is sent.
///
/// # Errors
/// When an extended CONNECT names another protocol: nothing would be left of it without.
pub(crate) fn take_upgrade(head: &mut Parts, body: &Body) -> Result<bool, BadRequest> {
    if let Some(protocol) = head.extensions.remove::<::h2::ext::Protocol>() {
        if !is_websocket(protocol.as_str().as_bytes()) {
            return Err(BadRequest::Protocol(protocol.as_str().to_owned()));
        }
        head.method = Method::GET;
        return Ok(true);
    }
    let may_change = head.version == Version::HTTP_11 && head.method == Method::GET && body.is_end_stream();
    Ok(may_change && hop::asks_for_upgrade(&head.headers) && names_websocket(&head.headers))
}

/// Whether `Upgrade` names WebSocket, and nothing besides.
pub(crate) fn names_websocket(headers: &HeaderMap) -> bool {
    let mut wishes = headers.get_all(UPGRADE).iter();
    wishes.next().is_some_and(|wish| is_websocket(wish.as_bytes())) && wishes.next().is_none()
}

fn is_websocket(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(WEBSOCKET.as_bytes())
}

/// The one protocol that a request may change to.
pub(crate) const WEBSOCKET: &str = "websocket";

/// Whether this is a plain `CONNECT`: a tunnel, not a change of protocol.
pub(crate) fn is_tunnel(head: &Parts) -> bool {
    head.method == Method::CONNECT && head.extensions.get::<::h2::ext::Protocol>().is_none()
}

/// Whether it is gRPC, which needs HTTP/2 end to end.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// An absolute target of the scheme `http`.
///
/// # Errors
/// When the parts do not make one.
pub(crate) fn absolute(authority: &str, path: PathAndQuery) -> Result<Uri, http::Error> {
    Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build()
}

/// The target's path and query; `/` when it has none.
pub(crate) fn path_and_query(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

/// Takes the hop-by-hop fields out of a response, and those that only our proxies may set.
pub(crate) fn clean_response(headers: &mut HeaderMap, ours: &[HeaderName]) {
    hop::strip(headers);
    headers.remove(http::header::TE);
    for name in ours {
        headers.remove(name);
    }
}

/// Why a request is answered with 400, or with 501 where a protocol is not ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("there is more than one Host")]
    ManyHosts,
    #[error("the Host is not text")]
    Host,
    #[error("Host and :authority differ")]
    HostDiffers,
    #[error("there is no Host")]
    NoHost,
    #[error("the Host is not one: {0}")]
    Authority(#[from] crate::authority::RefusedAuthority),
    #[error("the path is refused: {0}")]
    Path(#[from] alcazar_policy::RefusedPath),
    #[error("the path cannot be forwarded")]
    Target(#[from] http::Error),
    #[error("the scheme {0:?} is not served; use http")]
    Scheme(String),
    #[error("a tunnel within a tunnel is not served")]
    NestedTunnel,
    #[error("tunnels alone are served to this client")]
    TunnelsOnly,
    #[error("the protocol changes, and the port speaks HTTP/2")]
    UpgradeOverH2,
    #[error("a change to the protocol {0:?} is not served; to websocket alone")]
    Protocol(String),
    #[error("the method {0:?} is a known one but for its case")]
    MethodCase(String),
}

impl BadRequest {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            // RFC 9220 §3 asks for it.
            Self::Protocol(_) => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<BadRequest> for Reply {
    fn from(why: BadRequest) -> Self {
        Self::text(why.status(), why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_protocol_changes_to_websocket_or_not_at_all() {
        let http1 = |wishes: &[&str]| {
            let mut request =
                Request::builder().version(Version::HTTP_11).header("connection", "upgrade, http2-settings");
            for wish in wishes {
                request = request.header(UPGRADE, *wish);
            }
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            take_upgrade(&mut head, &Body::empty()).unwrap()
        };
        let extended = |protocol: &str| {
            let (mut head, ()) = Request::connect("a:1").version(Version::HTTP_2).body(()).unwrap().into_parts();
            head.extensions.insert(::h2::ext::Protocol::from(protocol));
            match take_upgrade(&mut head, &Body::empty()) {
                Ok(upgrade) => {
                    assert_eq!(head.method, Method::GET);
                    upgrade
                }
                Err(refused) => {
                    assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
                    false
                }
            }
        };
        for websocket in ["websocket", "WebSocket"] {
            assert!(http1(&[websocket]) && extended(websocket), "{websocket}");
        }
        for other in ["h2c", "H2C", "h2c, websocket", "websocket, h2c", "websocket,", "websocket/13", "TLS/1.2", ""] {
            assert!(!http1(&[other]) && !extended(other), "{other}");
        }
        assert!(!http1(&["websocket", "h2c"]) && !http1(&["h2c", "websocket"]) && !http1(&["websocket", "websocket"]));
        assert!(!http1(&[]));
    }

    #[test]
    fn one_authority_decides_and_routes() {
        let check = |version, uri: &str, hosts: &[&str], expected: Option<Option<&str>>| {
            let mut request = Request::builder().version(version).uri(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            let (head, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(authority(&head).ok(), expected, "{uri} {hosts:?}");
        };
        check(Version::HTTP_11, "/", &["a"], Some(Some("a")));
        check(Version::HTTP_11, "/", &[], Some(None));
        check(Version::HTTP_11, "/", &["a", "b"], None);
        check(Version::HTTP_11, "http://a/", &["b"], Some(Some("a")));
        check(Version::HTTP_2, "http://a/", &[], Some(Some("a")));
        check(Version::HTTP_2, "http://a/", &["A"], Some(Some("a")));
        check(Version::HTTP_2, "http://a/", &["b"], None);
        check(Version::HTTP_2, "/", &["b"], Some(Some("b")));
    }
}
