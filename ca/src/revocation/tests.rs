use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alcazar_identity::RevocationReason;
use alcazar_service::clock::Clock;

use super::*;
use crate::config::Config;

fn at_noon() -> Clock {
    Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(NOON))
}

const NOON: u64 = 1_800_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_nobody_takes_is_told_to_the_operator_and_obeyed_here() {
    let folder = tempfile::tempdir().unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let open = || Ca::open(Config::new(folder.path()), at_noon());
    let ca = open().await.unwrap();
    ca.revoke(Subject::Serial("ab".into()), RevocationReason::Superseded, "a test").await.unwrap();
    assert_eq!(*ca.0.revoking.trouble.borrow(), None);
    // The root takes back what signs here: no list that it signs is taken any more.
    let hierarchy = ca.hierarchy();
    let root = ca.0.files.root_signer(hierarchy.root().fingerprint, (ca.0.clock)()).unwrap();
    let since = (ca.0.clock)();
    let revocation = Revocation { reason: RevocationReason::CaCompromise, since, until: since };
    let ours = hierarchy.intermediate().info().fingerprint;
    ca.extend_list_of(&root, ours, revocation, since).await.unwrap();

    let revoked = ca.revoke(Subject::Identity(id.clone()), RevocationReason::KeyCompromise, "a test").await;
    let reason = alcazar_service::process::chain(&revoked.unwrap_err());
    assert!(reason.contains("nobody would take this cluster's list"), "{reason}");
    assert!(reason.contains("signed by an intermediate that is revoked"), "{reason}");
    assert!(ca.permits(&id).is_err());
    assert!(ca.0.revoking.trouble.borrow().is_some());
    ca.close().await;
    drop(ca);

    // Also after a restart, which is how a person begins to mend it.
    let ca = open().await.unwrap();
    assert!(ca.permits(&id).is_err());
    let root = ca.fingerprints().root.fingerprint;
    let next = ca.make_intermediate(root).await.unwrap().fingerprint;
    ca.activate(next).await.unwrap();
    ca.refresh_revocations().await.unwrap();
    assert_eq!(*ca.0.revoking.trouble.borrow(), None);
    assert!(ca.permits(&id).is_err());
    assert!(ca.revocations().lists().any(|list| list.identity(&id).is_some()));
    ca.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_longer_than_a_value_of_the_store_is_kept_whole() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::open(Config::new(folder.path()), at_noon()).await.unwrap();
    let (root, now) = (ca.hierarchy().root().fingerprint, (ca.0.clock)());
    let signer = ca.0.files.root_signer(root, now).unwrap();
    let issuer = alcazar_identity::ListIssuer::Root(root);
    let signed = async |version: u64, serials: u64| {
        let mut list = RevocationList::new(ca.trust_domain().clone(), issuer.clone(), version);
        let revocation = Revocation { reason: RevocationReason::Superseded, since: now, until: now };
        for serial in 1..=serials {
            assert!(list.revoke_serial(&format!("{serial:x}"), None, revocation));
        }
        let chain = [signer.info().certificate.clone()];
        sign::sign(&list, now, signer.signer().clone(), &chain).await.unwrap()
    };
    let import = async |list| {
        let taken = ca.import_revocations(v1::SignedRevocations { lists: vec![list] }, false).await.unwrap();
        assert_eq!(taken, [issuer.to_string()]);
    };
    let parts = async || {
        let parts = crate::records::prefix(&format!("{}/parts", crate::records::family::REVOCATION_LISTS)).unwrap();
        ca.0.records.store().list(&parts).await.unwrap().entries.len()
    };
    let long = signed(2, 10_000).await;
    assert!(long.list.len() > 3 * alcazar_store::MAX_VALUE);
    import(long.clone()).await;
    assert!(parts().await > 3);
    assert_eq!(ca.signed_lists().await.unwrap().signed.lists, [long]);
    // What is replaced leaves nothing behind.
    let short = signed(3, 1).await;
    import(short.clone()).await;
    assert_eq!((parts().await, ca.signed_lists().await.unwrap().signed.lists), (0, vec![short]));
    ca.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_verifiers_would_not_read_is_not_put_on_the_list() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::open(Config::new(folder.path()), at_noon()).await.unwrap();
    let revoke =
        async |serial: &str| ca.revoke(Subject::Serial(serial.into()), RevocationReason::Superseded, "a test").await;
    revoke("ab").await.unwrap();
    ca.0.revoking.published.send_modify(|held| {
        let entries = held.entries.clone();
        *held = Arc::new(Published { entries, bytes: alcazar_api::revocations::MAX_LIST, ..Published::default() });
    });
    let refused = revoke("cd").await.unwrap_err();
    assert!(refused.to_string().contains("has no room: 1 entries"), "{refused}");
    // What is on it already can be said again.
    assert!(revoke("ab").await.unwrap().already);
    ca.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_is_told_of_changes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let seconds = Arc::new(AtomicU64::new(NOON));
    let hands = seconds.clone();
    let clock: Clock = Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(hands.load(Ordering::SeqCst)));
    let ca = Ca::open(Config::new(folder.path()), clock).await.unwrap();
    let mut told = ca.follow_revocations();
    told.mark_unchanged();
    ca.refresh_revocations().await.unwrap();
    assert!(!told.has_changed().unwrap(), "nothing is different");
    ca.revoke(Subject::Serial("ab".into()), RevocationReason::Superseded, "a test").await.unwrap();
    assert!(told.has_changed().unwrap());
    told.mark_unchanged();
    let again = ca.revoke(Subject::Serial("ab".into()), RevocationReason::Superseded, "a test").await.unwrap();
    assert!(again.already && !told.has_changed().unwrap());
    // The next intermediate signs it anew: whoever starts later may know that one alone.
    seconds.fetch_add(100, Ordering::SeqCst);
    let next = ca.make_intermediate(ca.fingerprints().root.fingerprint).await.unwrap().fingerprint;
    ca.activate(next).await.unwrap();
    ca.refresh_revocations().await.unwrap();
    assert!(told.has_changed().unwrap());
    let signer = ca.fingerprints().intermediate.certificate.to_vec();
    assert!(told.borrow_and_update().signed.lists.iter().all(|list| list.chain[0] == signer));
    ca.refresh_revocations().await.unwrap();
    assert!(!told.has_changed().unwrap());
    ca.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serial_numbers_for_crls_outlive_a_clock_that_is_ahead_for_a_moment() {
    let folder = tempfile::tempdir().unwrap();
    let seconds = Arc::new(AtomicU64::new(NOON));
    let hands = seconds.clone();
    let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    let clock: Clock = Arc::new(move || at(hands.load(Ordering::SeqCst)));
    let ca = Ca::open(Config::new(folder.path()), clock).await.unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let (not_before, not_after) = (at(NOON - 120), at(NOON + 3600));
    let certificate = serials::Certificate { serial: "ab".into(), not_before, not_after };
    ca.put_certificates(&id, &[certificate]).await.unwrap();
    let look = async |second: u64, expected: usize| {
        seconds.store(second, Ordering::SeqCst);
        ca.keep_serials(&mut std::collections::BTreeSet::new()).await.unwrap();
        let prefix = crate::records::prefix(crate::records::family::REVOKED_CERTIFICATES).unwrap();
        let left = ca.0.records.store().list(&prefix).await.unwrap().entries.len();
        assert_eq!(left, expected, "{second}");
    };
    look(NOON + 1_000_000, 1).await;
    look(NOON, 1).await;
    assert_eq!(ca.certificates_on_record(at(NOON)).await.unwrap().len(), 1);
    // Long over, and seen so for an hour.
    look(NOON + 10_000, 1).await;
    look(NOON + 13_599, 1).await;
    look(NOON + 13_600, 0).await;
    ca.close().await;
}

