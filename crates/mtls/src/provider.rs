//! The one place that knows which cryptography stands behind TLS.

use std::sync::{Arc, LazyLock};

use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};

/// Makes our provider the one that every library of the process takes when it is told of none.
///
/// Each `main` and each test that touches TLS calls it first; a second call changes nothing.
pub fn install_default_provider() {
    // Refused when one is installed already, which is what was wanted.
    drop(CryptoProvider::install_default(CryptoProvider::clone(&PROVIDER)));
}

/// The provider of all our own connections.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// The signatures that we verify, on certificates and on handshakes.
pub(crate) fn signatures() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ours()));

fn ours() -> CryptoProvider {
    let mut provider = ring::default_provider();
    // ring puts AES-256 first, at a third more cost for no gain here. Where AES is not in hardware, ChaCha20 is faster.
    let first = match has_aes() {
        true => CipherSuite::TLS13_AES_128_GCM_SHA256,
        false => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    };
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    #[cfg(feature = "pq")]
    provider.kx_groups.insert(0, rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768);
    provider
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use rustls::NamedGroup;

    use super::*;

    #[test]
    fn the_hybrid_group_comes_first_where_it_is_built_in() {
        let groups: Vec<_> = provider().kx_groups.iter().map(|group| group.name()).collect();
        let classical = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];
        #[cfg(feature = "pq")]
        assert_eq!(groups, [&[NamedGroup::X25519MLKEM768], &classical[..]].concat());
        #[cfg(not(feature = "pq"))]
        assert_eq!(groups, classical);
    }

    #[test]
    fn the_first_suite_is_one_that_the_processor_is_good_at() {
        let first = provider().cipher_suites.first().map(|suite| suite.suite());
        match has_aes() {
            true => assert_eq!(first, Some(CipherSuite::TLS13_AES_128_GCM_SHA256)),
            false => assert_eq!(first, Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)),
        }
    }

    #[test]
    fn installing_twice_is_installing_once() {
        install_default_provider();
        install_default_provider();
        assert!(CryptoProvider::get_default().is_some());
    }
}
