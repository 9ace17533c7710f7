//! Hop-by-hop fields: they speak of one connection and must not travel further.

use http::HeaderMap;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};

/// Removes the hop-by-hop fields, and those that `Connection` names.
///
/// What frames or routes the message (`Content-Length`, `Host`) stays even if `Connection` names it: a peer cannot
/// have us drop it. `TE: trailers` is the one transfer coding that survives, because gRPC asks for it end to end.
///
/// **Source**: RFC 9110 §7.6.1.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if let Some(named) = named_by_connection(headers) {
        for name in named {
            headers.remove(name);
        }
    }
    let trailers = headers.contains_key(TE) && headers.get_all(TE).iter().any(asks_for_trailers);
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Joins the crumbs of a cookie, as a message to HTTP/1.1 must carry them.
///
/// **Source**: RFC 9113 §8.2.3.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// Whether an HTTP/1.1 request wants to change the protocol: `Upgrade`, when `Connection` says so too.
pub(crate) fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    let said = |value: &HeaderValue| tokens(value).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    headers.contains_key(UPGRADE) && headers.get_all(CONNECTION).iter().any(said)
}

/// The fields that `Connection` names; `None` when there is nothing to remove (the usual case, without allocation).
fn named_by_connection(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    if !headers.contains_key(CONNECTION) {
        return None;
    }
    let all = headers.get_all(CONNECTION).iter().flat_map(tokens);
    Some(
        all.filter_map(|token| HeaderName::from_bytes(token).ok())
            .filter(|name| *name != CONTENT_LENGTH && *name != HOST && *name != TE)
            .collect(),
    )
}

fn asks_for_trailers(value: &HeaderValue) -> bool {
    tokens(value).any(|token| token.eq_ignore_ascii_case(b"trailers"))
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    // Half of a change to h2c, which we take no part in, whether `Connection` names it or not.
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&str, &str)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap());
        let mut map = HeaderMap::new();
        for (name, value) in lines.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn what_speaks_of_one_connection_does_not_travel() {
        let check = |before: &[(&str, &str)], after: &[(&str, &str)]| {
            let mut map = headers(before);
            strip(&mut map);
            assert_eq!(map, headers(after), "{before:?}");
        };
        check(&[("accept", "*/*")], &[("accept", "*/*")]);
        check(&[("connection", "close")], &[]);
        check(&[("connection", "keep-alive, X-Mine"), ("x-mine", "1"), ("x-other", "2")], &[("x-other", "2")]);
        check(&[("connection", "a"), ("connection", " , b,"), ("a", "1"), ("b", "1"), ("c", "1")], &[("c", "1")]);
        check(&[("keep-alive", "timeout=5"), ("proxy-connection", "close")], &[]);
        check(&[("proxy-authorization", "Basic eA=="), ("proxy-authenticate", "Basic")], &[]);
        check(&[("transfer-encoding", "chunked"), ("upgrade", "websocket"), ("trailer", "x")], &[]);
        check(&[("http2-settings", "AAMAAABkAAQAAP__")], &[]);
        check(&[("te", "trailers")], &[("te", "trailers")]);
        check(&[("te", "gzip, trailers;q=1")], &[]);
        check(&[("te", "gzip, Trailers"), ("connection", "te")], &[("te", "trailers")]);
        check(
            &[("connection", "content-length, host"), ("content-length", "3"), ("host", "a")],
            &[("content-length", "3"), ("host", "a")],
        );
    }

    #[test]
    fn crumbs_become_one_cookie() {
        let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut map);
        assert_eq!(map, headers(&[("cookie", "a=1; b=2; c=3")]));
    }

    #[test]
    fn an_upgrade_is_asked_for_twice_or_not_at_all() {
        let asked = |lines: &[(&str, &str)]| asks_for_upgrade(&headers(lines));
        assert!(asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(!asked(&[("upgrade", "websocket")]));
        assert!(!asked(&[("connection", "upgrade")]));
    }
}
