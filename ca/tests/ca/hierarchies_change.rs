//! The steps of which rotations are made, and what a crash between any two of them leaves.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use alcazar_ca::{AuthorityInfo, Ca, Config, HierarchyError};
use alcazar_identity::{Fingerprint, TrustBundle};
use alcazar_service::process::chain;

use crate::support::{Hands, Served, key, node};

async fn open(folder: &Path) -> Ca {
    Ca::open(Config::new(folder), Hands::new().clock()).await.unwrap()
}

fn bundle(ca: &Ca) -> TrustBundle {
    ca.trust_bundles().get(ca.trust_domain()).unwrap().clone()
}

fn trusted(ca: &Ca) -> (u64, BTreeSet<Fingerprint>) {
    let bundle = bundle(ca);
    (bundle.sequence(), bundle.roots().map(|root| Fingerprint::of(root)).collect())
}

fn set(infos: &[&AuthorityInfo]) -> BTreeSet<Fingerprint> {
    infos.iter().map(|info| info.fingerprint).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder.join("hierarchy"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn a_root_is_rotated_step_by_step_and_each_step_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(folder.path()).await;
    let (first, old) = (ca.fingerprints().root, ca.fingerprints().intermediate);
    assert_eq!(trusted(&ca), (1, set(&[&first])));

    let second = ca.make_root().await.unwrap();
    assert_eq!(trusted(&ca), (1, set(&[&first])), "nobody trusts it yet");
    let new = ca.make_intermediate(second.fingerprint).await.unwrap();
    let error = ca.activate(new.fingerprint).await.unwrap_err();
    assert!(matches!(error, HierarchyError::NotTrusted { .. }), "{error}");
    ca.close().await;

    let ca = open(folder.path()).await;
    assert_eq!((trusted(&ca), ca.fingerprints().intermediate), ((1, set(&[&first])), old.clone()));
    let both = [first.fingerprint, second.fingerprint];
    assert_eq!(ca.set_trusted_roots(&both).await.unwrap(), 2);
    assert_eq!(ca.set_trusted_roots(&both).await.unwrap(), 2, "nothing changed");
    assert_eq!(ca.set_trusted_roots(&[both[1], both[0], both[1]]).await.unwrap(), 2, "the order means nothing");
    ca.close().await;

    let ca = open(folder.path()).await;
    assert_eq!(trusted(&ca), (2, set(&[&first, &second])));
    assert_eq!(ca.fingerprints().intermediate, old, "signing has not moved");
    ca.activate(new.fingerprint).await.unwrap();
    assert_eq!((ca.fingerprints().root, ca.fingerprints().intermediate), (second.clone(), new.clone()));
    assert!(matches!(ca.forget_intermediate(new.fingerprint).await, Err(HierarchyError::InUse { .. })));
    assert!(matches!(ca.forget_root(first.fingerprint).await, Err(HierarchyError::InUse { .. })));
    assert!(matches!(ca.set_trusted_roots(&[first.fingerprint]).await, Err(HierarchyError::InUse { .. })));
    ca.close().await;

    let ca = open(folder.path()).await;
    assert_eq!((ca.fingerprints().root, ca.fingerprints().intermediate), (second.clone(), new.clone()));
    // Back, as an aborted rotation goes.
    ca.activate(old.fingerprint).await.unwrap();
    ca.activate(new.fingerprint).await.unwrap();
    assert_eq!(ca.set_trusted_roots(&[second.fingerprint]).await.unwrap(), 3);
    ca.forget_intermediate(old.fingerprint).await.unwrap();
    ca.forget_root(first.fingerprint).await.unwrap();
    ca.forget_root(first.fingerprint).await.unwrap();
    let held = ca.authorities().await.unwrap();
    assert_eq!((held.roots, held.intermediates), (vec![second.clone()], vec![new.clone()]));
    ca.close().await;

    let ca = open(folder.path()).await;
    assert_eq!((ca.fingerprints().root, trusted(&ca)), (second.clone(), (3, set(&[&second]))));
    assert_eq!(names(folder.path()).len(), 4, "two certificates and their keys: {:?}", names(folder.path()));
    ca.close().await;
}

#[tokio::test]
async fn nodes_of_either_root_are_known_while_both_are_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let ca = &served.ca;
    let one = served.attested(&node("one")).await;
    let token = served.token(&node("two")).await;
    let first = ca.fingerprints().root.fingerprint;
    let second = ca.make_root().await.unwrap().fingerprint;
    let new = ca.make_intermediate(second).await.unwrap().fingerprint;
    ca.set_trusted_roots(&[first, second]).await.unwrap();
    ca.activate(new).await.unwrap();

    // A certificate of the old root renews.
    served.renew(&one, &key()).await.unwrap();
    let refused = served.attest(&token, &key()).await;
    assert!(refused.is_err(), "the CA shows the new root alone now, and the token pins the old one");
    let token = served.token(&node("two")).await;
    served.attest(&token, &key()).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn what_a_crash_left_half_made_is_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(folder.path()).await;
    let whole = names(folder.path());
    let prints = ca.fingerprints();
    ca.close().await;
    let hierarchy = folder.path().join("hierarchy");
    // A key without its certificate; nothing but the note; the temporary file of a write.
    fs::write(hierarchy.join("making-intermediate-0123456789abcdef"), "").unwrap();
    fs::write(hierarchy.join("intermediate-0123456789abcdef-key.pem"), "half of a k").unwrap();
    fs::write(hierarchy.join("making-root-0123456789abcdef"), "").unwrap();
    fs::write(hierarchy.join("intermediate-aaaa.pem.new"), "-----BEG").unwrap();
    let ca = open(folder.path()).await;
    assert_eq!((ca.fingerprints(), names(folder.path())), (prints.clone(), whole.clone()));
    // Made, whole, and the note not yet removed: it is kept.
    let made = ca.make_intermediate(prints.root.fingerprint).await.unwrap();
    let added = names(folder.path()).difference(&whole).find(|name| !name.ends_with("-key.pem")).unwrap().clone();
    ca.close().await;
    fs::write(hierarchy.join(format!("making-{}", added.trim_end_matches(".pem"))), "").unwrap();
    let ca = open(folder.path()).await;
    assert_eq!(ca.fingerprints(), prints);
    assert!(ca.authorities().await.unwrap().intermediates.contains(&made));
    assert!(!names(folder.path()).iter().any(|name| name.starts_with("making-")));
    ca.close().await;
}

