//! What is not an honest certificate request is refused, and says why.

use alcazar_api::{
    ca::v1::{self, certificate_authority_client::CertificateAuthorityClient, issue_workload_result::Outcome},
    istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};
use alcazar_ca::{Csr, CsrError};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use std::process::Command;
use tonic::Code;

use crate::support::{Hands, Served, node, registration, web};

/// Keys and requests that only OpenSSL makes.
fn openssl_csr(folder: &std::path::Path, key: &[&str]) -> Vec<u8> {
    let (key_file, csr_file) = (folder.join("key.pem"), folder.join("csr.der"));
    let made = Command::new("openssl").arg("genpkey").args(key).arg("-out").arg(&key_file).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made = Command::new("openssl")
        .args(["req", "-new", "-outform", "DER", "-subj", "/CN=test", "-key"])
        .arg(&key_file)
        .arg("-out")
        .arg(&csr_file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(csr_file).unwrap()
}

fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn honest_keys_are_taken() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = Csr::from_der(&crate::support::csr(&key)).unwrap();
        assert_eq!(Csr::from_pem(&crate::support::csr_pem(&key)).unwrap().key_hash(), csr.key_hash());
    }
    let folder = tempfile::tempdir().unwrap();
    Csr::from_der(&openssl_csr(folder.path(), &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])).unwrap();
    assert!(KeyPair::generate_for(&PKCS_RSA_SHA256).is_err(), "if ring makes RSA keys one day, this test can use them");
}

