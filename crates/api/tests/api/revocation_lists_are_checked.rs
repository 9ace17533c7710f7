//! Lists of revocations: who may sign them, which of two is taken, and what is refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_api::revocations::{Keeper, ListError, encode_list, read_evidence, to_be_signed};
use alcazar_identity::{
    CertificateDer, Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason, RevokedIdentity,
    TrustBundle, TrustBundles,
};
use proptest::prelude::*;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(unit: &str, above: Option<&Authority>) -> Authority {
    authority_until(now() + Duration::from_secs(365 * 24 * 3600), unit, above)
}

fn authority_until(end: SystemTime, unit: &str, above: Option<&Authority>) -> Authority {
    let mut params = CertificateParams::default();
    params.not_before = (now() - Duration::from_secs(3600)).into();
    params.not_after = end.into();
    let name = &mut params.distinguished_name;
    name.push(DnType::CommonName, if above.is_some() { "intermediate" } else { "root" });
    if !unit.is_empty() {
        name.push(DnType::OrganizationName, "td");
        name.push(DnType::OrganizationalUnitName, unit);
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let certificate = match above {
        Some(above) => params.signed_by(&key, &above.issuer),
        None => params.self_signed(&key),
    };
    Authority { der: certificate.unwrap().der().clone(), issuer: Issuer::new(params, key) }
}

/// A root and the intermediates of two clusters.
struct Mesh {
    root: Authority,
    east: Authority,
    west: Authority,
    bundles: TrustBundles,
}

impl Mesh {
    fn new() -> Self {
        let root = authority("", None);
        let [east, west] = ["east", "west"].map(|unit| authority(unit, Some(&root)));
        let bundles = TrustBundle::new("td".parse().unwrap(), 1, [root.der.clone()]).unwrap().into();
        Self { root, east, west, bundles }
    }

    fn root_name(&self) -> String {
        format!("root:{}", Fingerprint::of(&self.root.der))
    }

    fn take(&self, keeper: &mut Keeper, lists: impl IntoIterator<Item = v1::SignedRevocationList>) -> String {
        let shown = v1::SignedRevocations { lists: lists.into_iter().collect() };
        let outcome = keeper.take(&shown, &self.bundles, now());
        let taken = outcome.taken.iter().map(ToString::to_string);
        taken.chain(outcome.refused.iter().map(chain)).collect::<Vec<_>>().join(", ")
    }
}

fn chain(error: &ListError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

fn why() -> Revocation {
    Revocation { reason: RevocationReason::Superseded, since: now(), until: now() + Duration::from_secs(60) }
}

fn list(issuer: &str, version: u64) -> RevocationList {
    RevocationList::new("td".parse().unwrap(), issuer.parse().unwrap(), version)
}

fn sign(list: &RevocationList, signer: &Authority) -> v1::SignedRevocationList {
    let list = encode_list(list, now());
    let signature = signer.issuer.key().sign(&to_be_signed(&list)).unwrap();
    v1::SignedRevocationList { list, signature, chain: vec![signer.der.to_vec()] }
}

#[test]
fn a_list_travels_whole() {
    let mesh = Mesh::new();
    let mut full = list("cluster:east", 7);
    assert!(full.revoke_serial("00ff", Some(Fingerprint::of(b"issuer")), why()));
    assert!(full.revoke_serial("77", None, why()));
    let identity = RevokedIdentity { before: now(), reinstated: true, revocation: why() };
    full.revoke_identity("spiffe://td/ns/a/sa/b".parse().unwrap(), identity);
    let mut keeper = Keeper::default();
    assert_eq!(mesh.take(&mut keeper, [sign(&full, &mesh.east)]), "cluster:east");
    let current = keeper.current().clone();
    assert_eq!(current.lists().collect::<Vec<_>>(), [&full]);

    // Whoever is handed the evidence comes to the same.
    let mut other = Keeper::default();
    let shown = read_evidence(current.evidence()).unwrap();
    assert!(other.take(&shown, &mesh.bundles, now()).refused.is_empty());
    assert_eq!(other.current(), &current);

    let mut of_root = list(&mesh.root_name(), 1);
    of_root.revoke_intermediate(Fingerprint::of(&mesh.west.der), why());
    assert_eq!(mesh.take(&mut keeper, [sign(&of_root, &mesh.root)]), mesh.root_name());
    assert_eq!(keeper.current().lists().count(), 2);
}

#[test]
fn an_older_list_or_another_of_the_same_version_is_refused_and_silence_changes_nothing() {
    let mesh = Mesh::new();
    let mut keeper = Keeper::default();
    let mut second = list("cluster:east", 2);
    assert!(second.revoke_serial("77", None, why()));
    assert_eq!(mesh.take(&mut keeper, [sign(&second, &mesh.east)]), "cluster:east");
    let held = keeper.current().clone();
    let refused = mesh.take(&mut keeper, [sign(&list("cluster:east", 1), &mesh.east)]);
    assert_eq!(refused, "the list of cluster:east has the version 1, and 2 is held");
    assert!(mesh.take(&mut keeper, [sign(&list("cluster:east", 2), &mesh.east)]).contains("differs from the one held"));
    // Another replica's signature over the same list is as good, and nothing new.
    assert_eq!(mesh.take(&mut keeper, [sign(&second, &authority("east", Some(&mesh.root)))]), "");
    assert_eq!(mesh.take(&mut keeper, []), "");
    assert_eq!(*keeper.current(), held);
    assert_eq!(mesh.take(&mut keeper, [sign(&list("cluster:east", 3), &mesh.east)]), "cluster:east");
    assert!(keeper.current().is_empty());
}

#[test]
fn the_same_list_signed_anew_is_what_is_handed_on() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let td = || "td".parse().unwrap();
    let both = TrustBundle::new(td(), 2, [old.root.der.clone(), new.root.der.clone()]).unwrap().into();
    let mut second = list("cluster:east", 2);
    assert!(second.revoke_serial("77", None, why()));
    let shown = |signer: &Authority| v1::SignedRevocations { lists: vec![sign(&second, signer)] };
    let in_force_under = |keeper: &Keeper, bundles: &TrustBundles, now: SystemTime| {
        let mut fresh = Keeper::default();
        let evidence = read_evidence(keeper.current().evidence()).unwrap();
        fresh.take(&evidence, bundles, now).refused.is_empty() && fresh.current() == keeper.current()
    };

    // A rotation of the root: the list says nothing new, and whoever starts later trusts the new root alone.
    let mut keeper = Keeper::default();
    assert_eq!(old.take(&mut keeper, [sign(&second, &old.east)]), "cluster:east");
    assert!(!in_force_under(&keeper, &new.bundles, now()));
    let outcome = keeper.take(&shown(&new.east), &new.bundles, now());
    assert!(outcome.taken.is_empty() && outcome.refused.is_empty() && outcome.is_change(), "{outcome:?}");
    assert_eq!(outcome.renewed, ["cluster:east".parse().unwrap()]);
    assert!(in_force_under(&keeper, &new.bundles, now()));
    // Back again by a signer that ends as late: both are good, so the one held stays.
    assert!(!keeper.take(&shown(&old.east), &both, now()).is_change());

    // A renewal of the intermediate: the later end counts, while both are good.
    let day = Duration::from_secs(24 * 3600);
    let [soon, later] = [1, 2].map(|days| authority_until(now() + day * days, "east", Some(&old.root)));
    let mut keeper = Keeper::default();
    assert_eq!(old.take(&mut keeper, [sign(&second, &soon)]), "cluster:east");
    assert!(keeper.take(&shown(&later), &old.bundles, now()).is_change());
    assert!(!keeper.take(&shown(&soon), &old.bundles, now()).is_change(), "the shorter one is nothing new");
    let then = now() + day + Duration::from_secs(1);
    assert!(in_force_under(&keeper, &old.bundles, then));
}

#[test]
fn nobody_speaks_for_another() {
    let mesh = Mesh::new();
    let mut keeper = Keeper::default();
    let mut check = |signed: v1::SignedRevocationList, expected: &str| {
        let said = mesh.take(&mut keeper, [signed]);
        assert!(said.contains(expected), "{said}\nshould say: {expected}");
    };
    check(sign(&list("cluster:west", 1), &mesh.east), "does not speak for it");
    check(sign(&list(&mesh.root_name(), 1), &mesh.east), "does not speak for it");
    check(sign(&list("cluster:east", 1), &mesh.root), "does not speak for it");
    let mut judges = list("cluster:east", 1);
    judges.revoke_intermediate(Fingerprint::of(&mesh.west.der), why());
    check(sign(&judges, &mesh.east), "which a root alone may do");
    let stranger = Mesh::new();
    check(sign(&list("cluster:east", 1), &stranger.east), "leads to no root that we trust for td");
    let foreign = RevocationList::new("other".parse().unwrap(), ListIssuer::Cluster("east".into()), 1);
    check(sign(&foreign, &mesh.east), "other, which is not trusted here");
    let mut forged = sign(&list("cluster:east", 1), &mesh.east);
    forged.list = encode_list(&list("cluster:east", 2), now());
    check(forged, "is not its signer's");
    let mut plain = sign(&list("cluster:east", 1), &mesh.east);
    // A signature without the context is one for something else.
    plain.signature = mesh.east.issuer.key().sign(&plain.list).unwrap();
    check(plain, "is not its signer's");
    // A plugged-in intermediate states no cluster.
    check(sign(&list("cluster:east", 1), &authority("", Some(&mesh.root))), "cluster:east");
}

#[test]
fn what_a_revoked_intermediate_has_signed_gives_way() {
    let mesh = Mesh::new();
    let mut keeper = Keeper::default();
    // A thief of the key blocks the list for ever, he thinks.
    assert_eq!(mesh.take(&mut keeper, [sign(&list("cluster:east", u64::MAX), &mesh.east)]), "cluster:east");
    let mut of_root = list(&mesh.root_name(), 1);
    of_root.revoke_intermediate(Fingerprint::of(&mesh.east.der), why());
    let next = authority("east", Some(&mesh.root));
    // In one message, in the wrong order.
    let both = [sign(&list("cluster:east", 5), &next), sign(&of_root, &mesh.root)];
    assert_eq!(mesh.take(&mut keeper, both), format!("{}, cluster:east", mesh.root_name()));
    let east = ListIssuer::Cluster("east".into());
    assert_eq!(keeper.current().list(&"td".parse().unwrap(), &east).unwrap().version(), 5);
    let again = mesh.take(&mut keeper, [sign(&list("cluster:east", u64::MAX - 1), &mesh.east)]);
    assert!(again.contains("signed by an intermediate that is revoked"), "{again}");
}

#[test]
fn what_was_proved_once_is_held_and_not_shown_to_others() {
    let mesh = Mesh::new();
    let unproved = |keeper: &Keeper, at: SystemTime| {
        let (shown, unproved) = keeper.to_show(&mesh.bundles, at, |_| false);
        (shown.lists.len(), unproved.iter().map(|unproved| chain(&unproved.reason)).collect::<Vec<_>>().join(", "))
    };
    let mut west = list("cluster:west", 5);
    assert!(west.revoke_serial("ab", None, why()));
    let ended = authority_until(now() - Duration::from_secs(60), "west", Some(&mesh.root));
    let old = sign(&west, &ended);
    let mut keeper = Keeper::default();
    assert!(mesh.take(&mut keeper, [old.clone()]).contains("is not signed by an authority that is trusted here"));
    assert!(keeper.current().is_empty());
    keeper.hold(&old).unwrap();
    assert_eq!(keeper.current().lists().map(RevocationList::version).collect::<Vec<_>>(), [5]);
    let (shown, reason) = unproved(&keeper, now());
    assert!(shown == 0 && reason.contains("cluster:west"), "{shown} {reason}");
    // An older one does not take its place, in whatever way it comes.
    keeper.hold(&sign(&list("cluster:west", 4), &mesh.west)).unwrap();
    assert!(mesh.take(&mut keeper, [sign(&list("cluster:west", 4), &mesh.west)]).contains("version 4, and 5 is held"));
    // The same list, signed by who signs there now, can be shown again.
    let outcome = keeper.take(&v1::SignedRevocations { lists: vec![sign(&west, &mesh.west)] }, &mesh.bundles, now());
    assert_eq!(outcome.renewed.len(), 1, "{outcome:?}");
    assert_eq!(unproved(&keeper, now()), (1, String::new()));
    // Years later it cannot, and it is in force.
    let (shown, reason) = unproved(&keeper, now() + Duration::from_secs(2 * 365 * 24 * 3600));
    assert!(shown == 0 && reason.contains("cluster:west") && !keeper.current().is_empty(), "{shown} {reason}");
    assert!(keeper.hold(&v1::SignedRevocationList { list: vec![1], ..v1::SignedRevocationList::default() }).is_err());
    // Its cluster is gone: the list that was meant is held no more, and not a newer one.
    keeper.forget(west.trust_domain(), west.issuer(), 4);
    assert!(!keeper.current().is_empty());
    keeper.forget(west.trust_domain(), west.issuer(), 5);
    assert!(keeper.current().is_empty() && keeper.signed().lists.is_empty());
}

#[test]
fn malformed_entries_refuse_the_whole_list() {
    let mesh = Mesh::new();
    let check = |spoil: fn(&mut v1::RevocationList), expected: &str| {
        let mut full = list("cluster:east", 1);
        assert!(full.revoke_serial("77", None, why()));
        let identity = RevokedIdentity { before: now(), reinstated: false, revocation: why() };
        full.revoke_identity("spiffe://td/ns/a/sa/b".parse().unwrap(), identity);
        let mut message = v1::RevocationList::decode(encode_list(&full, now()).as_slice()).unwrap();
        spoil(&mut message);
        let list = message.encode_to_vec();
        let signature = mesh.east.issuer.key().sign(&to_be_signed(&list)).unwrap();
        let signed = v1::SignedRevocationList { list, signature, chain: vec![mesh.east.der.to_vec()] };
        let mut keeper = Keeper::default();
        let said = mesh.take(&mut keeper, [signed]);
        assert!(said.contains(expected), "{said}\nshould say: {expected}");
        assert_eq!(keeper.current().lists().count(), 0);
    };
    check(|m| m.trust_domain.clear(), "names no trust domain");
    check(|m| m.issuer = "east".into(), "names nobody who keeps lists");
    check(|m| m.certificates[0].serial = "xyz".into(), "\"xyz\" as a serial number");
    check(|m| m.certificates[0].issuer = vec![1], "not 32 bytes");
    check(|m| m.certificates[0].mark = None, "without reason and time");
    check(|m| m.identities[0].spiffe_id = "shop".into(), "names an identity that is none");
    check(|m| m.identities[0].before = -1, "-1 as a moment");
    check(|m| m.identities[0].mark.as_mut().unwrap().reason = 8, "8 as a reason");
    let junk = v1::SignedRevocationList { list: vec![0xff; 9], ..Default::default() };
    assert!(mesh.take(&mut Keeper::default(), [junk]).contains("cannot be read"));
}

proptest! {
    #[test]
    fn one_bit_changed_never_makes_another_list(place in any::<prop::sample::Index>(), bit in 0_u8..8, part in 0_usize..3) {
        thread_local! {
            static GOOD: (Mesh, Arc<RevocationList>, v1::SignedRevocationList) = {
                let mesh = Mesh::new();
                let mut full = list("cluster:east", 1);
                assert!(full.revoke_serial("77", None, why()));
                let signed = sign(&full, &mesh.east);
                (mesh, Arc::new(full), signed)
            };
        }
        GOOD.with(|(mesh, full, good)| {
            let mut bad = good.clone();
            let bytes = [&mut bad.list, &mut bad.signature, &mut bad.chain[0]].into_iter().nth(part).unwrap();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let mut keeper = Keeper::default();
            let shown = v1::SignedRevocations { lists: vec![bad] };
            let taken = keeper.take(&shown, &mesh.bundles, now()).taken;
            // A certificate's outermost framing is not signed: what it says is, and so is the list.
            let framing = part == 2 && keeper.current().lists().eq([full.as_ref()]);
            prop_assert!(taken.is_empty() || framing);
            Ok(())
        })?;
    }
}
