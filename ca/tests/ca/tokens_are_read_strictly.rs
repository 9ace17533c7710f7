//! A join token has one text, and errors never show it.

use alcazar_ca::{JoinToken, ParseJoinTokenError};
use alcazar_identity::Fingerprint;
use proptest::prelude::*;

#[test]
fn a_token_reads_back_with_its_pin() {
    let pin = Fingerprint::of(b"root");
    let token = JoinToken::random(pin).unwrap();
    let text = token.reveal();
    let again: JoinToken = format!(" {}\n", text.as_str()).parse().unwrap();
    assert_eq!((again.hash(), again.pin()), (token.hash(), pin));
    assert_ne!(JoinToken::random(pin).unwrap().hash(), token.hash());
    assert!(!format!("{token:?}").contains(text.split('.').nth(1).unwrap()));
    assert!(!text.contains(token.hash().as_str()));
}

#[test]
fn what_is_cut_or_altered_is_refused() {
    let text = JoinToken::random(Fingerprint::of(b"root")).unwrap().reveal().to_string();
    let parts: Vec<_> = text.split('.').collect();
    let (head, secret, pin) = (parts[0], parts[1], parts[2]);
    let check = |text: String, expected: ParseJoinTokenError| {
        assert_eq!(text.parse::<JoinToken>().unwrap_err(), expected, "{text}")
    };
    check(String::new(), ParseJoinTokenError::Shape);
    check(format!("{head}.{secret}"), ParseJoinTokenError::Shape);
    check(format!("{text}.x"), ParseJoinTokenError::Shape);
    check(format!("alcazar-join-v2.{secret}.{pin}"), ParseJoinTokenError::Shape);
    check(format!("{head}..{pin}"), ParseJoinTokenError::Secret);
    check(format!("{head}.{}.{pin}", &secret[1..]), ParseJoinTokenError::Secret);
    check(format!("{head}.{secret}A.{pin}"), ParseJoinTokenError::Secret);
    check(format!("{head}.{secret}=.{pin}"), ParseJoinTokenError::Secret);
    check(format!("{head}.{secret}AAAAAAAA.{pin}"), ParseJoinTokenError::Secret);
    check(format!("{head}.{secret}."), ParseJoinTokenError::Pin);
    check(format!("{head}.{secret}.{}", &pin[1..]), ParseJoinTokenError::Pin);
    check(format!("{head}.{secret}.{}", pin.to_uppercase()), ParseJoinTokenError::Pin);
}

proptest! {
    #[test]
    fn any_text_is_judged_without_a_panic(text in ".{0,200}") {
        prop_assert!(text.parse::<JoinToken>().is_err());
    }

    #[test]
    fn one_token_has_one_text(at: prop::sample::Index, with in "[A-Za-z0-9_.-]") {
        let text = JoinToken::random(Fingerprint::of(b"root")).unwrap().reveal().to_string();
        let at = at.index(text.len());
        let altered = format!("{}{with}{}", &text[..at], &text[at + 1..]);
        if let Ok(token) = altered.parse::<JoinToken>() {
            prop_assert_eq!(token.reveal().to_string(), altered);
        }
    }
}
