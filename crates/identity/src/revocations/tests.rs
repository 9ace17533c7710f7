use std::time::Duration;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SigningKey};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::TrustBundle;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn td() -> TrustDomain {
    "td".parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn why() -> Revocation {
    Revocation { reason: RevocationReason::KeyCompromise, since: at(1000), until: at(9000) }
}

fn list(version: u64) -> RevocationList {
    RevocationList::new(td(), ListIssuer::Cluster("east".into()), version)
}

fn held(list: RevocationList) -> Revocations {
    let mut all = Revocations::default();
    assert_eq!(all.merge(Arc::new(list)), Merged::Taken);
    all
}

const REVIEWS: &str = "spiffe://td/ns/shop/sa/reviews";
const RATINGS: &str = "spiffe://td/ns/shop/sa/ratings";

fn print(text: &str) -> Fingerprint {
    Fingerprint::of(text.as_bytes())
}

#[test]
fn each_rule_meets_whom_it_names_and_nobody_else() {
    let mut list = list(1);
    assert!(list.revoke_serial("00:AB:cd", Some(print("int")), why()));
    assert!(list.revoke_serial("0x77", None, why()));
    let barred = RevokedIdentity { before: at(500), reinstated: false, revocation: why() };
    list.revoke_identity(id(REVIEWS), barred);
    list.revoke_identity(id(RATINGS), RevokedIdentity { reinstated: true, ..barred });
    list.revoke_intermediate(print("bad"), why());
    let all = held(list);
    let (reviews, ratings) = (id(REVIEWS), id(RATINGS));
    let check = |id: &SpiffeId, serial: &str, not_before: u64, issuers: &[&str], expected: Option<&str>| {
        let issuers: Vec<_> = issuers.iter().map(|name| print(name)).collect();
        let found = all.of(&Proven { id, serial, not_before: at(not_before), issuers: &issuers });
        let found = found.map(|revoked| revoked.to_string());
        assert_eq!(found.is_some(), expected.is_some(), "{id} {serial} {not_before}: {found:?}");
        if let (Some(found), Some(expected)) = (found, expected) {
            assert!(found.contains(expected), "{found}");
            assert!(found.ends_with("since 1970-01-01T00:16:40Z (keyCompromise)"), "{found}");
        }
    };
    let other = id("spiffe://td/ns/shop/sa/other");
    check(&other, "abcd", 0, &["int"], Some("serial number abcd"));
    check(&other, "00abcd", 0, &["int", "upper"], Some("serial number 00abcd"));
    check(&other, "abcd", 0, &["another"], None);
    check(&other, "abcde", 0, &["int"], None);
    check(&other, "77", 0, &["anybody"], Some("serial number 77"));
    // Whatever a certificate of a barred identity says of its time: its issuer's clock may be ahead, or it has not heard.
    for not_before in [499, 500, 8_000] {
        check(&reviews, "1", not_before, &["int"], Some("the identity spiffe://td/ns/shop/sa/reviews is revoked"));
    }
    check(&ratings, "1", 499, &["int"], Some("the certificates of spiffe://td/ns/shop/sa/ratings from before"));
    // Exactly then, and later, is after it was reinstated.
    check(&ratings, "1", 500, &["int"], None);
    check(&other, "1", 0, &["int", "bad"], Some("the intermediate"));
    check(&id("spiffe://other/ns/shop/sa/reviews"), "77", 0, &["bad"], None);
    assert!(all.of_intermediate(&td(), print("bad")).is_some());
    assert!(!all.is_empty() && Revocations::default().is_empty());
}

#[test]
fn serial_numbers_are_read_as_people_and_certificates_write_them() {
    for (text, expected) in [("00FF", Some("ff")), ("a:B", Some("ab")), ("0x1", Some("1")), ("", None), ("0", None)] {
        assert_eq!(RevocationList::normal_serial(text).as_deref(), expected, "{text:?}");
    }
    for bad in ["xyz", "-1", "1 2", &"a".repeat(41)] {
        assert_eq!(RevocationList::normal_serial(bad), None, "{bad:?}");
    }
}

#[test]
fn reasons_have_the_names_and_numbers_of_rfc_5280() {
    for reason in RevocationReason::ALL {
        assert_eq!(RevocationReason::from_code(reason.code()), Some(reason));
        assert_eq!(reason.to_string().parse(), Ok(reason));
    }
    assert_eq!("key-compromise".parse(), Ok(RevocationReason::KeyCompromise));
    for absent in [7, 8, 11, 255] {
        assert_eq!(RevocationReason::from_code(absent), None, "{absent}");
    }
    assert!("theft".parse::<RevocationReason>().unwrap_err().to_string().contains("keyCompromise"));
}

#[test]
fn the_keeper_of_a_list_has_a_name_that_reads_back() {
    for issuer in [ListIssuer::Root(print("root")), ListIssuer::Cluster("east".into())] {
        assert_eq!(issuer.to_string().parse(), Ok(issuer));
    }
    for bad in ["", "east", "root:", "root:xyz", "cluster:", "Cluster:x"] {
        assert!(bad.parse::<ListIssuer>().is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn in_whatever_order_lists_come_the_newest_of_each_keeper_is_held(
        lists in prop::collection::vec((0_u8..3, 1_u64..6), 1..20),
    ) {
        let mut all = Revocations::default();
        for (who, version) in &lists {
            let issuer = ListIssuer::Cluster(who.to_string());
            let before = all.list(&td(), &issuer).map(RevocationList::version);
            let merged = all.merge(Arc::new(RevocationList::new(td(), issuer.clone(), *version)));
            let after = all.list(&td(), &issuer).map(RevocationList::version).unwrap();
            prop_assert!(before.is_none_or(|before| before <= after));
            prop_assert_eq!(merged == Merged::Taken, before.is_none_or(|before| before < *version));
        }
        for who in 0_u8..3 {
            let newest = lists.iter().filter(|(w, _)| *w == who).map(|(_, version)| *version).max();
            let issuer = ListIssuer::Cluster(who.to_string());
            prop_assert_eq!(all.list(&td(), &issuer).map(RevocationList::version), newest);
        }
    }
}

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = at(1_000).into();
    params.not_after = at(9_000).into();
    params
}

fn root(key: KeyPair) -> Authority {
    let mut params = params("root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let der = params.self_signed(&key).unwrap().der().clone();
    Authority { der, issuer: Issuer::new(params, key) }
}

impl Authority {
    fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = params("cluster");
        params.distinguished_name.push(DnType::OrganizationName, "td");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "east");
        params.subject_alt_names = vec![SanType::URI("spiffe://td".try_into().unwrap())];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.issuer.key().sign(message).unwrap()
    }
}

const CONTEXT: &[u8] = b"a test\0";

fn verify(signer: &Authority, more: &[&Authority], root: &Authority, now: u64) -> Result<Signatory, StatementError> {
    let chain: Vec<_> = std::iter::once(signer).chain(more.iter().copied()).map(|ca| ca.der.clone()).collect();
    let bundle = TrustBundle::new(td(), 1, [root.der.clone()]).unwrap();
    let signed = signer.sign(b"a test\0hello");
    verify_statement(CONTEXT, b"hello", &signed, &chain, &bundle, at(now))
}

#[test]
fn a_statement_is_that_of_a_root_or_of_an_intermediate_below_it() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let root = root(KeyPair::generate_for(algorithm).unwrap());
        assert_eq!(verify(&root, &[], &root, 5_000), Ok(Signatory::Root(Fingerprint::of(&root.der))));
    }
    let root = root(KeyPair::generate().unwrap());
    let cluster = root.below(|_| ());
    let path = vec![Fingerprint::of(&cluster.der)];
    let found = Ok(Signatory::Intermediate { path, cluster: Some("east".into()), good_until: at(9_000) });
    assert_eq!(verify(&cluster, &[], &root, 5_000), found);
    assert_eq!(verify(&cluster, &[&root], &root, 5_000), found, "the root may come along");
    let others = root.below(|params| {
        assert!(params.distinguished_name.remove(DnType::OrganizationName));
    });
    let Ok(Signatory::Intermediate { cluster: None, .. }) = verify(&others, &[], &root, 5_000) else {
        panic!("a unit of somebody else's organisation is no cluster");
    };
}

