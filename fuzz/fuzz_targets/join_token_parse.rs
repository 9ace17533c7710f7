//! No text panics the reader of join tokens, and what it takes has one text.
#![no_main]

use alcazar_ca::JoinToken;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.reveal().as_str(), text.trim());
    }
});
