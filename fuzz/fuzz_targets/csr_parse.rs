//! No certificate request panics the CA.
#![no_main]

use alcazar_ca::Csr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    drop(Csr::from_der(bytes));
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(Csr::from_pem(text));
    }
});
