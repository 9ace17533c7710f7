//! A replica that signs with what another one gave it, on its real files; of the other it knows what that says of itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use alcazar_identity::RevocationReason;
use alcazar_service::clock::Clock;
use alcazar_store::Expected;
use tempfile::TempDir;

use super::*;
use crate::{
    config::Config,
    hierarchy::{Gift, Given, GivenKey, Renewal, SharedKey, check_request},
    records::family,
    replicas::{Phase as Doing, Presence},
    revocation::Subject,
    rotation::RotationError,
};

const NOON: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3600;
const OTHER: &str = "00000000000000aa";

/// A replica with an intermediate that another gave it, and that other one.
struct Both {
    clock: Arc<AtomicU64>,
    giver: Ca,
    ca: Ca,
    _folders: [TempDir; 2],
}

impl Both {
    async fn open() -> Self {
        let clock = Arc::new(AtomicU64::new(NOON));
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = async |folder: &TempDir| {
            let hands = clock.clone();
            let now: Clock =
                Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(hands.load(Ordering::SeqCst)));
            Ca::open(Config::new(folder.path()), now).await.unwrap()
        };
        let both = Self { giver: open(&folders[0]).await, ca: open(&folders[1]).await, clock, _folders: folders };
        let (own, root) = (both.ca.fingerprints(), both.giver.fingerprints().root);
        let join = |trust: &crate::hierarchy::TrustState| trust.joined_by(root.certificate.clone(), both.now());
        both.ca.change_trusted_roots(join).await.unwrap();
        both.go_over().await;
        // It never had a root.
        both.ca.set_trusted_roots(&[root.fingerprint]).await.unwrap();
        both.ca.forget_intermediate(own.intermediate.fingerprint).await.unwrap();
        both.ca.forget_root(own.root.fingerprint).await.unwrap();
        both
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock.load(Ordering::SeqCst))
    }

    fn advance(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }

    /// What the other signs with, as a letter of it has it.
    async fn hold(&self) -> Fingerprint {
        let gift = self.giver.0.files.share(self.giver.hierarchy().signing()).unwrap().unwrap();
        let Gift::Shared { chain, root, key: SharedKey::Pkcs8(key) } = gift else { panic!("it has the key") };
        self.take(Given { chain, root, key: GivenKey::Pkcs8(key) }).await
    }

    async fn take(&self, given: Given) -> Fingerprint {
        let trust = self.ca.trust_state().await.unwrap().record;
        self.ca.0.files.hold_given(given, &trust, self.now()).unwrap().fingerprint
    }

    async fn go_over(&self) {
        self.ca.activate(self.hold().await).await.unwrap();
    }

    /// The other has another intermediate under the same root.
    async fn giver_renews(&self) -> HeldIntermediate {
        let root = self.giver.fingerprints().root.fingerprint;
        let intermediate = self.giver.make_intermediate(root).await.unwrap().fingerprint;
        self.giver.activate(intermediate).await.unwrap();
        HeldIntermediate { intermediate, root }
    }

    /// The other says what it signs with; and whatever else this changes.
    async fn giver_says(&self, change: impl Fn(&mut Presence)) {
        let records = &self.ca.0.records;
        let mut said = self.giver.replicas().await.unwrap().remove(0).presence;
        // Its root is kept offline.
        (said.host, said.roots) = ("two".into(), Vec::new());
        change(&mut said);
        let found = records.get::<Presence>(family::REPLICAS, OTHER).await.unwrap();
        let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
        records.put(family::REPLICAS, OTHER, expected, &said).await.unwrap();
        self.ca.replicas().await.unwrap();
    }

    fn signs(&self) -> Fingerprint {
        self.ca.fingerprints().intermediate.fingerprint
    }

    /// What is over is so at every look for an hour.
    async fn look_for_an_hour(&self) {
        for _ in 0..3 {
            self.ca.look_after_hierarchy().await.unwrap();
            self.advance(1900);
        }
    }

    fn keys(&self) -> usize {
        let labels = self.ca.keys().labels().unwrap();
        labels.iter().filter(|label| label.as_str().starts_with("intermediate")).count()
    }

    async fn close(self) {
        self.ca.close().await;
        self.giver.close().await;
    }
}

