//! No letter of another replica panics the one that reads it, sealed or not.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    std::hint::black_box((alcazar_ca::open_letter(bytes), alcazar_ca::read_letter(bytes)));
});
