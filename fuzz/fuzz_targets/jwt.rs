//! No token and no key set panics the reader, a token proves nothing by itself, and key sets and keys read back.
#![no_main]

use std::time::{Duration, SystemTime};

use alcazar_jwt::{Expectations, Issuer, Jwks, PublicKey, Token, fixed_of_der, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(keys) = Jwks::parse(bytes) {
        let again = Jwks::parse(keys.to_json().to_string().as_bytes()).expect("what was written reads back");
        assert_eq!(again.keys(), keys.keys());
    }
    if let Ok(key) = PublicKey::from_spki_der(bytes) {
        assert_eq!(key.to_spki_der(), bytes);
    }
    drop(fixed_of_der(alcazar_jwt::Algorithm::Es256, bytes));
    // The beginning is a key set, the rest a token.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    drop(Token::parse(text));
    if let Some((document, token)) = text.split_once('\n')
        && let Ok(keys) = Jwks::parse(document.as_bytes())
    {
        let (now, leeway) = (SystemTime::UNIX_EPOCH, Duration::from_secs(60));
        drop(verify(token, &keys, &Expectations { audiences: &["a"], issuer: Issuer::Any, now, leeway }));
    }
});
