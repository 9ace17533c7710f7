//! No chain from a stranger panics the reader of machine certificates, and none without the root's signature is believed.
#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use alcazar_identity::CertificateDer;
use alcazar_mtls::MachineRoots;
use libfuzzer_sys::fuzz_target;

/// A root whose key nobody has.
static ROOTS: LazyLock<MachineRoots> =
    LazyLock::new(|| MachineRoots::from_pem(include_bytes!("machine_certificate/root.pem")).expect("a root"));

fuzz_target!(|bytes: &[u8]| {
    drop(MachineRoots::from_pem(bytes));
    let half = bytes.len() / 2;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for chain in [vec![bytes], vec![&bytes[..half], &bytes[half..]]] {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        assert!(ROOTS.verify(&chain, b"message", bytes, now).is_err());
    }
});
