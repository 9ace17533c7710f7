//! Bundle documents and JWT-SVIDs: what is written is read, what others write is read as the standard says.

use std::time::{Duration, SystemTime};

use alcazar_api::spiffe::{
    BundleDocumentError, JwtSvidError, read_bundle, validate_jwt_svid, write_bundle, write_jwt_bundle,
};
use alcazar_identity::{CertificateDer, JwtAuthority, TrustBundle, TrustBundles, TrustDomain};
use alcazar_jwt::{Algorithm, SignJwt, fixed_of_der};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    PublicKeyData, SigningKey,
};
use serde_json::{Value, json};

fn td() -> TrustDomain {
    "td.example".parse().unwrap()
}

fn root_of(key: &KeyPair) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(key).unwrap().der().clone()
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn bundle() -> TrustBundle {
    let authority = JwtAuthority::new("one", key().subject_public_key_info()).unwrap();
    let bundle = TrustBundle::new(td(), 7, [root_of(&key())]).unwrap();
    bundle.with_jwt_authorities([authority]).unwrap().with_refresh_hint(Some(Duration::from_secs(300)))
}

fn document(bundle: &TrustBundle) -> Value {
    serde_json::from_str(&write_bundle(bundle).unwrap()).unwrap()
}

fn read(document: &Value) -> Result<TrustBundle, BundleDocumentError> {
    read_bundle(td(), document.to_string().as_bytes()).map(|read| read.bundle)
}

#[test]
fn a_document_has_the_fields_of_the_standard_and_no_others() {
    let document = document(&bundle());
    assert_eq!((&document["spiffe_sequence"], &document["spiffe_refresh_hint"]), (&json!(7), &json!(300)));
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&document), ["keys", "spiffe_refresh_hint", "spiffe_sequence"]);
    let keys = document["keys"].as_array().unwrap();
    assert_eq!(names(&keys[0]), ["crv", "kty", "use", "x", "x5c", "y"]);
    assert_eq!((&keys[0]["use"], keys[0]["x5c"].as_array().unwrap().len()), (&json!("x509-svid"), 1));
    assert_eq!(names(&keys[1]), ["crv", "kid", "kty", "use", "x", "y"]);
    assert_eq!((&keys[1]["use"], &keys[1]["kid"]), (&json!("jwt-svid"), &json!("one")));

    let for_workloads: Value = serde_json::from_str(&write_jwt_bundle(&bundle())).unwrap();
    assert_eq!(names(&for_workloads), ["keys"]);
    assert_eq!(for_workloads["keys"].as_array().unwrap().len(), 1);
}

