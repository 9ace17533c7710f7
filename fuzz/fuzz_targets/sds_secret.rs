//! A secret from an agent's socket becomes an SVID or a bundle, or is refused.
#![no_main]

use alcazar_api::envoy::{Any, SECRET_URL, tls::Secret, unpack};
use alcazar_api::sds::{bundle_from_secret, bundles_from_secret, revocations_from_secret, svid_from_secret};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let any = Any { type_url: SECRET_URL.to_owned(), value: bytes.to_vec() };
    let Ok(secret) = unpack::<Secret>(SECRET_URL, &any) else { return };
    if let Ok(svid) = svid_from_secret(&secret) {
        assert!(!svid.chain().is_empty());
    }
    if let Ok(trust_domain) = "td".parse() {
        drop(bundle_from_secret(&secret, trust_domain, 1));
    }
    drop(bundles_from_secret(&secret, 1));
    drop(revocations_from_secret(&secret));
});
