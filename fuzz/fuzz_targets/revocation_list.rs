//! A signed list of revocations from a stranger: it is read or refused, and no list is taken that is not signed.
#![no_main]

use std::time::{Duration, SystemTime};

use alcazar_api::revocations::{Keeper, read_evidence};
use alcazar_identity::{CertificateDer, TrustBundle, TrustBundles};
use libfuzzer_sys::fuzz_target;

const ROOT: &[u8] = include_bytes!("verify_peer/root.der");

fuzz_target!(|bytes: &[u8]| {
    let Ok(shown) = read_evidence(bytes) else { return };
    let Ok(domain) = "cluster.local".parse() else { return };
    let Ok(root) = TrustBundle::new(domain, 1, [CertificateDer::from(ROOT)]) else { return };
    let mut keeper = Keeper::default();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    assert!(keeper.take(&shown, &TrustBundles::from(root), now).taken.is_empty());
});
