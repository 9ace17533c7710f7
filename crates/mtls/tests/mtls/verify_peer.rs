//! The verifier as a function: what it believes, what it refuses, and the words that it finds.

use alcazar_identity::{CertificateDer, Fingerprint, TrustBundle, TrustBundles};
use alcazar_mtls::{Link, Side, VerifyPeerError, verify_peer};
use proptest::prelude::*;
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use crate::common::*;

fn verify(chain: &[CertificateDer<'_>], bundles: &TrustBundles) -> Result<String, String> {
    let judged = [Side::Client, Side::Server].map(|side| {
        verify_peer(chain, bundles, side, now()).map(|peer| peer.to_string()).map_err(|error| causes(&error))
    });
    let [client, server] = judged;
    assert_eq!(client.is_ok(), server.is_ok(), "{client:?} {server:?}");
    client
}

#[test]
fn a_good_chain_names_its_holder() {
    let mesh = Mesh::new();
    let holder = mesh.cluster.leaf(REVIEWS);
    let peer = verify_peer(&holder.chain, &mesh.bundles(), Side::Client, now()).unwrap();
    let svid = holder.svid();
    assert_eq!((peer.id(), peer.serial(), peer.validity()), (svid.id(), svid.serial(), svid.validity()));
    assert_eq!(peer.fingerprint(), Fingerprint::of(&holder.chain[0]));
    assert_eq!(peer.issuer(), Fingerprint::of(&mesh.cluster.der));
    assert_eq!(peer.root(), Fingerprint::of(&mesh.root.der));
}

#[test]
fn what_is_harmless_is_allowed() {
    let mesh = Mesh::new();
    let bundles = mesh.bundles();
    let check =
        |what: &str, holder: Holder| assert_eq!(verify(&holder.chain, &bundles), Ok(REVIEWS.to_owned()), "{what}");
    check("a leaf straight from the root", mesh.root.leaf(REVIEWS));
    let plugged_in = mesh.root.intermediate_with(|_| ());
    check("an intermediate without a URI", plugged_in.leaf(REVIEWS));
    let upper = mesh.root.intermediate_with(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    check("two intermediates", upper.intermediate(TD).leaf(REVIEWS));
    let mut with_root = mesh.cluster.leaf(REVIEWS);
    with_root.chain.push(mesh.root.der.clone());
    check("the root along with the chain", with_root.clone());
    with_root.chain[1..].reverse();
    check("issuers in any order", with_root);
    let mut extra = mesh.cluster.leaf(REVIEWS);
    extra.chain.insert(1, CertificateDer::from(vec![1, 2, 3]));
    check("junk that no path needs", extra);
    check(
        "no extended key usage at all",
        mesh.cluster.leaf_with(&[REVIEWS], |params| params.extended_key_usages.clear()),
    );
}

#[test]
fn every_broken_rule_is_refused_with_its_reason() {
    let mesh = Mesh::new();
    for stranger in crate::common::strangers::strangers(&mesh) {
        let reason = verify(&stranger.holder.chain, &mesh.bundles()).expect_err(stranger.rule);
        for part in &stranger.reason {
            assert!(reason.contains(part), "{}: {part:?} is not in {reason:?}", stranger.rule);
        }
    }
    assert_eq!(verify(&[], &mesh.bundles()), Err("the peer presented no certificate".to_owned()));
    let nobody = verify(&mesh.cluster.leaf(REVIEWS).chain, &TrustBundles::default()).unwrap_err();
    assert!(nobody.contains("we trust none"), "{nobody}");
}

#[test]
fn the_extended_key_usage_is_that_of_the_side() {
    let mesh = Mesh::new();
    let check = |usage, side, good: bool| {
        let holder = mesh.cluster.leaf_with(&[REVIEWS], |params| params.extended_key_usages = vec![usage]);
        let judged = verify_peer(&holder.chain, &mesh.bundles(), side, now());
        match judged {
            Ok(_) => assert!(good),
            Err(VerifyPeerError::WrongUsage { side: named, .. }) => assert!(!good && named == side),
            Err(other) => panic!("{other}"),
        }
    };
    check(ExtendedKeyUsagePurpose::ClientAuth, Side::Client, true);
    check(ExtendedKeyUsagePurpose::ClientAuth, Side::Server, false);
    check(ExtendedKeyUsagePurpose::ServerAuth, Side::Server, true);
    check(ExtendedKeyUsagePurpose::ServerAuth, Side::Client, false);
}

#[test]
fn a_root_has_dates_and_a_key_usage_too() {
    let check = |change: fn(&mut rcgen::CertificateParams)| {
        let root = Ca::root_with("root", KeyPair::generate().unwrap(), change);
        let chain = root.intermediate(TD).leaf(REVIEWS).chain;
        verify_peer(&chain, &root.bundle(TD).into(), Side::Client, now()).map(|peer| peer.to_string())
    };
    let expired = check(|params| dates(params, now() - YEAR, now() - HOUR)).unwrap_err();
    assert!(matches!(expired, VerifyPeerError::Expired { link: Link::Root, .. }), "{expired}");
    assert!(expired.to_string().contains("root expired at 2027-01-15T07:00:00Z"), "{expired}");
    let early = check(|params| dates(params, now() + HOUR, now() + YEAR)).unwrap_err();
    assert!(matches!(early, VerifyPeerError::NotYetValid { link: Link::Root, .. }), "{early}");
    let mute = check(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]).unwrap_err();
    assert!(mute.to_string().contains("lacks keyCertSign"), "{mute}");
    assert_eq!(check(|params| params.key_usages.clear()).unwrap(), REVIEWS);
}

#[test]
fn a_root_that_was_renewed_with_its_key_does_not_hide_behind_the_old_one() {
    let key = KeyPair::generate().unwrap();
    let again = || KeyPair::try_from(key.serialize_der().as_slice()).unwrap();
    let old = Ca::root_with("root", again(), |params| dates(params, now() - YEAR, now() - HOUR));
    let new = Ca::root_with("root", again(), |_| ());
    let chain = old.intermediate(TD).leaf(REVIEWS).chain;
    let both = TrustBundle::new(td(TD), 1, [old.der.clone(), new.der.clone()]).unwrap();
    let peer = verify_peer(&chain, &both.into(), Side::Client, now()).unwrap();
    assert_eq!(peer.root(), Fingerprint::of(&new.der));
    assert!(verify_peer(&chain, &old.bundle(TD).into(), Side::Client, now()).is_err());
}

#[test]
fn a_root_vouches_for_its_own_trust_domain_alone() {
    let mesh = Mesh::new();
    let partner = Ca::root("partner");
    let bundles: TrustBundles = [mesh.root.bundle(TD), partner.bundle("partner.example")].into_iter().collect();
    let theirs = "spiffe://partner.example/ns/a/sa/b";
    assert_eq!(verify(&partner.leaf(theirs).chain, &bundles), Ok(theirs.to_owned()));
    assert_eq!(verify(&mesh.cluster.leaf(REVIEWS).chain, &bundles), Ok(REVIEWS.to_owned()));
    let reason = verify(&partner.leaf(REVIEWS).chain, &bundles).unwrap_err();
    assert!(reason.contains("none of the roots that we trust for cluster.local"), "{reason}");
    assert!(verify(&mesh.root.leaf(theirs).chain, &bundles).is_err());
}

#[test]
fn the_last_second_counts_and_the_next_does_not() {
    let mesh = Mesh::new();
    let chain = mesh.cluster.leaf(REVIEWS).chain;
    let at = |now| verify_peer(&chain, &mesh.bundles(), Side::Client, now).is_ok();
    let second = std::time::Duration::from_secs(1);
    let first = now() - 120 * second;
    assert_eq!(
        [at(first - second), at(first), at(now() + HOUR), at(now() + HOUR + second)],
        [false, true, true, false]
    );
    assert!(!at(std::time::SystemTime::UNIX_EPOCH - second));
}

#[test]
fn a_crowd_of_look_alike_issuers_costs_little() {
    // Issuers of one name and many keys make a path builder try every order of them.
    let mesh = Mesh::new();
    let mut holder = mesh.cluster.leaf(REVIEWS);
    let crowd = Ca::root_with("cluster east", KeyPair::generate().unwrap(), |_| ());
    holder.chain.truncate(1);
    holder.chain.extend((0..6).map(|_| {
        crowd
            .intermediate_with(|params| {
                params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            })
            .der
    }));
    let start = std::time::Instant::now();
    assert!(verify(&holder.chain, &mesh.bundles()).is_err());
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn hostile_names_are_escaped_and_cut_short() {
    let mesh = Mesh::new();
    let hostile = format!("spiffe://cluster.local/\n2026 INFO all is well{}", "x".repeat(4000));
    let reason = verify(&mesh.cluster.leaf(&hostile).chain, &mesh.bundles()).unwrap_err();
    assert!(!reason.contains('\n') && reason.len() < 6000, "{reason}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_with_one_bit_changed_never_verifies(place in any::<prop::sample::Index>(), bit in 0_u8..8, which in 0_usize..2) {
        thread_local! {
            static GOOD: (Mesh, Holder) = {
                let mesh = Mesh::new();
                let holder = mesh.cluster.leaf(REVIEWS);
                (mesh, holder)
            };
        }
        GOOD.with(|(mesh, holder)| {
            let mut bytes = holder.chain[which].to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let mut chain = holder.chain.clone();
            chain[which] = CertificateDer::from(bytes);
            prop_assert!(verify(&chain, &mesh.bundles()).is_err(), "byte {place} of certificate {which}, bit {bit}");
            Ok(())
        })?;
    }

    #[test]
    fn any_bytes_at_all_are_refused_in_peace(chain in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..9)) {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let bundles = Mesh::new().bundles();
        prop_assert!(verify(&chain, &bundles).is_err());
    }
}
