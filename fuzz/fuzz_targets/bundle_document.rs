//! A bundle document of another trust domain becomes a bundle, or is refused; what was read is written and read again.
#![no_main]

use alcazar_api::spiffe::{read_bundle, validate_jwt_svid, write_bundle};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(trust_domain) = "td".parse::<alcazar_identity::TrustDomain>() else { return };
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(validate_jwt_svid(text, "us", &Default::default(), std::time::SystemTime::UNIX_EPOCH));
    }
    let Ok(read) = read_bundle(trust_domain.clone(), bytes) else { return };
    // A root may have a key that only its certificate can say.
    let Ok(written) = write_bundle(&read.bundle) else { return };
    assert_eq!(read_bundle(trust_domain, written.as_bytes()).map(|read| read.bundle), Ok(read.bundle));
});
