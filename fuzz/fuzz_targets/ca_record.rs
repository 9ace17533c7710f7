//! No value in the store panics the CA that reads it as a record.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    std::hint::black_box(alcazar_ca::records::decode_any(bytes));
});