#[test]
fn weak_and_unknown_keys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |key: &[&str], expected: fn(&CsrError) -> bool| {
        let error = Csr::from_der(&openssl_csr(folder.path(), key)).unwrap_err();
        assert!(expected(&error), "{key:?}: {error}");
    };
    check(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], |e| *e == CsrError::RsaSize(1024));
    check(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:5120"], |e| matches!(e, CsrError::RsaSize(5120)));
    check(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"], |e| matches!(e, CsrError::KeyKind(_)));
    check(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"], |e| matches!(e, CsrError::KeyKind(_)));
    check(&["-algorithm", "ED448"], |e| matches!(e, CsrError::KeyKind(_)));
}

#[test]
fn one_that_asks_to_be_an_authority_is_refused() {
    let key = crate::support::key();
    let check = |change: fn(&mut CertificateParams)| {
        assert_eq!(Csr::from_der(&request(&key, change)), Err(CsrError::AsksForAuthority))
    };
    check(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    check(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    check(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    check(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]);
}

#[test]
fn what_is_not_a_request_is_refused() {
    let good = crate::support::csr(&crate::support::key());
    for bad in [&b""[..], b"hello", &good[..good.len() - 1], &[good.clone(), good.clone()].concat()] {
        assert!(Csr::from_der(bad).is_err());
    }
    assert_eq!(Csr::from_der(&[&good[..], b"!"].concat()), Err(CsrError::TrailingBytes(1)));
    assert!(matches!(Csr::from_der(&vec![0x30; 100_000]), Err(CsrError::TooLong(_))));
    for bad in ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"] {
        assert!(Csr::from_pem(bad).is_err(), "{bad:?}");
    }
    let certificate = rcgen::CertificateParams::default().self_signed(&crate::support::key()).unwrap();
    assert_eq!(Csr::from_pem(&certificate.pem()), Err(CsrError::NotPem));
}

/// Somebody else's key with one's own signature, and the other way round.
#[test]
fn a_key_that_the_sender_does_not_hold_is_refused() {
    let (mine, theirs) = (crate::support::key(), crate::support::key());
    let (good, other) = (crate::support::csr(&mine), crate::support::csr(&theirs));
    // Both are P-256, so that the public keys have the same length; put theirs in the place of mine.
    let place = |csr: &[u8], key: &KeyPair| csr.windows(65).position(|window| window == key.public_key_raw()).unwrap();
    let mut forged = good.clone();
    let at = place(&good, &mine);
    forged[at..at + 65].copy_from_slice(theirs.public_key_raw());
    assert_eq!(Csr::from_der(&forged), Err(CsrError::Signature));
    assert!(place(&other, &theirs) > 0);
}

/// What is refused as a request is refused at every door, by the same code, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_door_takes_what_is_not_an_honest_request() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&folder.path().join("ca"), &Hands::new()).await;
    let (one, token) = (served.attested(&node("one")).await, served.token(&node("two")).await);
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let good = crate::support::csr(&crate::support::key());
    let forged = {
        let mut forged = good.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        forged
    };
    let authority = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let weak = openssl_csr(folder.path(), &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    let curve = openssl_csr(folder.path(), &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"]);
    let before = served.ca.tree_head().await.unwrap().head.size;
    for (what, bad) in [
        ("malformed", b"hello".to_vec()),
        ("cut", good[..good.len() - 1].to_vec()),
        ("oversized", vec![0x30; 20_000]),
        ("wrongly signed", forged),
        ("a weak key", weak),
        ("a wrong curve", curve),
        ("one that asks to be a CA", request(&crate::support::key(), authority)),
    ] {
        let evidence = Some(v1::attest_node_request::Evidence::JoinToken(token.clone()));
        let attest = v1::AttestNodeRequest { evidence, csr: bad.clone(), ..Default::default() };
        let mut stranger = CertificateAuthorityClient::new(served.pinned(&token));
        let told = |status: tonic::Status| (status.code(), status.message().to_owned());
        let expected = || (Code::InvalidArgument, "certificate request refused".to_owned());
        assert_eq!(told(stranger.attest_node(attest).await.unwrap_err()), expected(), "{what}");
        let mut client = served.client(&one);
        let renew = v1::RenewNodeRequest { csr: bad.clone() };
        assert_eq!(told(client.renew_node(renew).await.unwrap_err()), expected(), "{what}");
        let item = |csr: &[u8]| v1::IssueWorkload {
            registration_id: "shop.web".into(),
            csr: csr.to_vec(),
            ..v1::IssueWorkload::default()
        };
        let reply = client.issue_workloads(v1::IssueWorkloadsRequest { items: vec![item(&bad)] }).await.unwrap();
        let Some(Outcome::Refusal(refusal)) = reply.into_inner().results.remove(0).outcome else {
            panic!("{what} was issued");
        };
        assert_eq!((Code::from(refusal.code), refusal.message), expected(), "{what}");
        let block = pem_of(&bad);
        let istio = IstioCertificateRequest { csr: block, ..IstioCertificateRequest::default() };
        let mut client = IstioCertificateServiceClient::new(served.channel(&one));
        assert_eq!(told(client.create_certificate(istio).await.unwrap_err()), expected(), "{what}");
    }
    // More than any message of this service has.
    let huge = v1::AttestNodeRequest {
        evidence: Some(v1::attest_node_request::Evidence::JoinToken(token.clone())),
        csr: vec![0x30; 8 << 20],
        ..Default::default()
    };
    let mut stranger = CertificateAuthorityClient::new(served.pinned(&token));
    stranger.attest_node(huge).await.unwrap_err();
    assert_eq!(served.ca.tree_head().await.unwrap().head.size, before, "nothing was put on record");
    // Nobody lost anything by it: the token admits, the node renews.
    served.attest(&token, &crate::support::key()).await.unwrap();
    served.renew(&one, &crate::support::key()).await.unwrap();
    served.stop().await;
}

fn pem_of(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", STANDARD.encode(der))
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Csr::from_der(&bytes).is_err());
    }

    /// The signature covers what is asked for; around it a lax encoding may pass, but never another key.
    #[test]
    fn one_altered_byte_never_changes_what_is_certified(at: prop::sample::Index, flip in 1..=255u8) {
        let mut csr = crate::support::csr(&crate::support::key());
        let honest = Csr::from_der(&csr).unwrap();
        let at = at.index(csr.len());
        csr[at] ^= flip;
        if let Ok(read) = Csr::from_der(&csr) {
            prop_assert_eq!(read, honest);
            prop_assert!(!(4..=130).contains(&at), "byte {} is under the signature", at);
        }
    }
}