/// The first start is killed at each of its steps: the next one makes a root, once, and keeps it.
#[tokio::test]
async fn a_first_start_that_was_cut_short_at_any_step_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    open(&whole).await.close().await;
    let files: Vec<_> = names(&whole).into_iter().collect();
    let at = |name: &str| whole.join("hierarchy").join(name);
    let pick = |start: &str, key: bool| {
        files.iter().find(|name| name.starts_with(start) && name.ends_with("-key.pem") == key).unwrap().clone()
    };
    let steps = [pick("root", true), pick("root", false), pick("intermediate", true), pick("intermediate", false)];
    for done in 0..=steps.len() {
        let trial = folder.path().join(format!("trial-{done}"));
        let hierarchy = trial.join("hierarchy");
        fs::create_dir_all(&hierarchy).unwrap();
        fs::write(hierarchy.join("making-hierarchy"), "").unwrap();
        for name in &steps[..done] {
            fs::copy(at(name), hierarchy.join(name)).unwrap();
        }
        // The one that was being made at that moment has its own note.
        if let Some(next) = steps.get(done.saturating_sub(1)).filter(|name| done > 0 && name.ends_with("-key.pem")) {
            fs::write(hierarchy.join(format!("making-{}", next.trim_end_matches("-key.pem"))), "").unwrap();
        }
        let ca = open(&trial).await;
        let prints = ca.fingerprints();
        ca.close().await;
        assert_eq!(names(&trial).len(), 4, "after {done} steps: {:?}", names(&trial));
        let ca = open(&trial).await;
        assert_eq!(ca.fingerprints(), prints, "after {done} steps");
        ca.close().await;
    }
}

