//! No set of files panics the check, and what it takes has a chain and a root.
#![no_main]

use std::time::{Duration, SystemTime};

use alcazar_ca::{CacertsFiles, check_cacerts};
use libfuzzer_sys::fuzz_target;

/// The input is cut at lines of dashes alone: the files of a set, in this order.
const NAMES: [&str; 5] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem", "ca-crl.pem"];

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parts = text.split("\n---\n").map(|part| part.as_bytes().to_vec());
    let files = CacertsFiles::new(NAMES.into_iter().zip(parts));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let domain = "cluster.local".parse().unwrap();
    if let Ok(found) = check_cacerts(&files, &[], Some(b"passphrase"), &domain, now) {
        assert!(!found.chain.is_empty() && found.roots.contains(&found.root));
    }
});