/// A second certificate of the same root: same name, same key, other dates.
fn renewed(root: &Authority, from: u64, to: u64) -> Authority {
    let key = KeyPair::try_from(root.issuer.key().serialize_der().as_slice()).unwrap();
    let mut params = params("root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    (params.not_before, params.not_after) = (at(from).into(), at(to).into());
    let der = params.self_signed(&key).unwrap().der().clone();
    Authority { der, issuer: Issuer::new(params, key) }
}

#[test]
fn of_two_certificates_of_one_root_the_good_one_counts() {
    let old = root(KeyPair::generate().unwrap());
    let (over, new) = (renewed(&old, 1_000, 2_000), renewed(&old, 3_000, 9_500));
    let cluster = old.below(|_| ());
    let verify_by = |signer: &Authority, more: &[&Authority], roots: &[&Authority]| {
        let chain: Vec<_> = std::iter::once(signer).chain(more.iter().copied()).map(|ca| ca.der.clone()).collect();
        let bundle = TrustBundle::new(td(), 1, roots.iter().map(|root| root.der.clone())).unwrap();
        verify_statement(CONTEXT, b"hello", &signer.sign(b"a test\0hello"), &chain, &bundle, at(5_000))
    };
    // In whatever order they are tried, as roots or on the way.
    for roots in [[&over, &new], [&new, &over]] {
        assert!(verify_by(&cluster, &[], &roots).is_ok());
    }
    assert!(verify_by(&cluster, &[&over], &[&new]).is_ok());
    let only_over = verify_by(&cluster, &[], &[&over]);
    assert!(
        matches!(&only_over, Err(StatementError::NotGood { authority, .. }) if *authority == Fingerprint::of(&over.der))
    );
    // The root itself may show an older certificate of its own: its key and its name are what is trusted.
    assert_eq!(verify_by(&over, &[], &[&new]), Ok(Signatory::Root(Fingerprint::of(&over.der))));
    assert!(verify_by(&over, &[], &[&over]).is_err());
}

#[test]
fn a_maze_of_certificates_is_left_soon() {
    let trusted = root(KeyPair::generate().unwrap());
    // Six of one name and one key, each of which has signed all the others.
    let key = KeyPair::generate().unwrap();
    let turn = |not_after: u64| {
        let mut params = params("maze");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = at(not_after).into();
        let der = params.self_signed(&key).unwrap().der().clone();
        Authority { der, issuer: Issuer::new(params, KeyPair::generate().unwrap()) }
    };
    let turns: Vec<_> = (0..6).map(|n| turn(8_000 + n)).collect();
    let signer = {
        let mut params = params("cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let mut above = super::tests::params("maze");
        above.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = KeyPair::generate().unwrap();
        let der = params.signed_by(&own, &Issuer::new(above, &key)).unwrap().der().clone();
        Authority { der, issuer: Issuer::new(params, own) }
    };
    let found = verify(&signer, &turns.iter().collect::<Vec<_>>(), &trusted, 5_000);
    assert_eq!(found, Err(StatementError::LongChain));
}

#[test]
fn nobody_else_signs_statements() {
    let root = root(KeyPair::generate().unwrap());
    let cluster = root.below(|_| ());
    let why = |signer: &Authority, more: &[&Authority], now| verify(signer, more, &root, now).unwrap_err().to_string();
    assert!(why(&cluster, &[], 999).contains("is not good yet at 1970-01-01T00:16:39Z"));
    assert!(why(&cluster, &[], 9_001).contains("is not good at"));
    let stranger = super::tests::root(KeyPair::generate().unwrap());
    assert!(why(&stranger, &[], 5_000).contains("leads to no root"));
    assert!(why(&stranger.below(|_| ()), &[&stranger], 5_000).contains("leads to no root"));
    let leaf = root.below(|params| params.is_ca = IsCa::NoCa);
    assert!(why(&leaf, &[], 5_000).contains("is not a certificate authority"));
    let mute = root.below(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert!(why(&mute, &[], 5_000).contains("is not a certificate authority"));
    let foreign = root.below(|p| p.subject_alt_names = vec![SanType::URI("spiffe://other".try_into().unwrap())]);
    assert!(why(&foreign, &[], 5_000).contains("is not a certificate authority of td"));
    // The cluster's intermediate may have none below it.
    assert!(why(&cluster.below(|_| ()), &[&cluster], 5_000).contains("leads to no root"));

    let bundle = TrustBundle::new(td(), 1, [root.der.clone()]).unwrap();
    let signed = cluster.sign(b"a test\0hello");
    let try_it = |context: &[u8], message: &[u8], signed: &[u8], chain: &[CertificateDer<'_>]| {
        verify_statement(context, message, signed, chain, &bundle, at(5_000)).unwrap_err()
    };
    let chain = [cluster.der.clone()];
    assert_eq!(try_it(CONTEXT, b"hellO", &signed, &chain), StatementError::Signature);
    assert_eq!(try_it(b"other\0", b"hello", &signed, &chain), StatementError::Signature);
    assert_eq!(try_it(CONTEXT, b"hello", &[], &chain), StatementError::Signature);
    assert_eq!(try_it(CONTEXT, b"hello", &signed, std::slice::from_ref(&root.der)), StatementError::Signature);
    assert_eq!(try_it(CONTEXT, b"hello", &signed, &[]), StatementError::NoSigner);
    assert!(matches!(try_it(CONTEXT, b"hello", &signed, &[vec![1].into()]), StatementError::NotACertificate(_)));
    let crowd = vec![cluster.der.clone(); 9];
    assert_eq!(try_it(CONTEXT, b"hello", &signed, &crowd), StatementError::LongChain);
}
