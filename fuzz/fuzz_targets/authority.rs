#![no_main]

use alcazar_proxy::Authority;
use libfuzzer_sys::fuzz_target;

// A Host field or an :authority: what parses prints as something that parses to the same.
fuzz_target!(|text: &str| {
    if let Ok(authority) = Authority::parse(text) {
        let printed = authority.to_string();
        assert_eq!(Authority::parse(&printed).as_ref(), Ok(&authority));
        assert!(!printed.contains('@'));
    }
});
