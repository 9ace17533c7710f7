//! No bytes panic the CA that reads them as an entry of its ledger.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    std::hint::black_box(alcazar_ca::ledger::is_entry(bytes));
});
