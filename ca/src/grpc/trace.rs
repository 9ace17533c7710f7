//! Which request of whom this is: the id that the log, the audit file and the answer name it by, and the trace that it belongs to.
//!
//! **Source**: W3C Trace Context §3.2.

use http::HeaderMap;

use crate::serial::random_bytes;

/// A request, as traces know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    /// The caller's, where it has one.
    pub(super) trace_id: String,
    /// The span of the caller that this request is a part of.
    pub(super) parent_id: Option<String>,
    /// This request's own span.
    pub(super) request_id: String,
}

impl Trace {
    /// That of a request with these headers. Ids of its own are from `random`.
    fn new(headers: &HeaderMap, random: [u8; 24]) -> Self {
        let hex = hex(&random);
        let (own_trace, own_span) = hex.split_at_checked(32).unwrap_or_default();
        let mut parents = headers.get_all("traceparent").iter();
        // Of two, none is believed.
        let parent = parents.next().filter(|_| parents.next().is_none()).and_then(|parent| parse(parent.as_bytes()));
        let (trace, parent) = parent.map_or((own_trace, None), |(trace, parent)| (trace, Some(parent.to_owned())));
        Self { trace_id: trace.to_owned(), parent_id: parent, request_id: own_span.to_owned() }
    }

    pub(super) fn of(headers: &HeaderMap) -> Self {
        // Without randomness nothing is issued either; the request that tells so needs no name.
        Self::new(headers, random_bytes().unwrap_or_default())
    }
}

/// Trace and span of a `traceparent`.
fn parse(text: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let more = parts.next().is_some();
    let is_hex =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_some = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
    // A later version may say more at the end; the first does not.
    let known = is_hex(version, 2) && version != "ff" && !(version == "00" && more);
    (known && is_some(trace, 32) && is_some(parent, 16) && is_hex(flags, 2)).then_some((trace, parent))
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn of(values: &[&str]) -> Trace {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("traceparent", value.parse().unwrap());
        }
        Trace::new(&headers, [7; 24])
    }

    #[test]
    fn a_callers_trace_goes_on_and_anything_else_begins_one() {
        let own = Trace { trace_id: "07".repeat(16), parent_id: None, request_id: "07".repeat(8) };
        assert_eq!(of(&[]), own);
        let good = format!("00-{TRACE}-{SPAN}-01");
        let theirs = Trace { trace_id: TRACE.into(), parent_id: Some(SPAN.into()), ..own.clone() };
        assert_eq!(of(&[&good]), theirs);
        assert_eq!(of(&[&format!("42-{TRACE}-{SPAN}-01-more")]), theirs);
        for bad in [
            "",
            "00",
            &format!("00-{TRACE}-{SPAN}"),
            &format!("00-{TRACE}-{SPAN}-01-more"),
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("00-{}-{SPAN}-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            &format!("00-{TRACE}0-{SPAN}-01"),
            &format!("00-{TRACE}-{SPAN}-zz"),
        ] {
            assert_eq!(of(&[bad]), own, "{bad}");
        }
        assert_eq!(of(&[&good, &good]), own, "two of them");
    }

    proptest! {
        #[test]
        fn whatever_comes_the_ids_are_ids(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some((trace, span)) = parse(&bytes) {
                prop_assert!(trace.len() == 32 && span.len() == 16);
            }
        }
    }
}