#[tokio::test]
async fn a_folder_of_the_first_layout_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(folder.path()).await;
    let prints = ca.fingerprints();
    ca.close().await;
    let hierarchy = folder.path().join("hierarchy");
    let all = names(folder.path());
    let find =
        |key: bool| all.iter().find(|n| n.starts_with("intermediate-") && n.ends_with("-key.pem") == key).unwrap();
    let id: String = prints.intermediate.fingerprint.to_string().chars().take(16).collect();
    fs::rename(hierarchy.join(find(false)), hierarchy.join("intermediate.pem")).unwrap();
    fs::rename(hierarchy.join(find(true)), hierarchy.join(format!("intermediate-{id}-key.pem"))).unwrap();
    fs::remove_dir_all(folder.path().join("store")).unwrap();
    let ca = open(folder.path()).await;
    assert_eq!(ca.fingerprints(), prints);
    ca.close().await;
    let ca = open(folder.path()).await;
    assert_eq!(ca.fingerprints(), prints);
    ca.close().await;
}

#[tokio::test]
async fn a_store_that_is_lost_never_turns_the_sequence_back() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(folder.path()).await;
    let second = ca.make_root().await.unwrap().fingerprint;
    let first = ca.fingerprints().root.fingerprint;
    let before = ca.set_trusted_roots(&[first, second]).await.unwrap();
    ca.close().await;
    fs::remove_dir_all(folder.path().join("store")).unwrap();
    let ca = open(folder.path()).await;
    let (sequence, roots) = trusted(&ca);
    assert!(sequence > before, "{sequence}");
    assert_eq!(roots, BTreeSet::from([first, second]));
    ca.close().await;
}

#[tokio::test]
async fn keys_can_be_encrypted_from_the_first_start_or_from_any_later_one() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let passphrase = folder.path().join("passphrase");
    fs::write(&passphrase, "open sesame\n").unwrap();
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).unwrap();
    let data = folder.path().join("data");
    let config = |sealed: bool| {
        let mut config = Config::new(&data);
        config.keys.passphrase_file = sealed.then(|| passphrase.clone());
        config
    };
    let clock = || Hands::new().clock();
    let ca = Ca::open(config(false), clock()).await.unwrap();
    let prints = ca.fingerprints();
    ca.close().await;
    let ca = Ca::open(config(true), clock()).await.unwrap();
    assert_eq!(ca.fingerprints(), prints);
    ca.make_intermediate(prints.root.fingerprint).await.unwrap();
    ca.close().await;
    let keys: Vec<_> = names(&data).into_iter().filter(|name| name.ends_with("-key.pem")).collect();
    assert_eq!(keys.len(), 3);
    for name in keys {
        let text = fs::read_to_string(data.join("hierarchy").join(&name)).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{name}");
    }
    let error = chain(&Ca::open(config(false), clock()).await.err().unwrap());
    assert!(error.contains("passphraseFile"), "{error}");
    fs::write(&passphrase, "open barley\n").unwrap();
    let error = chain(&Ca::open(config(true), clock()).await.err().unwrap());
    assert!(error.contains("does not open the private key"), "{error}");
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Looks, and again when an hour has passed: what is over is gone then.
async fn look_twice(ca: &Ca, hands: &Hands) {
    ca.look_after_hierarchy().await.unwrap();
    hands.advance(Duration::from_secs(3600));
    ca.look_after_hierarchy().await.unwrap();
}

