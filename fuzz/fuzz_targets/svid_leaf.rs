//! A leaf certificate of a peer's choosing parses or is refused.
#![no_main]

use alcazar_identity::{CertificateDer, SvidLeaf};

libfuzzer_sys::fuzz_target!(|der: &[u8]| {
    if let Ok(leaf) = SvidLeaf::parse(&CertificateDer::from(der)) {
        assert!(!leaf.id().path().is_empty());
    }
});
