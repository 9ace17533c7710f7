//! Certificates that a person plugs in, and exchanges under a CA that runs or rests: nobody is cut off.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use alcazar_api::ca::v1::{self, adoption_client::AdoptionClient};
use alcazar_ca::{Ca, CacertsConfig, CacertsFiles, Config, check_cacerts};
use alcazar_identity::{CertificateDer, Fingerprint, X509Svid};
use alcazar_ledger::Hooks;
use alcazar_service::{clock, process::chain};
use rustls_pki_types::pem::PemObject;

use crate::support::{
    Hands, Served, key, node,
    store::{Call, Watched},
    workshop::{Workshop, openssl, with},
};

fn plugged(data: &Path, folder: &Path) -> Config {
    Config { cacerts: Some(CacertsConfig { dir: Some(folder.into()), cut_over_to: None }), ..Config::new(data) }
}

/// OpenSSL makes certificates that are good from now on, and this clock stands still: ahead by less than leaves are backdated.
fn ahead() -> Hands {
    Hands::at(clock::now() + Duration::from_secs(90))
}

fn roots(ca: &Ca) -> Vec<Fingerprint> {
    ca.trust_bundles().get(ca.trust_domain()).unwrap().roots().map(|root| Fingerprint::of(root)).collect()
}

#[tokio::test]
async fn a_ca_issues_under_what_is_plugged_in_and_openssl_verifies_it() {
    let workshop = Workshop::new();
    let folder = workshop.put("cacerts", &workshop.set());
    let hands = ahead();
    let data = workshop.path().join("data");
    let served = Served::start_with(plugged(&data, &folder), &hands).await;
    let one = served.attested(&node("one")).await;
    fs::write(workshop.path().join("leaf.pem"), one.chain_pem()).unwrap();
    openssl(workshop.path(), "verify -CAfile root.pem -untrusted middle.pem leaf.pem");
    // It cannot make what it has no key for, and says what to do.
    let error = chain(&served.ca.make_intermediate(served.ca.fingerprints().root.fingerprint).await.unwrap_err());
    assert!(error.contains("alcazar ca request") && error.contains("alcazar root sign"), "{error}");
    assert!(served.ca.make_root().await.is_err());
    served.stop().await;
    // Found again; and a folder that is gone is told, and never replaced by a root of our own.
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    ca.close().await;
    fs::remove_dir_all(&folder).unwrap();
    assert!(Ca::open(plugged(&data, &folder), hands.clock()).await.is_err());
    assert!(Ca::open(Config::new(&data), hands.clock()).await.is_err());
}

#[tokio::test]
async fn who_has_heard_is_asked_for_while_a_root_waits_for_it_and_no_longer() {
    let workshop = Workshop::new();
    let folder = workshop.put("cacerts", &workshop.set());
    let (hands, data, asked) = (ahead(), workshop.path().join("data"), Arc::new(AtomicUsize::new(0)));
    let open = async || {
        let asked = asked.clone();
        let watcher = move |call: Call<'_>| {
            if matches!(call, Call::List(prefix) if prefix.as_str() == "ca/nodes/") {
                asked.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        };
        let over = |store| Watched::over(store, watcher);
        Ca::open_over(plugged(&data, &folder), hands.clock(), Hooks::default(), over).await.unwrap()
    };
    open().await.close().await;
    asked.store(0, Ordering::SeqCst);
    let ca = open().await;
    let look = async || {
        hands.advance(Duration::from_secs(30));
        ca.look_after_hierarchy().await.unwrap();
        asked.swap(0, Ordering::SeqCst)
    };
    for _ in 0..3 {
        assert_eq!(look().await, 0, "nothing waits");
    }
    let first = ca.fingerprints();
    let fresh = under_another_root(&workshop);
    let both = with(&fresh, "root-cert.pem", workshop.read(&["fresh.pem", "root.pem"]));
    workshop.put("cacerts", &both);
    let mut looks = 0;
    while ca.fingerprints().root == first.root {
        assert_eq!(look().await, 1);
        looks += 1;
        assert!(looks < 10, "nobody is there to wait for");
    }
    assert!(looks >= 4, "it settles for a while");
    assert_eq!(look().await, 0, "it signs");
    ca.close().await;
}