#[tokio::test]
async fn a_renewed_intermediate_replaces_the_old_one_and_its_key_once_its_leaves_are_over() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let ca = Ca::open(Config::new(folder.path()), hands.clock()).await.unwrap();
    let first = ca.fingerprints();
    ca.close().await;
    hands.advance(190 * DAY);
    let ca = Ca::open(Config::new(folder.path()), hands.clock()).await.unwrap();
    let second = ca.fingerprints();
    assert_eq!(second.root, first.root);
    assert_ne!(second.intermediate, first.intermediate);
    assert_eq!(trusted(&ca).0, 1, "trust has not changed");
    let held = async |ca: &Ca| set(&ca.authorities().await.unwrap().intermediates.iter().collect::<Vec<_>>());
    let both = set(&[&first.intermediate, &second.intermediate]);
    hands.advance(DAY - Duration::from_secs(3600));
    look_twice(&ca, &hands).await;
    assert_eq!(held(&ca).await, both, "a leaf of it may be alive");
    assert!(ca.crl(first.intermediate.fingerprint).await.is_ok(), "and its list of revocations is signed");
    ca.close().await;
    // It is remembered over a restart.
    let ca = Ca::open(Config::new(folder.path()), hands.clock()).await.unwrap();
    hands.advance(Duration::from_secs(601));
    look_twice(&ca, &hands).await;
    assert_eq!(held(&ca).await, set(&[&second.intermediate]));
    ca.close().await;
    assert_eq!(names(folder.path()).len(), 4);
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_is_set_right_leaves_the_hierarchy_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let config = Config::new(folder.path());
    let served = Served::start_with(config.clone(), &hands).await;
    let right = hands.now();
    let one = served.attested(&node("one")).await;
    served.ca.look_after_jwt_svids().await.unwrap();
    let (before, keys) = (served.ca.fingerprints(), jwt_keys(&served.ca));
    served.stop().await;

    // Started while the clock is wrong by seven months: what it makes now is of the future.
    hands.set(right + 210 * DAY);
    let ca = Ca::open(config.clone(), hands.clock()).await.unwrap();
    ca.look_after_jwt_svids().await.unwrap();
    ca.look_after_hierarchy().await.unwrap();
    let wrong = ca.fingerprints();
    assert_ne!(wrong.intermediate, before.intermediate);
    // It is set right, under the running CA.
    hands.set(right + Duration::from_secs(60));
    ca.look_after_hierarchy().await.unwrap();
    ca.look_after_jwt_svids().await.unwrap();
    assert_eq!(ca.fingerprints(), before, "what was there before is as good as it was");
    assert!(keys.is_subset(&jwt_keys(&ca)), "no key is destroyed for a moment's clock");
    let served = Served::serve(ca, &hands).await;
    served.renew(&one, &key()).await.unwrap();
    served.stop().await;

    // And the other way: a start with a wrong clock, and the next with the right one.
    hands.set(right + 400 * DAY);
    Ca::open(config.clone(), hands.clock()).await.unwrap().close().await;
    hands.set(right + Duration::from_secs(120));
    let served = Served::start_with(config, &hands).await;
    assert_eq!(served.ca.fingerprints(), before);
    served.attested(&node("two")).await;
    served.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_before_the_root_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let ca = Ca::open(Config::new(folder.path()), hands.clock()).await.unwrap();
    let (before, right, files) = (ca.fingerprints(), hands.now(), names(folder.path()));
    hands.set(std::time::UNIX_EPOCH + DAY);
    ca.look_after_hierarchy().await.unwrap();
    assert_eq!((ca.fingerprints(), names(folder.path())), (before.clone(), files.clone()));
    hands.set(right);
    ca.look_after_hierarchy().await.unwrap();
    assert_eq!((ca.fingerprints(), names(folder.path())), (before, files));
    ca.close().await;
}

#[tokio::test]
async fn what_another_process_makes_beside_a_running_ca_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(folder.path()).await;
    let hierarchy = folder.path().join("hierarchy");
    // As `alcazar ca request` leaves it while it waits for a passphrase, and then writes.
    let begun = ["making-intermediate-00000000000000aa", "intermediate-00000000000000aa-key.pem", "x.csr.new"];
    for name in begun {
        fs::write(hierarchy.join(name), "").unwrap();
    }
    ca.look_after_hierarchy().await.unwrap();
    let left = names(folder.path());
    assert!(begun.iter().all(|name| left.contains(*name)), "{left:?}");
    ca.close().await;
    let ca = open(folder.path()).await;
    let left = names(folder.path());
    assert!(!begun.iter().any(|name| left.contains(*name)), "the next start clears it away: {left:?}");
    ca.close().await;
}

fn jwt_keys(ca: &Ca) -> BTreeSet<String> {
    bundle(ca).jwt_authorities().map(|key| key.key_id().to_owned()).collect()
}
