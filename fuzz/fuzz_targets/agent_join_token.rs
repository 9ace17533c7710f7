#![no_main]

use alcazar_node_agent::JoinToken;
use libfuzzer_sys::fuzz_target;

// A file that a person wrote: it is a token or is refused, and a refusal never quotes it.
fuzz_target!(|text: &str| {
    match JoinToken::parse(text) {
        Ok(token) => assert_eq!(token.text(), text.trim()),
        Err(error) => {
            let (text, said) = (text.trim(), error.to_string());
            // What the message says to everybody, it may say to whoever wrote just that.
            let is_in_every_one = JoinToken::parse("nothing").is_err_and(|error| error.to_string().contains(text));
            assert!(text.len() < 20 || is_in_every_one || !said.contains(text));
        }
    }
});