#[tokio::test]
async fn what_is_shared_is_left_for_the_next_one_of_its_replica_and_its_key_is_destroyed() {
    let both = Both::open().await;
    let root = both.giver.fingerprints().root.fingerprint;
    assert_eq!(both.ca.hierarchy().signing().renewal, Renewal::Sharer);
    assert!(both.ca.replicas().await.unwrap()[0].presence.shared);
    both.giver_says(|_| ()).await;
    assert_eq!(both.ca.wants().await.unwrap(), Wants::Nothing);
    both.giver_says(|said| said.roots = vec![root]).await;
    assert_eq!(both.ca.wants().await.unwrap(), Wants::ItsOwn);

    // Past half of its life a person is told where to act.
    both.advance(190 * DAY);
    both.giver_says(|_| ()).await;
    let points = both.ca.points();
    let point = points.iter().find(|point| point.name == "intermediate").unwrap();
    let (_, errand) = point.errand(both.now()).unwrap();
    assert!(errand.contains(&format!("install a renewed one at the replica {OTHER} on two")), "{errand}");
    assert_eq!(both.ca.wants().await.unwrap(), Wants::Nothing, "there is none");

    let (old, next) = (both.signs(), both.giver_renews().await);
    both.giver_says(|_| ()).await;
    assert_eq!(both.ca.wants().await.unwrap(), Wants::This(next));
    both.giver_says(|said| said.phase = Doing::Stopped).await;
    assert_eq!(both.ca.wants().await.unwrap(), Wants::Nothing, "nobody would answer");
    both.go_over().await;
    assert_eq!((both.signs(), both.ca.wants().await.unwrap()), (next.intermediate, Wants::Nothing));
    assert_eq!(both.keys(), 2);
    // Leaves of it are alive; and then they are not.
    both.look_for_an_hour().await;
    assert!(both.ca.crl(old).await.is_ok());
    both.advance(2 * DAY);
    both.look_for_an_hour().await;
    assert_eq!((both.keys(), both.signs()), (1, next.intermediate), "the other's old key is not here any more");
    both.close().await;
}

#[tokio::test]
async fn what_is_gone_back_to_is_here_once() {
    let both = Both::open().await;
    let first = both.signs();
    let signing = both.giver.hierarchy().signing().clone();
    both.giver_renews().await;
    both.go_over().await;
    let keys = both.keys();
    both.giver.activate(signing.authority.info().fingerprint).await.unwrap();
    both.go_over().await;
    assert_eq!((both.signs(), both.keys()), (first, keys));
    both.close().await;
}

#[tokio::test]
async fn a_key_in_a_token_that_both_have_is_not_ours_to_destroy() {
    let both = Both::open().await;
    let (label, csr) = both.ca.0.files.joining_request().unwrap();
    let (spki, _) = check_request(&csr, both.ca.trust_domain(), "local").unwrap();
    let root = both.giver.fingerprints().root.fingerprint;
    let gift = both.giver.0.files.certify(root, &spki, both.now()).unwrap();
    let Some(Gift::Certificate { chain, root }) = gift else { panic!("it has the root") };
    let its = both.take(Given { chain, root, key: GivenKey::Token(label.clone()) }).await;
    both.ca.activate(its).await.unwrap();
    assert_eq!(both.ca.hierarchy().signing().renewal, Renewal::Sharer);
    both.go_over().await;
    // Another one signs with it: not even its certificate goes.
    both.advance(2 * DAY);
    both.giver_says(|said| said.signing.intermediate = its).await;
    both.ca.look_after_hierarchy().await.unwrap();
    let here = async || both.ca.authorities().await.unwrap().intermediates.iter().any(|info| info.fingerprint == its);
    for _ in 0..3 {
        both.giver_says(|said| said.signing.intermediate = its).await;
        both.ca.look_after_hierarchy().await.unwrap();
        both.advance(1900);
    }
    assert!(here().await);
    both.giver_says(|_| ()).await;
    both.look_for_an_hour().await;
    both.look_for_an_hour().await;
    assert!(!here().await);
    assert!(both.ca.keys().labels().unwrap().contains(&label));
    both.close().await;
}

#[tokio::test]
async fn what_is_shared_is_rotated_where_it_is_from() {
    let both = Both::open().await;
    both.giver_says(|_| ()).await;
    let refused = both.ca.start_rotation(Kind::Intermediate).await.unwrap_err();
    assert!(matches!(refused, RotationError::Shared(_)), "{refused}");
    assert!(refused.to_string().contains(&format!("the replica {OTHER} on two")), "{refused}");
    // Who has the root's key gives it one of its own.
    let root = both.giver.fingerprints().root.fingerprint;
    both.giver_says(|said| said.roots = vec![root]).await;
    both.ca.start_rotation(Kind::Intermediate).await.unwrap();
    both.close().await;
}