#[tokio::test]
async fn who_revokes_an_identity_that_was_never_issued_anything_is_asked_whether_it_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::open(Config::new(folder.path()), at_noon()).await.unwrap();
    let id = Subject::Identity("spiffe://cluster.local/ns/shop/sa/wbe".parse().unwrap());
    let revoked = ca.revoke(id, RevocationReason::KeyCompromise, "a test").await.unwrap();
    assert!(
        matches!(&revoked.notes[..], [note] if note.contains("never issued anything to spiffe://cluster.local/ns/shop/sa/wbe"))
    );
    assert!(revoked.entry.is_some(), "it is revoked all the same");
    ca.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_to_a_replica_that_is_lost_is_named_in_the_roots_crl() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::open(Config::new(folder.path()), at_noon()).await.unwrap();
    let root = ca.fingerprints().root.fingerprint;
    // As a replica is answered: its key and its ledger are elsewhere, and gone.
    let (_, request) = ca.0.files.joining_request().unwrap();
    let (spki, _) = crate::hierarchy::check_request(&request, ca.trust_domain(), "local").unwrap();
    let gift = ca.0.files.certify(root, &spki, (ca.0.clock)()).unwrap();
    let Some(crate::hierarchy::Gift::Certificate { chain, .. }) = gift else { panic!("the root is here") };
    let given = crate::AuthorityInfo::parse(chain[0].clone()).unwrap();
    ca.record_authority(&given).await.unwrap();
    let subject = |print| Subject::Intermediate { print, force: false };
    let revoked = ca.revoke(subject(given.fingerprint), RevocationReason::CaCompromise, "a test").await.unwrap();
    assert_eq!(revoked.notes, Vec::<String>::new());
    let unknown =
        ca.revoke(subject(Fingerprint::of(b"mistyped")), RevocationReason::CaCompromise, "a test").await.unwrap();
    assert_eq!(unknown.notes.len(), 1);
    let crl = ca.crl(root).await.unwrap();
    let serial = crl::serial_of(&given).unwrap();
    assert!(crl.windows(serial.len()).any(|window| window == serial), "the CRL names it");
    ca.close().await;
}
