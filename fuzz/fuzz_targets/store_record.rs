//! Bytes of a damaged database never panic the decoder, and what it accepts it writes back the same.
#![no_main]

use alcazar_store::{Entry, Key, Revision, record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(key) = "family/member".parse::<Key>() else { return };
    if let Ok(entry) = record::decode(&key, bytes) {
        assert_eq!(record::encode(&entry), bytes);
    }
    // No bytes have a good checksum by chance: with one, a value and its revision read back.
    let Some((revision, value)) = bytes.split_first_chunk::<8>() else { return };
    let entry = Entry::new(key.clone(), value, Revision::new(u64::from_be_bytes(*revision)));
    assert_eq!(record::decode(&key, &record::encode(&entry)).as_ref(), Ok(&entry));
});