#[tokio::test]
async fn a_replica_leaves_what_another_rotates_for_what_that_goes_to() {
    let both = Both::open().await;
    let (old, records) = (both.signs(), &both.ca.0.records);
    let next = both.giver_renews().await;
    // By its end alone it would stay.
    let says = async || both.giver_says(|said| said.not_after = both.now()).await;
    says().await;
    assert_eq!(both.ca.wants().await.unwrap(), Wants::Nothing);
    let rotation =
        crate::rotation::Rotation::new(Kind::Intermediate, old.into(), Some(next.intermediate.into()), 1, both.now());
    let rotation = rotation.of_replica(OTHER);
    let put = async |rotation| {
        let found = records.rotation().await.unwrap();
        let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
        records.put_rotation(expected, &rotation).await.unwrap();
    };
    for (phase, wants) in
        [(Phase::Prepare, Wants::Nothing), (Phase::Switch, Wants::This(next)), (Phase::Done, Wants::Nothing)]
    {
        put(rotation.entering(phase, both.now())).await;
        assert_eq!(both.ca.wants().await.unwrap(), wants, "{phase}");
    }
    both.close().await;
}

#[tokio::test]
async fn a_replica_that_signs_with_a_revoked_intermediate_issues_nothing_until_it_has_another() {
    let both = Both::open().await;
    // The one that has the root's key makes another one itself.
    let ca = &both.giver;
    let first = ca.fingerprints().intermediate.fingerprint;
    let subject = |force| Subject::Intermediate { print: first, force };
    let refused = ca.revoke(subject(false), RevocationReason::KeyCompromise, "a test").await.unwrap_err();
    assert!(refused.to_string().contains("is the one that signs here; replace it first"), "{refused}");
    ca.revoke(subject(true), RevocationReason::KeyCompromise, "a test").await.unwrap();
    let told = ca.health(&ca.points(), both.now()).unwrap_err();
    assert!(told.contains("is revoked since"), "{told}");
    let id = "spiffe://cluster.local/ns/shop/sa/reviews".parse().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let csr = crate::csr::Csr::from_der(csr.der()).unwrap();
    let issue = async || {
        let life = Duration::from_secs(60);
        ca.issue_for("secret shop/istio.reviews", crate::callers::Plug::Secrets, &id, &csr, life).await
    };
    let refused = issue().await.unwrap_err();
    assert!(matches!(refused, crate::refusal::RequestError::RevokedIssuer(print) if print == first), "{refused}");
    assert!(ca.activate(first).await.is_err(), "nobody goes back to it");
    ca.go_over(ca.wants().await.unwrap()).await.unwrap();
    assert_ne!(ca.fingerprints().intermediate.fingerprint, first);
    assert_eq!(ca.health(&ca.points(), both.now()), Ok(None));
    assert!(issue().await.is_ok());

    // The one that shared it hears of it by the list, and asks for what the other has gone over to.
    let list = ca.follow_revocations().borrow().signed.clone();
    both.giver_says(|_| ()).await;
    let refused = both.ca.import_revocations(list.clone(), false).await.unwrap_err();
    assert!(refused.to_string().contains("is the one that signs here"), "{refused}");
    both.ca.import_revocations(list, true).await.unwrap();
    let next = ca.fingerprints().intermediate.fingerprint;
    let Wants::This(wanted) = both.ca.wants().await.unwrap() else { panic!("it must leave it") };
    assert_eq!(wanted.intermediate, next);
    both.close().await;
}

#[tokio::test]
async fn what_another_replica_signs_with_is_not_revoked_but_by_force() {
    let both = Both::open().await;
    let root = both.giver.fingerprints().root.fingerprint;
    let its = both.giver.make_intermediate(root).await.unwrap().fingerprint;
    // Seen from the one with the root.
    let records = &both.giver.0.records;
    let mut said = both.giver.replicas().await.unwrap().remove(0).presence;
    (said.host, said.signing.intermediate) = ("two".into(), its);
    records.put(family::REPLICAS, OTHER, Expected::Absent, &said).await.unwrap();
    let revoke = async |force| {
        both.giver.revoke(Subject::Intermediate { print: its, force }, RevocationReason::Superseded, "a test").await
    };
    let refused = revoke(false).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("is the one that the replica {OTHER} on two signs with")), "{refused}");
    assert!(both.giver.revoked_intermediate(its).is_none());
    // One that is gone is waited for by nobody.
    both.advance(61);
    revoke(false).await.unwrap();
    assert!(both.giver.revoked_intermediate(its).is_some());
    both.close().await;
}
