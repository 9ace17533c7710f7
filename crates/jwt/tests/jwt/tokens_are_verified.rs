//! What is accepted, and everything that is not.

use std::sync::LazyLock;

use alcazar_jwt::{Algorithm, ClaimsError, Jwks, ParseTokenError, SignJwt, VerifyError, verify};
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};

use crate::support::{EVERY, Issuing, NOW, at, claims, claims_with, encode, expected};

fn refused(token: &str, keys: &Jwks) -> VerifyError {
    verify(token, keys, &expected(NOW)).unwrap_err()
}

#[test]
fn every_algorithm_signs_and_verifies_and_no_other_key_does() {
    let issuers: Vec<_> = EVERY.iter().map(|algorithm| Issuing::new(*algorithm)).collect();
    for (issuer, algorithm) in issuers.iter().zip(EVERY) {
        let token = issuer.token(&claims());
        let found = verify(&token, &issuer.jwks(), &expected(NOW)).unwrap();
        assert_eq!(found.subject(), Some("somebody"), "{algorithm}");
        assert_eq!(found.expires(), at(NOW + 600));
        // A key of the same kind and name, but another.
        if algorithm.key_kind() != alcazar_jwt::KeyKind::Rsa {
            assert_eq!(refused(&token, &Issuing::new(algorithm).jwks()), VerifyError::Signature);
        }
        for other in issuers.iter().filter(|other| other.key_id() != issuer.key_id()) {
            assert_eq!(refused(&token, &other.jwks()), VerifyError::UnknownKey(format!("key-{algorithm}")));
        }
    }
}