#[tokio::test]
async fn a_root_that_is_plugged_in_signs_intermediates_by_itself() {
    let workshop = Workshop::new();
    let set = workshop.set();
    let set =
        with(&with(&set, "ca-cert.pem", workshop.read(&["root.pem"])), "ca-key.pem", workshop.read(&["root.key"]));
    let folder = workshop.put("cacerts", &set);
    let hands = ahead();
    let data = workshop.path().join("data");
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    let first = ca.fingerprints();
    ca.close().await;
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    assert_eq!(ca.fingerprints(), first, "the same intermediate after a restart");
    hands.advance(Duration::from_secs(190 * 24 * 3600));
    ca.look_after_hierarchy().await.unwrap();
    let second = ca.fingerprints();
    assert_eq!(second.root, first.root);
    assert_ne!(second.intermediate, first.intermediate, "renewed at half of its life");
    ca.close().await;
}

/// The kubelet's way: a new folder, and the link `..data` turned to it.
fn swap(volume: &Path, generation: &str, set: &[(&'static str, Vec<u8>)]) {
    let fresh = volume.join(generation);
    fs::create_dir_all(&fresh).unwrap();
    for (name, bytes) in set {
        fs::write(fresh.join(name), bytes).unwrap();
        if !volume.join(name).is_symlink() {
            symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
        }
    }
    let turning = volume.join("..data_tmp");
    symlink(generation, &turning).unwrap();
    fs::rename(&turning, volume.join("..data")).unwrap();
}

async fn until(ca: &Ca, what: &str, mut holds: impl FnMut() -> bool) {
    let mut changes = ca.hierarchy_changes();
    let changed = async {
        while !holds() {
            changes.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}

/// What an agent tells the CA: which bundle it and all on its sockets enforce.
async fn report(served: &Served, svid: &X509Svid, sequence: u64) {
    let mut client = AdoptionClient::new(served.channel(svid));
    let request = v1::ReportAdoptionRequest { sequence, ..Default::default() };
    client.report_adoption(request).await.unwrap();
}

fn sequence(ca: &Ca) -> u64 {
    ca.trust_bundles().get(ca.trust_domain()).unwrap().sequence()
}

/// A set of an intermediate under a root that nobody has heard of.
fn under_another_root(workshop: &Workshop) -> Vec<(&'static str, Vec<u8>)> {
    workshop.root("fresh", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    workshop.authority("moved", "fresh", "pathlen:0", "subjectAltName=URI:spiffe://cluster.local", 365);
    vec![
        ("ca-cert.pem", workshop.read(&["moved.pem"])),
        ("ca-key.pem", workshop.read(&["moved.key"])),
        ("cert-chain.pem", workshop.read(&["moved.pem"])),
        ("root-cert.pem", workshop.read(&["fresh.pem"])),
    ]
}

#[tokio::test]
async fn a_volume_that_kubernetes_swaps_is_taken_over_and_a_bad_one_keeps_the_old_and_alarms() {
    let workshop = Workshop::new();
    let volume = workshop.path().join("volume");
    let set = workshop.set();
    swap(&volume, "..1", &set);
    let hands = ahead();
    let data = workshop.path().join("data");
    let served = Served::start_with(plugged(&data, &volume), &hands).await;
    let ca = served.ca.clone();
    let (first, only) = (ca.fingerprints(), roots(&ca));

    // Another intermediate of the same root signs as soon as it is there.
    workshop.authority("next", "root", "pathlen:0", "subjectAltName=URI:spiffe://cluster.local", 365);
    let next =
        with(&with(&set, "ca-cert.pem", workshop.read(&["next.pem"])), "ca-key.pem", workshop.read(&["next.key"]));
    let next = with(&next, "cert-chain.pem", workshop.read(&["next.pem"]));
    swap(&volume, "..2", &next);
    until(&ca, "the next intermediate signs", || ca.fingerprints().intermediate != first.intermediate).await;
    let second = ca.fingerprints();
    assert_eq!((roots(&ca), ca.hierarchy_trouble()), (only.clone(), None));

    // One that does not fit is not taken: what signs goes on, and the trouble is told.
    swap(&volume, "..3", &with(&next, "ca-key.pem", workshop.read(&["root.key"])));
    until(&ca, "the trouble is told", || ca.hierarchy_trouble().is_some()).await;
    assert!(ca.hierarchy_trouble().unwrap().contains("ca-key.pem"), "{:?}", ca.hierarchy_trouble());
    assert_eq!(ca.fingerprints(), second);
    let one = served.attested(&node("one")).await;
    swap(&volume, "..4", &next);
    until(&ca, "the trouble is over", || ca.hierarchy_trouble().is_none()).await;

    // A new root is trusted at once, signs once everybody has heard of it, and the old one stays as long as leaves of it live.
    let moved = under_another_root(&workshop);
    swap(&volume, "..5", &moved);
    until(&ca, "the new root is trusted", || roots(&ca).len() == 2).await;
    assert_eq!(ca.fingerprints().intermediate, second.intermediate, "nobody has heard of the new root yet");
    hands.advance(Duration::from_secs(180));
    ca.look_after_hierarchy().await.unwrap();
    assert_eq!(ca.fingerprints().root, second.root, "a node has not reported that it believes the new root");
    report(&served, &one, sequence(&ca) - 1).await;
    ca.look_after_hierarchy().await.unwrap();
    assert_eq!(ca.fingerprints().root, second.root, "it believes the old one alone");
    report(&served, &one, sequence(&ca)).await;
    ca.look_after_hierarchy().await.unwrap();
    assert_ne!(ca.fingerprints().root, second.root);
    assert_eq!(roots(&ca).len(), 2);
    served.attest(&served.token(&node("two")).await, &key()).await.unwrap();
    hands.advance(Duration::from_secs(25 * 3600));
    ca.look_after_hierarchy().await.unwrap();
    assert_eq!(roots(&ca).len(), 2, "a clock that is ahead for a moment takes no root away");
    hands.advance(Duration::from_secs(3600));
    ca.look_after_hierarchy().await.unwrap();
    assert_eq!(roots(&ca), [ca.fingerprints().root.fingerprint]);
    served.stop().await;
}

/// The usual way from the root that the CA made itself: certificates are named in the configuration, and the CA starts again.
#[tokio::test]
async fn a_new_root_that_is_there_at_a_start_signs_when_everybody_has_heard_of_it() {
    let workshop = Workshop::new();
    let (data, hands) = (workshop.path().join("data"), ahead());
    let served = Served::start_with(Config::new(&data), &hands).await;
    let one = served.attested(&node("one")).await;
    let before = served.ca.fingerprints();
    served.stop().await;

    let folder = workshop.put("cacerts", &workshop.set());
    let served = Served::start_with(plugged(&data, &folder), &hands).await;
    assert_eq!(served.ca.fingerprints(), before, "nobody has heard of the new root");
    assert_eq!(roots(&served.ca).len(), 2);
    // A node connects by what it believed before, and is told of both.
    served.renew(&one, &key()).await.unwrap();
    let heard = sequence(&served.ca);
    report(&served, &one, heard).await;
    served.stop().await;
    // Still settling, and started again: the same.
    hands.advance(Duration::from_secs(60));
    let served = Served::start_with(plugged(&data, &folder), &hands).await;
    assert_eq!(served.ca.fingerprints(), before);
    hands.advance(Duration::from_secs(60));
    served.ca.look_after_hierarchy().await.unwrap();
    let after = served.ca.fingerprints();
    assert_ne!(after.root, before.root);
    served.stop().await;
    // It signs, and goes on signing after a start, whoever comes without having reported anything.
    let served = Served::start_with(plugged(&data, &folder), &hands).await;
    served.attested(&node("two")).await;
    served.stop().await;
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    assert_eq!(ca.fingerprints(), after);
    ca.close().await;
}

#[tokio::test]
async fn a_new_root_at_a_start_is_refused_where_what_signed_before_is_gone() {
    let workshop = Workshop::new();
    let (data, hands) = (workshop.path().join("data"), ahead());
    let set = workshop.set();
    let (old, new) = (workshop.put("cacerts", &set), workshop.put("new", &under_another_root(&workshop)));
    let ca = Ca::open(plugged(&data, &old), hands.clock()).await.unwrap();
    let first = ca.fingerprints().root.fingerprint;
    ca.close().await;
    // Nobody was ever given a certificate: nobody can be cut off.
    let alone = workshop.path().join("alone");
    Ca::open(plugged(&alone, &old), hands.clock()).await.unwrap().close().await;
    Ca::open(plugged(&alone, &new), hands.clock()).await.unwrap().close().await;

    let served = Served::start_with(plugged(&data, &old), &hands).await;
    served.attested(&node("one")).await;
    served.stop().await;
    let error = chain(&Ca::open(plugged(&data, &new), hands.clock()).await.err().unwrap());
    let says = ["root-cert.pem", "cacerts.cutOverTo", &first.to_string(), "node/local/one"];
    assert!(says.iter().all(|part| error.contains(part)), "{error}");
    // Nothing has changed by it.
    let ca = Ca::open(plugged(&data, &old), hands.clock()).await.unwrap();
    assert_eq!(roots(&ca), [first]);
    ca.close().await;
    // The way that it says: both roots in the file of the old set, then the exchange.
    let both = workshop.put("both", &with(&set, "root-cert.pem", workshop.read(&["root.pem", "fresh.pem"])));
    let served = Served::start_with(plugged(&data, &both), &hands).await;
    let one = served.attested(&node("one")).await;
    report(&served, &one, sequence(&served.ca)).await;
    served.stop().await;
    hands.advance(Duration::from_secs(121));
    let ca = Ca::open(plugged(&data, &new), hands.clock()).await.unwrap();
    assert_ne!(ca.fingerprints().root.fingerprint, first);
    assert_eq!(roots(&ca).len(), 2);
    ca.close().await;
}

#[tokio::test]
async fn a_root_that_was_left_stays_for_as_long_as_a_leaf_was_ever_allowed_to_live() {
    let workshop = Workshop::new();
    let (data, hands) = (workshop.path().join("data"), ahead());
    let (old, new) = (workshop.put("cacerts", &workshop.set()), workshop.put("new", &under_another_root(&workshop)));
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let allowing = |folder, max_ttl| {
        let mut config = plugged(&data, folder);
        config.certificates.max_ttl = max_ttl;
        config
    };
    let ca = Ca::open(allowing(&old, hours(12)), hands.clock()).await.unwrap();
    let first = ca.fingerprints().root.fingerprint;
    ca.close().await;
    // Less is allowed from now on, and what was given before lives on.
    let ca = Ca::open(allowing(&new, hours(1)), hands.clock()).await.unwrap();
    assert_ne!(ca.fingerprints().root.fingerprint, first);
    hands.advance(hours(9));
    for _ in 0..2 {
        hands.advance(hours(1));
        ca.look_after_hierarchy().await.unwrap();
        assert!(roots(&ca).contains(&first), "leaves under it may live yet");
    }
    for _ in 0..3 {
        hands.advance(hours(1));
        ca.look_after_hierarchy().await.unwrap();
    }
    hands.advance(hours(1));
    ca.look_after_hierarchy().await.unwrap();
    assert!(!roots(&ca).contains(&first));
    ca.close().await;
}

#[tokio::test]
async fn who_wants_the_cut_says_so() {
    let workshop = Workshop::new();
    let (data, hands) = (workshop.path().join("data"), ahead());
    let served = Served::start_with(Config::new(&data), &hands).await;
    served.attested(&node("one")).await;
    served.stop().await;
    let folder = workshop.put("cacerts", &workshop.set());
    let mut config = plugged(&data, &folder);
    let root = check_cacerts(&CacertsFiles::read(&folder).unwrap(), &[], None, &config.trust_domain, hands.now());
    let root = root.unwrap().root.fingerprint;
    config.cacerts.as_mut().unwrap().cut_over_to = Some(root);
    let ca = Ca::open(config, hands.clock()).await.unwrap();
    assert_eq!(ca.fingerprints().root.fingerprint, root);
    ca.close().await;
}

#[tokio::test]
async fn the_files_and_the_operator_do_not_undo_what_the_other_did() {
    let workshop = Workshop::new();
    let (data, hands) = (workshop.path().join("data"), ahead());
    workshop.root("added", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    workshop.root("beside", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    let set = with(&workshop.set(), "root-cert.pem", workshop.read(&["root.pem", "beside.pem"]));
    let ca = Ca::open(plugged(&data, &workshop.put("cacerts", &set)), hands.clock()).await.unwrap();
    let [_, beside] = roots(&ca)[..] else { panic!("{:?}", roots(&ca)) };
    let der = |name: &str| CertificateDer::from_pem_slice(&workshop.read(&[name])).unwrap();
    let added = ca.add_roots(vec![der("added.pem")]).await.unwrap();
    hands.advance(Duration::from_secs(30 * 24 * 3600));
    for _ in 0..3 {
        ca.look_after_hierarchy().await.unwrap();
        hands.advance(Duration::from_secs(3600));
    }
    assert!(roots(&ca).contains(&added[0]), "a root that the operator added stays");
    let error = chain(&ca.remove_root(beside, true).await.unwrap_err());
    assert!(error.contains("root-cert.pem") && error.contains("take it out of that file"), "{error}");
    ca.remove_root(added[0], true).await.unwrap();
    ca.look_after_hierarchy().await.unwrap();
    assert!(!roots(&ca).contains(&added[0]));
    // What would take the whole bundle from everybody is not added.
    workshop.root("small", "RSA -pkeyopt rsa_keygen_bits:1024", "pathlen:1");
    workshop.root("odd", "EC -pkeyopt ec_paramgen_curve:P-521", "pathlen:1");
    for weak in ["small.pem", "odd.pem"] {
        let error = chain(&ca.add_roots(vec![der(weak)]).await.unwrap_err());
        assert!(error.contains("cannot be a root here"), "{error}");
    }
    ca.close().await;
}

#[tokio::test]
async fn a_certificate_in_the_middle_bounds_what_is_issued_and_can_be_renewed() {
    let workshop = Workshop::new();
    let data = workshop.path().join("data");
    workshop.authority("upper", "root", "pathlen:1", "subjectKeyIdentifier=hash", 1);
    workshop.authority("lower", "upper", "pathlen:0", "subjectAltName=URI:spiffe://cluster.local", 365);
    let set = with(&workshop.set(), "ca-cert.pem", workshop.read(&["lower.pem"]));
    let set = with(&set, "ca-key.pem", workshop.read(&["lower.key"]));
    let set = with(&set, "cert-chain.pem", workshop.read(&["lower.pem", "upper.pem"]));
    let folder = workshop.put("cacerts", &set);
    // A quarter of an hour before the end of the one in the middle.
    let hands = Hands::at(clock::now() + Duration::from_secs(24 * 3600 - 900));
    let served = Served::start_with(plugged(&data, &folder), &hands).await;
    let one = served.attested(&node("one")).await;
    let left = one.validity().not_after().duration_since(hands.now()).unwrap();
    assert!(left <= Duration::from_secs(900), "{left:?}: nothing outlives what is above it");
    // Renewed by its owner, for the same key: taken at the next look, though what signs is the same.
    workshop.authority("upper", "root", "pathlen:1", "subjectKeyIdentifier=hash", 30);
    workshop.put("cacerts", &with(&set, "cert-chain.pem", workshop.read(&["lower.pem", "upper.pem"])));
    served.ca.look_after_hierarchy().await.unwrap();
    let two = served.attested(&node("two")).await;
    let left = two.validity().not_after().duration_since(hands.now()).unwrap();
    assert!(left > Duration::from_secs(900), "{left:?}");
    served.stop().await;
}

#[tokio::test]
async fn a_store_that_is_lost_does_not_turn_the_sequence_back() {
    let workshop = Workshop::new();
    let (data, hands) = (workshop.path().join("data"), ahead());
    let set = with(&workshop.set(), "root-cert.pem", workshop.read(&["root.pem"]));
    let folder = workshop.put("cacerts", &set);
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    workshop.root("added", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    let der = CertificateDer::from_pem_slice(&workshop.read(&["added.pem"])).unwrap();
    ca.add_roots(vec![der]).await.unwrap();
    let before = sequence(&ca);
    ca.close().await;
    fs::remove_dir_all(data.join("store")).unwrap();
    hands.advance(Duration::from_secs(60));
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    assert!(sequence(&ca) > before, "{} after {before}", sequence(&ca));
    ca.close().await;
}
