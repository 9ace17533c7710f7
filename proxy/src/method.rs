//! Methods, whose case counts.

use http::Method;

use crate::message::BadRequest;

/// Refuses a method that equals a registered one but for case.
///
/// To us and to policy `delete` is not `DELETE`; some applications take it for that.
///
/// # Errors
/// When it is one of those.
pub(crate) fn check(method: &Method) -> Result<(), BadRequest> {
    let written = method.as_str();
    // Almost all are written in capitals: no need to look further.
    if written.bytes().any(|b| b.is_ascii_lowercase()) && is_registered(written) {
        return Err(BadRequest::MethodCase(written.to_owned()));
    }
    Ok(())
}

fn is_registered(method: &str) -> bool {
    REGISTERED_METHODS.iter().any(|registered| registered.eq_ignore_ascii_case(method))
}

/// **Source**: the Hypertext Transfer Protocol (HTTP) Method Registry of IANA.
const REGISTERED_METHODS: [&str; 40] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_method_is_written_as_it_is_known() {
        let passes = |method: &str| check(&Method::from_bytes(method.as_bytes()).unwrap()).is_ok();
        for fine in ["GET", "DELETE", "MKCOL", "VERSION-CONTROL", "PURGE", "purge", "M-SEARCH", "get2", "!"] {
            assert!(passes(fine), "{fine}");
        }
        for refused in ["get", "delete", "Delete", "DELETe", "connect", "mkcol", "version-control", "patch"] {
            assert!(!passes(refused), "{refused}");
        }
    }
}