#[test]
fn an_algorithm_is_bound_to_the_key() {
    let (rsa, ec) = (Issuing::new(Algorithm::Rs256), Issuing::new(Algorithm::Es256));
    // No signature at all.
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let header = encode(json!({"alg": none, "kid": "key-ES256"}).to_string().as_bytes());
        let token = format!("{header}.{}.", encode(claims().to_string().as_bytes()));
        assert!(matches!(refused(&token, &ec.jwks()), VerifyError::Token(ParseTokenError::Algorithm(_))), "{none}");
    }
    // The public key as a shared secret, in each form in which people have it.
    let jwk = rsa.jwk().to_json();
    for secret in [rsa.public().to_spki_der(), jwk.to_string().into_bytes(), jwk["n"].to_string().into_bytes()] {
        let header = encode(json!({"alg": "HS256", "kid": "key-RS256"}).to_string().as_bytes());
        let signed = format!("{header}.{}", encode(claims().to_string().as_bytes()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
        let token = format!("{signed}.{}", encode(tag.as_ref()));
        assert!(matches!(refused(&token, &rsa.jwks()), VerifyError::Token(ParseTokenError::Algorithm(_))));
    }
    // The name of a key of another kind.
    for (issuer, alg) in [(&ec, "RS256"), (&ec, "ES384"), (&ec, "EdDSA"), (&rsa, "ES256")] {
        let header = json!({"alg": alg, "kid": issuer.key_id()});
        let token = issuer.token_with_header(&header, &claims());
        assert!(matches!(refused(&token, &issuer.jwks()), VerifyError::Algorithm { .. }), "{alg}");
    }
    // A key that its owner uses with one algorithm alone.
    let pss = [rsa.jwk().with_algorithm(Algorithm::Ps256)].into_iter().collect();
    assert!(matches!(refused(&rsa.token(&claims()), &pss), VerifyError::Algorithm { .. }));
    // A key that the token brings along.
    let header = json!({"alg": "ES256", "kid": "mine", "jwk": ec.jwk().to_json(), "jku": "https://mine"});
    let token = ec.token_with_header(&header, &claims());
    assert_eq!(refused(&token, &Issuing::new(Algorithm::Es256).jwks()), VerifyError::UnknownKey("mine".into()));
}

#[test]
fn a_token_without_a_key_id_needs_a_choice_of_one() {
    let (ec, other, ed) =
        (Issuing::new(Algorithm::Es256), Issuing::new(Algorithm::Es256), Issuing::new(Algorithm::EdDsa));
    let token = ec.token_with_header(&json!({"alg": "ES256"}), &claims());
    let check = |keys: &[&Issuing], good: bool| {
        let keys = keys.iter().map(|issuer| issuer.jwk()).collect();
        match verify(&token, &keys, &expected(NOW)) {
            Ok(_) => assert!(good),
            Err(error) => assert!(!good && matches!(error, VerifyError::NoKeyId(Algorithm::Es256)), "{error}"),
        }
    };
    check(&[&ec], true);
    check(&[&ec, &ed], true);
    check(&[&ec, &other], false);
    check(&[&ed], false);
    // Two keys of one name: each has its chance.
    let both: Jwks = [other.jwk(), ec.jwk()].into_iter().collect();
    assert!(verify(&ec.token(&claims()), &both, &expected(NOW)).is_ok());
}

#[test]
fn claims_say_from_whom_for_whom_and_when() {
    let issuer = Issuing::new(Algorithm::Es256);
    let check = |changes: Value, now: u64, wanted: Result<(), fn(&ClaimsError) -> bool>| {
        let token = issuer.token(&claims_with(changes.clone()));
        match (verify(&token, &issuer.jwks(), &expected(now)), wanted) {
            (Ok(_), Ok(())) => {}
            (Err(VerifyError::Claims(error)), Err(is)) if is(&error) => {}
            (outcome, _) => panic!("{changes} at {now}: {outcome:?}"),
        }
    };
    let good = Ok(());
    let expired: fn(&ClaimsError) -> bool = |error| matches!(error, ClaimsError::Expired { .. });
    let early: fn(&ClaimsError) -> bool = |error| matches!(error, ClaimsError::NotYet { .. });
    let future: fn(&ClaimsError) -> bool = |error| matches!(error, ClaimsError::FromTheFuture { .. });
    let audience: fn(&ClaimsError) -> bool = |error| matches!(error, ClaimsError::Audience { .. });
    let from: fn(&ClaimsError) -> bool = |error| matches!(error, ClaimsError::Issuer { .. });
    let malformed: fn(&ClaimsError) -> bool = |error| matches!(error, ClaimsError::Malformed(_));
    let endless: fn(&ClaimsError) -> bool = |error| matches!(error, ClaimsError::NoEnd);

    check(json!({}), NOW, good);
    // The clocks may differ by the leeway of a minute, and no more.
    check(json!({}), NOW + 659, good);
    check(json!({}), NOW + 660, Err(expired));
    check(json!({"iat": null}), NOW - 65, good);
    check(json!({"iat": null}), NOW - 66, Err(early));
    check(json!({"nbf": null}), NOW - 65, good);
    check(json!({"nbf": null}), NOW - 66, Err(future));
    check(json!({"exp": null}), NOW, Err(endless));
    check(json!({"exp": (NOW as f64) + 0.5}), NOW, good);
    for end in [json!("1900000000"), json!(-1), json!(1e300), json!(null), json!([NOW])] {
        let changes = json!({"exp": end});
        check(changes.clone(), NOW, Err(if end.is_null() { endless } else { malformed }));
    }
    check(json!({"nbf": "soon"}), NOW, Err(malformed));
    check(json!({"iat": true}), NOW, Err(malformed));

    check(json!({"aud": ["x", "ca"]}), NOW, good);
    for other in [json!(null), json!("CA"), json!("ca "), json!(""), json!([]), json!(["x"]), json!("ca,x")] {
        check(json!({"aud": other}), NOW, Err(audience));
    }
    for wrong in [json!(5), json!({"ca": true}), json!(["ca", 5]), json!([["ca"]])] {
        check(json!({"aud": wrong}), NOW, Err(malformed));
    }
    for other in [json!(null), json!("https://issuer/"), json!("HTTPS://issuer"), json!("")] {
        check(json!({"iss": other}), NOW, Err(from));
    }
    check(json!({"iss": ["https://issuer"]}), NOW, Err(malformed));
    check(json!({"sub": 5}), NOW, Err(malformed));
    // Who expects nobody in particular gets nobody.
    let nobody = alcazar_jwt::Expectations { audiences: &[], ..expected(NOW) };
    assert!(verify(&issuer.token(&claims()), &issuer.jwks(), &nobody).is_err());
}

#[test]
fn time_errors_show_both_clocks() {
    let issuer = Issuing::new(Algorithm::Es256);
    let Err(VerifyError::Claims(error)) = verify(&issuer.token(&claims()), &issuer.jwks(), &expected(NOW + 86_400))
    else {
        panic!("an expired token was accepted")
    };
    assert_eq!(
        error.to_string(),
        "the token expired at 2027-01-15T08:10:00Z, and the clock here says 2027-01-16T08:00:00Z"
    );
}

#[test]
fn a_text_that_is_not_one_strict_token_is_none() {
    let issuer = Issuing::new(Algorithm::Es256);
    let good = issuer.token(&claims());
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let twice = encode(br#"{"iss":"a","iss":"https://issuer"}"#);
    let crit = encode(br#"{"alg":"ES256","crit":["b64"],"b64":false}"#);
    let huge = format!("{header}.{}.{signature}", "A".repeat(20_000));
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        format!("{header}.{payload}"),
        format!("{good}."),
        format!(".{payload}.{signature}"),
        format!("{header}..{signature}"),
        format!(" {good}"),
        format!("{good}\n"),
        format!("{good}=="),
        format!("{header}.{payload}=.{signature}"),
        format!("{header}.{payload}.+{}", &signature[1..]),
        format!("{header}.{payload}.{signature}A"),
        format!("{header}.{twice}.{signature}"),
        format!("{crit}.{payload}.{signature}"),
        format!("{}.{payload}.{signature}", encode(b"[]")),
        format!("{}.{payload}.{signature}", encode(b"{\"kid\":\"key-ES256\"}")),
        format!("{}.{payload}.{signature}", encode(b"{\"alg\":[\"ES256\"]}")),
        format!("{}.{payload}.{signature}", encode(b"{\"alg\":\"ES256\",\"kid\":5}")),
        format!("{}.{payload}.{signature}", encode(b"{\"alg\":\"ES256\",\"alg\":\"none\"}")),
        format!("{header}.{}.{signature}", encode(b"null")),
        huge,
    ] {
        assert!(verify(&bad, &issuer.jwks(), &expected(NOW)).is_err(), "{bad:.60}");
    }
    // An empty signature, and one of all zeros (which a careless verifier of ECDSA accepts).
    for forged in [String::new(), encode(&[0; 64]), encode(&[0; 63])] {
        assert_eq!(refused(&format!("{header}.{payload}.{forged}"), &issuer.jwks()), VerifyError::Signature);
    }
}

#[test]
fn an_error_never_quotes_the_token() {
    let issuer = Issuing::new(Algorithm::Es256);
    let secret = issuer.token(&claims_with(json!({"email": "somebody@example.com"})));
    for bad in [format!("{secret}x"), format!("{secret}.x"), secret.replace("ey", "e y")] {
        let shown = format!("{:?}", refused(&bad, &issuer.jwks()));
        assert!(!shown.contains(&secret[60..100]) && !shown.contains("example.com"), "{shown}");
    }
}

static ISSUER: LazyLock<Issuing> = LazyLock::new(|| Issuing::new(Algorithm::Es256));
static RSA: LazyLock<Issuing> = LazyLock::new(|| Issuing::new(Algorithm::Rs256));

proptest! {
    /// Any other character anywhere makes it another token, or none.
    #[test]
    fn a_token_that_was_altered_is_refused(place in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.=-]", rsa: bool) {
        let issuer = if rsa { &*RSA } else { &*ISSUER };
        let token = issuer.token(&claims());
        let at = place.index(token.len());
        prop_assume!(token[at..=at] != with);
        let altered = format!("{}{with}{}", &token[..at], &token[at + 1..]);
        prop_assert!(verify(&altered, &issuer.jwks(), &expected(NOW)).is_err());
    }

    #[test]
    fn no_text_panics(text in "[A-Za-z0-9_.-]{0,200}") {
        drop(verify(&text, &ISSUER.jwks(), &expected(NOW)));
    }

    /// Claims that are signed come out as they went in.
    #[test]
    fn what_is_signed_is_what_is_read(subject in "\\PC{0,40}", audience in "\\PC{0,20}", life in 1_u64..1_000_000) {
        let claims = json!({"sub": subject, "aud": [audience, "ca"], "exp": NOW + life, "iss": "https://issuer"});
        let read = verify(&ISSUER.token(&claims), &ISSUER.jwks(), &expected(NOW)).unwrap();
        prop_assert_eq!(read.subject(), Some(subject.as_str()));
        prop_assert_eq!(read.audiences(), &[audience, "ca".to_owned()]);
        prop_assert_eq!(read.expires(), at(NOW + life));
    }
}
