//! Bytes of a damaged database never panic the decoder, and what it accepts it writes back the same.
#![no_main]

use alcazar_store::{Key, record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(key) = "family/member".parse::<Key>() else { return };
    if let Ok(entry) = record::decode(&key, bytes) {
        assert_eq!(record::encode(&entry), bytes);
    }
});
