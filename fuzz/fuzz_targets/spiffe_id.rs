//! A SPIFFE ID parses or is refused; what parses prints as it was and takes apart into what it was made of.
#![no_main]

use alcazar_identity::{SpiffeId, SpiffeIdKind};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.to_string(), text);
    if let SpiffeIdKind::Workload { namespace, service_account } = id.kind() {
        assert_eq!(SpiffeId::workload(id.trust_domain(), namespace, service_account), Ok(id.clone()));
    }
});
