//! `x-forwarded-client-cert`: who called, told to the application in Envoy's format.

use alcazar_identity::{Fingerprint, SpiffeId};
use http::header::{HeaderName, HeaderValue, InvalidHeaderValue};

/// The field's name.
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The one element that we set: `By=<our id>;Hash=<SHA-256 of the caller's leaf>;URI=<the caller's id>`.
///
/// A SPIFFE ID has no character that Envoy's format would quote (`,`, `;`, `=`, `"`).
///
/// # Errors
/// Never with identities that parsed; the type system cannot know.
///
/// **Source**: Envoy, "x-forwarded-client-cert"; the mode is its `SANITIZE_SET`.
pub(crate) fn element(by: &SpiffeId, leaf: Fingerprint, caller: &SpiffeId) -> Result<HeaderValue, InvalidHeaderValue> {
    HeaderValue::try_from(format!("By={by};Hash={leaf};URI={caller}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_us_the_leaf_and_the_caller() {
        let by: SpiffeId = "spiffe://td/ns/shop/sa/reviews".parse().unwrap();
        let caller: SpiffeId = "spiffe://td/ns/shop/sa/frontend".parse().unwrap();
        let value = element(&by, Fingerprint::of(&alcazar_identity::CertificateDer::from(vec![1])), &caller).unwrap();
        let text = value.to_str().unwrap();
        let (head, rest) = text.split_once(";Hash=").unwrap();
        let (hash, uri) = rest.split_once(";URI=").unwrap();
        assert_eq!((head, uri), ("By=spiffe://td/ns/shop/sa/reviews", "spiffe://td/ns/shop/sa/frontend"));
        assert!(hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{hash}");
    }
}
