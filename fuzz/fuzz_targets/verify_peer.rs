//! Whatever chain a peer presents, the verifier judges it in peace, and believes none but the one we made.
//!
//! The first byte chooses. Even: the rest is a chain of the fuzzer's own, each certificate with its length
//! before it in two bytes. Odd: the rest changes our good chain, three bytes (place, place, value) a change.
#![no_main]

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, TrustBundle, TrustBundles};
use alcazar_mtls::{Side, verify_peer};

const LEAF: &[u8] = include_bytes!("verify_peer/leaf.der");
const INTERMEDIATE: &[u8] = include_bytes!("verify_peer/intermediate.der");
const ROOT: &[u8] = include_bytes!("verify_peer/root.der");
/// Within the dates of all three, whenever this runs.
const NOW: Duration = Duration::from_secs(1_800_000_000);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    let chain = if choice % 2 == 0 { free(rest) } else { changed(rest) };
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    let side = if choice & 2 == 0 { Side::Client } else { Side::Server };

    let root = TrustBundle::new("cluster.local".parse().unwrap(), 1, [CertificateDer::from(ROOT)]).unwrap();
    let judged = verify_peer(&chain, &TrustBundles::from(root), side, SystemTime::UNIX_EPOCH + NOW);
    match judged {
        Ok(peer) => {
            assert_eq!(chain[0].as_ref(), LEAF, "somebody else was believed");
            assert_eq!(peer.id().as_str(), "spiffe://cluster.local/ns/shop/sa/reviews");
        }
        Err(refused) => assert!(!refused.to_string().contains('\n')),
    }
});

fn free(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut chain = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (certificate, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*length))));
        chain.push(certificate.to_vec());
        bytes = rest;
    }
    chain
}

fn changed(changes: &[u8]) -> Vec<Vec<u8>> {
    let mut both = [LEAF, INTERMEDIATE].concat();
    for change in changes.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([change[0], change[1]])) % both.len();
        both[place] = change[2];
    }
    let intermediate = both.split_off(LEAF.len());
    vec![both, intermediate]
}
