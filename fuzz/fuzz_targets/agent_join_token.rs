#![no_main]

use alcazar_node_agent::JoinToken;
use libfuzzer_sys::fuzz_target;

// A file that a person wrote: it is a token or is refused, and a refusal never quotes it.
fuzz_target!(|text: &str| {
    match JoinToken::parse(text) {
        Ok(token) => assert_eq!(token.text(), text.trim()),
        Err(error) => assert!(text.trim().len() < 20 || !error.to_string().contains(text.trim())),
    }
});