#[test]
fn what_a_reader_may_not_know_is_passed_over_with_a_word() {
    let mut document = document(&bundle());
    document["spiffe_comment"] = json!("hello");
    let keys = document["keys"].as_array_mut().unwrap();
    let mut nameless = keys[1].clone();
    nameless.as_object_mut().unwrap().remove("kid");
    let mut useless = keys[1].clone();
    useless.as_object_mut().unwrap().remove("use");
    let mut strange = keys[1].clone();
    strange["use"] = json!("wit-svid");
    let mut unknown = keys[1].clone();
    unknown["kty"] = json!("PQ");
    keys.extend([nameless, useless, strange, unknown]);
    let read = read_bundle(td(), document.to_string().as_bytes()).unwrap();
    assert_eq!(read.bundle.jwt_authorities().len(), 1);
    let said: Vec<_> = read.ignored.iter().map(|ignored| (ignored.place, ignored.reason.clone())).collect();
    assert_eq!(said.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [2, 3, 4, 5]);
    for ((_, reason), part) in said.iter().zip(["no kid", "no use", "wit-svid", "PQ"]) {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(read.numbered);
    document.as_object_mut().unwrap().remove("spiffe_sequence");
    document["spiffe_refresh_hint"] = Value::Null;
    let read = read_bundle(td(), document.to_string().as_bytes()).unwrap();
    assert_eq!((read.numbered, read.bundle.sequence(), read.bundle.refresh_hint()), (false, 0, None));
}

#[test]
fn a_document_that_cannot_be_trusted_whole_is_not_trusted_at_all() {
    let good = document(&bundle());
    let check = |change: &dyn Fn(&mut Value), part: &str| {
        let mut document = good.clone();
        change(&mut document);
        let error = read(&document).unwrap_err();
        let mut text = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            text = format!("{text}: {source}");
        }
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    };
    let other_root = write_bundle(&bundle()).unwrap();
    let other: Value = serde_json::from_str(&other_root).unwrap();
    check(&|d| d["keys"] = json!("none"), "no array");
    check(&|d| drop(d.as_object_mut().unwrap().remove("keys")), "no array");
    check(&|d| d["keys"] = json!([]), "no root");
    check(&|d| drop(d["keys"].as_array_mut().unwrap().remove(0)), "no root");
    check(&|d| d["keys"][0] = json!("key"), "not an object");
    check(&|d| d["keys"][0]["x5c"] = json!([]), "not exactly one");
    check(&|d| drop(d["keys"][0].as_object_mut().unwrap().remove("x5c")), "not exactly one");
    check(&|d| d["keys"][0]["x5c"] = json!([d["keys"][0]["x5c"][0], other["keys"][0]["x5c"][0]]), "not exactly one");
    check(&|d| d["keys"][0]["x5c"] = json!(["%%"]), "not base64");
    check(&|d| d["keys"][0]["x5c"] = json!(["AAAA"]), "not a certificate");
    check(&|d| d["keys"][0]["x5c"] = other["keys"][0]["x5c"].clone(), "not the one in its certificate");
    check(&|d| d["keys"] = json!(vec![d["keys"][0].clone(); 300]), "300 keys");
    check(&|d| d["spiffe_sequence"] = json!(-1), "spiffe_sequence");
    check(&|d| d["spiffe_sequence"] = json!("7"), "spiffe_sequence");
    check(&|d| d["spiffe_refresh_hint"] = json!(1.5), "spiffe_refresh_hint");
    let twice = |d: &mut Value| {
        let mut again = other["keys"][1].clone();
        again["kid"] = json!("one");
        d["keys"].as_array_mut().unwrap().push(again);
    };
    check(&twice, "two JWT authorities");
    let no_ca = || {
        let key = key();
        let leaf = CertificateParams::default().self_signed(&key).unwrap();
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(leaf.der())
    };
    let leaf = |d: &mut Value| d["keys"][0] = json!({"use": "x509-svid", "kty": "EC", "x5c": [no_ca()]});
    check(&leaf, "not a CA");

    for (bytes, part) in
        [(&b"{"[..], "strict JSON"), (b"[]", "not an object"), (b"{\"keys\":[],\"keys\":[]}", "strict")]
    {
        let error = read_bundle(td(), bytes).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains(part), "{error:?}");
    }
    assert!(matches!(read_bundle(td(), &vec![b' '; (1 << 20) + 1]), Err(BundleDocumentError::TooLong(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_bundle_comes_back_from_its_document(
        sequence: u64,
        hint in proptest::option::of(1u64..1 << 40),
        kinds in proptest::collection::vec(0usize..3, 1..4),
        names in proptest::collection::btree_set("[ -~äß]{1,40}", 0..4),
    ) {
        let algorithms = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        let roots = kinds.iter().map(|kind| root_of(&KeyPair::generate_for(algorithms[*kind]).unwrap()));
        let bundle = TrustBundle::new(td(), sequence, roots).unwrap();
        let authorities = names.iter().map(|name| JwtAuthority::new(name.clone(), key().subject_public_key_info()).unwrap());
        let bundle = bundle.with_jwt_authorities(authorities).unwrap();
        let bundle = bundle.with_refresh_hint(hint.map(Duration::from_secs));
        let read = read_bundle(td(), write_bundle(&bundle).unwrap().as_bytes()).unwrap();
        prop_assert_eq!(read.bundle, bundle);
        prop_assert!(read.numbered && read.ignored.is_empty());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(read_bundle(td(), &bytes));
    }
}

struct Signer {
    key: KeyPair,
    algorithm: Algorithm,
}

impl SignJwt for Signer {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn key_id(&self) -> &str {
        "one"
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let signature = SigningKey::sign(&self.key, message)?;
        match self.algorithm {
            Algorithm::EdDsa => Ok(signature),
            algorithm => Ok(fixed_of_der(algorithm, &signature)?),
        }
    }
}

const NOW: u64 = 1_800_000_000;
const WEB: &str = "spiffe://td.example/ns/shop/sa/web";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn signer() -> Signer {
    Signer { key: key(), algorithm: Algorithm::Es256 }
}

fn bundle_of(trust_domain: &str, signer: &Signer) -> TrustBundle {
    let authority = JwtAuthority::new("one", signer.key.subject_public_key_info()).unwrap();
    let bundle = TrustBundle::new(trust_domain.parse().unwrap(), 1, [root_of(&key())]).unwrap();
    bundle.with_jwt_authorities([authority]).unwrap()
}

fn claims() -> Value {
    json!({"sub": WEB, "aud": ["reports"], "iat": NOW - 10, "exp": NOW + 300, "jti": "x"})
}

fn token(signer: &Signer, claims: &Value) -> String {
    alcazar_jwt::sign(Some("JWT"), claims, signer).unwrap()
}

#[test]
fn a_token_of_the_trust_domain_for_us_is_good() {
    let signer = signer();
    let bundles = TrustBundles::from(bundle_of("td.example", &signer));
    let svid = validate_jwt_svid(&token(&signer, &claims()), "reports", &bundles, now()).unwrap();
    assert_eq!(svid.id().as_str(), WEB);
    assert_eq!(svid.claims().id(), Some("x"));
    for kind in [None, Some("JOSE")] {
        let token = alcazar_jwt::sign(kind, &claims(), &signer).unwrap();
        assert!(validate_jwt_svid(&token, "reports", &bundles, now()).is_ok(), "{kind:?}");
    }
}

#[test]
fn every_other_token_is_refused_for_its_own_reason() {
    let signer = signer();
    let own = TrustBundles::from(bundle_of("td.example", &signer));
    let check = |change: &dyn Fn(&mut Value), audience: &str, expected: &str| {
        let mut claims = claims();
        change(&mut claims);
        let error = validate_jwt_svid(&token(&signer, &claims), audience, &own, now()).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{expected}: {error:?}");
    };
    check(&|_| (), "billing", "Claims(Audience");
    check(&|c| c["aud"] = json!([]), "reports", "Claims(Audience");
    check(&|c| drop(c.as_object_mut().unwrap().remove("aud")), "reports", "Claims(Audience");
    check(&|c| drop(c.as_object_mut().unwrap().remove("exp")), "reports", "Signature(Claims(NoEnd");
    check(&|c| c["exp"] = json!(NOW - 61), "reports", "Claims(Expired");
    check(&|c| c["iat"] = json!(NOW + 61), "reports", "Claims(FromTheFuture");
    check(&|c| drop(c.as_object_mut().unwrap().remove("sub")), "reports", "NoSubject");
    check(&|c| c["sub"] = json!("web"), "reports", "Subject");
    check(&|c| c["sub"] = json!("spiffe://td.example"), "reports", "NotAWorkload");
    check(&|c| c["sub"] = json!("spiffe://other.example/ns/a/sa/b"), "reports", "ForeignTrustDomain");

    let refused =
        |token: &str, bundles: &TrustBundles| validate_jwt_svid(token, "reports", bundles, now()).unwrap_err();
    let kind = alcazar_jwt::sign(Some("at+jwt"), &claims(), &signer).unwrap();
    assert_eq!(refused(&kind, &own), JwtSvidError::Kind);
    let edwards = Signer { key: KeyPair::generate_for(&PKCS_ED25519).unwrap(), algorithm: Algorithm::EdDsa };
    let bundles = TrustBundles::from(bundle_of("td.example", &edwards));
    assert_eq!(refused(&token(&edwards, &claims()), &bundles), JwtSvidError::Algorithm(Algorithm::EdDsa));
    assert!(matches!(refused("a.b.c", &own), JwtSvidError::Token(_)));
}

#[test]
fn a_trust_domain_vouches_for_its_own_workloads_alone() {
    let (ours, theirs) = (signer(), signer());
    let both: TrustBundles =
        [bundle_of("td.example", &ours), bundle_of("other.example", &theirs)].into_iter().collect();
    // Signed by a key that we believe, for somebody whom it has no say about.
    let forged = token(&theirs, &claims());
    let error = validate_jwt_svid(&forged, "reports", &both, now()).unwrap_err();
    assert!(matches!(error, JwtSvidError::Signature(_)), "{error:?}");
    let mut own = claims();
    own["sub"] = json!("spiffe://other.example/ns/shop/sa/web");
    assert!(validate_jwt_svid(&token(&theirs, &own), "reports", &both, now()).is_ok());
}
