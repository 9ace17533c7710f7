//! JWKS documents, and keys as others have them.

use std::{io::Write, process::Command};

use alcazar_jwt::{Algorithm, Jwk, JwkError, Jwks, JwksError, PublicKey, PublicKeyError};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{EVERY, Issuing, encode, rsa_pkcs8};

fn parse(document: &Value) -> Result<Jwks, JwksError> {
    Jwks::parse(document.to_string().as_bytes())
}

#[test]
fn a_set_reads_back() {
    let keys: Jwks = EVERY
        .iter()
        .map(|algorithm| Issuing::new(*algorithm).jwk().with_algorithm(*algorithm).with_usage("sig"))
        .collect();
    assert_eq!(parse(&keys.to_json()).unwrap(), keys);
}

#[test]
fn keys_for_others_are_skipped_and_noted() {
    let ec = Issuing::new(Algorithm::Es256).jwk().to_json();
    let with = |changes: Value| {
        let mut key = ec.clone();
        key.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        key
    };
    let check = |key: Value, reason: fn(&JwkError) -> bool| {
        let set = parse(&json!({"keys": [key, ec]})).unwrap();
        assert_eq!(set.keys().len(), 1, "{key}");
        let [skipped] = set.skipped() else { panic!("{key}: {:?}", set.skipped()) };
        assert!(skipped.place == 0 && reason(&skipped.reason), "{key}: {skipped:?}");
    };
    check(json!(5), |reason| *reason == JwkError::NotAnObject);
    check(with(json!({"use": "enc"})), |reason| matches!(reason, JwkError::Use(_)));
    check(with(json!({"use": "x509-svid", "x5c": ["MII"]})), |reason| matches!(reason, JwkError::Use(_)));
    check(with(json!({"use": 5})), |reason| *reason == JwkError::Member("use"));
    check(with(json!({"key_ops": ["encrypt"]})), |reason| matches!(reason, JwkError::Use(_)));
    check(with(json!({"alg": "ES256K"})), |reason| matches!(reason, JwkError::Algorithm(_)));
    check(with(json!({"alg": "HS256"})), |reason| matches!(reason, JwkError::Algorithm(_)));
    check(with(json!({"alg": "RS256"})), |reason| matches!(reason, JwkError::Mismatch { .. }));
    check(with(json!({"d": "AAAA"})), |reason| *reason == JwkError::Private("d"));
    check(with(json!({"crv": "P-521"})), |reason| matches!(reason, JwkError::Kind(_)));
    check(with(json!({"crv": "P-384"})), |reason| matches!(reason, JwkError::Member("x")));
    check(with(json!({"x": "AAAA"})), |reason| *reason == JwkError::Member("x"));
    check(with(json!({"x": format!("{}=", ec["x"].as_str().unwrap())})), |reason| *reason == JwkError::Member("x"));
    check(with(json!({"kid": "x".repeat(600)})), |reason| *reason == JwkError::Member("kid"));
    check(json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), |reason| *reason == JwkError::Private("k"));
    check(json!({"kty": "OKP", "crv": "X25519", "x": encode(&[1; 32])}), |reason| matches!(reason, JwkError::Kind(_)));
    check(json!({"kty": "magic"}), |reason| matches!(reason, JwkError::Kind(_)));
    check(json!({}), |reason| *reason == JwkError::Member("kty"));
    for (n, e) in [(128, &[1, 0, 1][..]), (255, &[1, 0, 1]), (1025, &[1, 0, 1]), (256, &[1, 0, 0, 0, 1])] {
        let key = json!({"kty": "RSA", "n": encode(&vec![0x81; n]), "e": encode(e)});
        check(key, |reason| matches!(reason, JwkError::Key(PublicKeyError::RsaSize { .. })));
    }
    for (n, e) in
        [(&[0x81; 256][..], &[][..]), (&[0x81; 256], &[1]), (&[0x81; 256], &[2]), (&[], &[3]), (&[0; 256], &[3])]
    {
        let key = json!({"kty": "RSA", "n": encode(n), "e": encode(e)});
        check(key, |reason| *reason == JwkError::Key(PublicKeyError::Malformed));
    }
    // The same again: it changes nothing.
    let twice = parse(&json!({"keys": [ec, ec]})).unwrap();
    assert_eq!((twice.keys().len(), &twice.skipped()[0].reason), (1, &JwkError::Twice));
}

#[test]
fn what_is_no_set_is_refused() {
    assert!(matches!(parse(&json!({})), Err(JwksError::NoKeys)));
    assert!(matches!(parse(&json!({"keys": {}})), Err(JwksError::NoKeys)));
    assert!(matches!(parse(&json!([])), Err(JwksError::Json(_))));
    assert!(matches!(parse(&json!({"keys": vec![json!({}); 257]})), Err(JwksError::TooMany(257))));
    assert!(matches!(Jwks::parse(&vec![b' '; (1 << 20) + 1]), Err(JwksError::TooLong(_))));
    assert!(matches!(Jwks::parse(b"<html>not found</html>"), Err(JwksError::Json(_))));
    assert!(matches!(Jwks::parse(br#"{"keys":[],"keys":[]}"#), Err(JwksError::Json(_))));
    assert_eq!(parse(&json!({"keys": []})).unwrap(), Jwks::default());
}

/// OpenSSL reads every key that is written here, and writes the same bytes.
#[test]
fn openssl_agrees_on_the_keys() {
    for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa] {
        let key = Issuing::new(algorithm).public();
        let spki = key.to_spki_der();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&spki).unwrap();
        let read = Command::new("openssl")
            .args(["pkey", "-pubin", "-inform", "DER", "-outform", "DER", "-pubout", "-in"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(read.status.success(), "{algorithm}: {}", String::from_utf8_lossy(&read.stderr));
        assert_eq!(read.stdout, spki, "{algorithm}");
        assert_eq!(PublicKey::from_spki_der(&spki), Ok(key));
    }
}

#[test]
fn a_small_rsa_key_is_refused_as_it_comes_from_a_certificate_too() {
    let pkcs8 = rsa_pkcs8(1024);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(pkcs8).unwrap();
    let spki = Command::new("openssl")
        .args(["pkey", "-inform", "DER", "-outform", "DER", "-pubout", "-in"])
        .arg(file.path())
        .output()
        .unwrap()
        .stdout;
    assert_eq!(PublicKey::from_spki_der(&spki), Err(PublicKeyError::RsaSize { bits: 1024, exponent: 3 }));
}

proptest! {
    #[test]
    fn no_key_bytes_panic_and_what_reads_writes_the_same(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        cut in 0_usize..300, change in any::<(prop::sample::Index, u8)>(),
    ) {
        drop(PublicKey::from_spki_der(&bytes));
        let mut spki = Issuing::new(Algorithm::Rs256).public().to_spki_der();
        let place = change.0.index(spki.len());
        spki[place] = change.1;
        spki.truncate(cut.max(1));
        if let Ok(key) = PublicKey::from_spki_der(&spki) {
            prop_assert_eq!(key.to_spki_der(), spki);
        }
    }

    #[test]
    fn no_document_panics(text in "\\PC{0,100}", kty in "RSA|EC|OKP|oct", member in "[A-Za-z0-9_-]{0,90}") {
        drop(Jwks::parse(text.as_bytes()));
        let key = json!({"kty": kty, "crv": "P-256", "x": member, "y": member, "n": member, "e": member});
        drop(Jwk::from_json(key.as_object().unwrap()));
    }
}
