//! A replica on its real files; of another it knows what that says of itself, and what it puts on record.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use alcazar_identity::{CertificateDer, RevocationReason};
use alcazar_service::{Health, Readiness, clock::Clock};
use alcazar_store::Expected;

use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::*;
use crate::{
    config::Config,
    replicas::{HeldIntermediate, Phase, Presence},
};

const OTHER: &str = "00000000000000aa";
const HOUR: u64 = 3600;

struct Replica {
    ca: Ca,
    hours: Arc<AtomicU64>,
    seconds: Arc<AtomicU64>,
    readiness: Readiness,
    part: Part,
    lacking: Lacking,
    _folder: tempfile::TempDir,
}

impl Replica {
    async fn open(configure: impl FnOnce(&mut Config)) -> Self {
        let (folder, hours, seconds) = (tempfile::tempdir().unwrap(), Arc::default(), Arc::default());
        let hands: [Arc<AtomicU64>; 2] = [Arc::clone(&hours), Arc::clone(&seconds)];
        let clock: Clock = Arc::new(move || {
            let [hours, seconds] = hands.each_ref().map(|hand| hand.load(Ordering::SeqCst));
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + hours * HOUR + seconds)
        });
        let mut config = Config::new(folder.path());
        configure(&mut config);
        let ca = Ca::open(config, clock).await.unwrap();
        let readiness = Readiness::new();
        let part = readiness.part("CRLs");
        Self { ca, hours, seconds, readiness, part, lacking: Lacking::new(), _folder: folder }
    }

    /// What is told now.
    async fn told(&mut self) -> v1::Crls {
        self.ca.make_current_crls().await.unwrap();
        self.ca.tell_crls(&mut self.lacking, &self.part).await.unwrap();
        self.ca.follow_crls().borrow().clone().unwrap().as_ref().clone()
    }

    /// What an agent serves of it, whose clock is that of the CA: all, or none where one of them is bad, or over in a minute.
    fn served(&self, told: &v1::Crls) -> usize {
        let (now, bundles) = ((self.ca.0.clock)(), self.ca.bundles_with(&self.ca.hierarchy()));
        let bundle = bundles.get(self.ca.trust_domain()).unwrap();
        let is_good = |one: &v1::Crl| {
            let chain: Vec<_> = one.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
            let crl = alcazar_identity::verify_crl(&one.crl, &chain, bundle, now);
            crl.is_ok_and(|crl| crl.good_until() > now + Duration::from_secs(60))
        };
        if told.complete && told.crls.iter().all(is_good) { told.crls.len() } else { 0 }
    }

    fn is_degraded(&self) -> bool {
        self.readiness.parts().iter().any(|(_, health)| matches!(health, Health::Degraded(_)))
    }

    /// What the other replica says of itself: what it signs with, and what it holds besides.
    async fn other(&self, signs: Fingerprint, holds: &[Fingerprint], phase: Phase) {
        let own = self.ca.replicas().await.unwrap().remove(0).presence;
        let of = |intermediate| HeldIntermediate { intermediate, root: own.signing.root };
        let held = holds.iter().chain([&signs]).map(|print| of(*print)).collect();
        let presence =
            Presence { host: "vm-2".into(), phase, signing: of(signs), held, seen: (self.ca.0.clock)(), ..own };
        self.put(family::REPLICAS, OTHER, &presence).await;
    }

    /// The other replica puts the CRL of an intermediate of its own on record.
    async fn puts(&self, issuer: Fingerprint) {
        let own = self.ca.hierarchy().intermediate().info().fingerprint;
        let record = self.ca.current_crls().await.unwrap().remove(&own).unwrap().record;
        let record = super::super::current::CurrentRecord { issuer, ..record };
        self.put(family::CRLS, &issuer.to_string(), &record).await;
    }

    async fn put<T: serde::Serialize + serde::de::DeserializeOwned>(&self, family: &str, name: &str, record: &T) {
        let found = self.ca.0.records.get::<T>(family, name).await.unwrap();
        let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
        self.ca.0.records.put(family, name, expected, record).await.unwrap();
    }
}

#[tokio::test]
async fn all_are_told_or_none_and_which_is_missing() {
    let mut replica = Replica::open(|_| {}).await;
    let first = replica.told().await;
    assert!(first.complete && first.crls.len() == 1, "{}", first.reason);
    assert_eq!(replica.told().await, first, "the same until there is something new");
    assert!(!replica.is_degraded());

    // Another one signs whose CRL is not there.
    let [signs, next] = [b"signs", b"next!"].map(|name| Fingerprint::of(name));
    replica.other(signs, &[], Phase::Serving).await;
    let told = replica.told().await;
    assert!(!told.complete && told.crls.is_empty() && !told.by_setup);
    assert!(told.reason.contains(&signs.to_string()) && told.reason.contains("vm-2"), "{}", told.reason);
    assert!(replica.is_degraded());
    replica.puts(signs).await;
    let told = replica.told().await;
    assert!(told.complete && told.crls.len() == 2, "{}", told.reason);
    assert!(!replica.is_degraded());

    // It has made itself another one, and its CRL is on the way; it may not sign without.
    replica.other(signs, &[next], Phase::Serving).await;
    assert!(replica.told().await.complete);
    replica.other(next, &[signs], Phase::Serving).await;
    assert!(!replica.told().await.complete);
    replica.puts(next).await;
    assert_eq!(replica.told().await.crls.len(), 3);

    // It is silent for so long that its CRLs are over; our own is made anew.
    replica.hours.store(31, Ordering::SeqCst);
    let told = replica.told().await;
    assert!(!told.complete && told.reason.contains(&next.to_string()), "{}", told.reason);
    // It had stopped in order: nothing that it signed is good any more.
    replica.hours.store(0, Ordering::SeqCst);
    replica.other(next, &[signs], Phase::Stopped).await;
    replica.hours.store(31, Ordering::SeqCst);
    let told = replica.told().await;
    assert!(told.complete && told.crls.len() == 1, "{}", told.reason);
}

#[tokio::test]
async fn the_last_crl_of_an_intermediate_is_told_until_what_it_signed_is_over() {
    let mut replica = Replica::open(|_| {}).await;
    let (ca, old) = (replica.ca.clone(), replica.ca.fingerprints().intermediate.fingerprint);
    let next = ca.make_intermediate(ca.hierarchy().root().fingerprint).await.unwrap().fingerprint;
    // Nobody was told any CRLs yet, so there is nobody to wait for.
    ca.activate(next).await.unwrap();
    assert_eq!(replica.told().await.crls.len(), 2, "both may have signed what is in use");
    ca.keep_last_crl(old).await.unwrap();
    ca.forget_intermediate(old).await.unwrap();
    let told = replica.told().await;
    assert!(told.complete && told.crls.len() == 2, "{}", told.reason);
    replica.hours.store(25, Ordering::SeqCst);
    let told = replica.told().await;
    assert!(told.complete && told.crls.len() == 1, "{}", told.reason);
    // Whoever is under a revoked one is to be refused.
    let subject = crate::revocation::Subject::Intermediate { print: next, force: true };
    ca.revoke(subject, alcazar_identity::RevocationReason::KeyCompromise, "the test").await.unwrap();
    let told = replica.told().await;
    // Nobody else is left, and none at all would have verifiers check nothing: that of the root says it.
    let root = ca.hierarchy().root().certificate.to_vec();
    assert_eq!((told.complete, replica.served(&told)), (true, 1), "{}", told.reason);
    assert_eq!(told.crls[0].chain, [root]);
    assert_eq!(replica.told().await, told);
    replica.hours.store(25 + 31, Ordering::SeqCst);
    let later = replica.told().await;
    assert_eq!(replica.served(&later), 1, "{}", later.reason);
    assert_ne!(later, told, "made anew");
}

#[tokio::test]
async fn who_is_gone_takes_the_crls_of_the_others_from_nobody() {
    let mut replica = Replica::open(|_| {}).await;
    let (ca, old) = (replica.ca.clone(), replica.ca.fingerprints().intermediate.fingerprint);
    let next = ca.make_intermediate(ca.hierarchy().root().fingerprint).await.unwrap().fingerprint;
    ca.activate(next).await.unwrap();
    ca.keep_last_crl(old).await.unwrap();
    ca.forget_intermediate(old).await.unwrap();
    assert_eq!(replica.told().await.crls.iter().filter(|one| one.last).count(), 1);
    // Another replica stops in order, at the last moment before its CRL were made anew.
    let stopped = Fingerprint::of(b"stopped");
    replica.puts(stopped).await;
    replica.hours.store(6, Ordering::SeqCst);
    replica.other(stopped, &[], Phase::Stopped).await;
    // The one is over at 24 hours and ten minutes, the other at thirty and ten.
    for (hours, before, after) in [(24, 3, 2), (30, 2, 1)] {
        replica.hours.store(hours, Ordering::SeqCst);
        let mut counts = Vec::new();
        for seconds in (0..=660).step_by(15) {
            replica.seconds.store(seconds, Ordering::SeqCst);
            let told = replica.told().await;
            assert!(told.complete && !replica.is_degraded(), "{hours} h {seconds} s: {}", told.reason);
            counts.push(replica.served(&told));
        }
        counts.dedup();
        assert_eq!(counts, [before, after], "{hours} h");
    }
}

#[tokio::test]
async fn a_crl_that_is_over_announces_nobody() {
    let mut replica = Replica::open(|_| {}).await;
    let (ca, own) = (replica.ca.clone(), replica.ca.fingerprints().intermediate.fingerprint);
    let next = ca.make_intermediate(ca.hierarchy().root().fingerprint).await.unwrap().fingerprint;
    // What others tell is not known yet; what is on record was good when this replica went away.
    ca.make_current_crls().await.unwrap();
    replica.hours.store(31, Ordering::SeqCst);
    let is_told = async |issuer| {
        let known = ca.current_crls().await.unwrap();
        known[&issuer].record.message((ca.0.clock)()).is_some()
    };
    assert!(!is_told(own).await && !is_told(next).await);
    assert!(ca.follow_crls().borrow().is_none());
    let (files, now) = (ca.0.files.clone(), (ca.0.clock)());
    let signing = blocking(move || files.load(next, now)).await.unwrap();
    let (shutdown, begun) = (Shutdown::new(), Instant::now());
    let (_, announced) = tokio::join!(ca.announce_at_start(&shutdown), ca.announce(&signing));
    announced.unwrap();
    assert!(is_told(own).await && is_told(next).await);
    assert!(begun.elapsed() >= SETTLE, "everybody has had the time to hear of them");
    let told = replica.told().await;
    assert_eq!((told.complete, replica.served(&told)), (true, 2), "{}", told.reason);
}

#[tokio::test]
async fn who_has_many_certificates_is_revoked_and_drives_out_nobody() {
    use crate::revocation::{Subject, serials::Certificate};

    let mut replica = Replica::open(|_| {}).await;
    let (ca, now) = (replica.ca.clone(), (replica.ca.0.clock)());
    let [thief, other]: [alcazar_identity::SpiffeId; 2] =
        ["thief", "other"].map(|name| format!("spiffe://cluster.local/node/{name}").parse().unwrap());
    let certificate = |serial: String, age: u64| {
        let not_before = now - Duration::from_secs(age);
        Certificate { serial, not_before, not_after: now + Duration::from_secs(HOUR) }
    };
    let many: Vec<_> = (0..1_000).map(|age| certificate(format!("ff{age:038x}"), age)).collect();
    let older = certificate("ee".repeat(20), 3_000);
    for (id, certificates) in [(&thief, &many[..]), (&other, std::slice::from_ref(&older))] {
        ca.revoke(Subject::Identity(id.clone()), RevocationReason::KeyCompromise, "the test").await.unwrap();
        ca.put_certificates(id, certificates).await.unwrap();
    }
    ca.revoke(Subject::Serial("ab".into()), RevocationReason::KeyCompromise, "the test").await.unwrap();

    let told = replica.told().await;
    assert_eq!((told.complete, replica.served(&told)), (true, 1), "{}", told.reason);
    let (_, list) = CertificateRevocationList::from_der(&told.crls[0].crl).unwrap();
    let named: Vec<_> = list.iter_revoked_certificates().map(|one| one.serial().to_str_radix(16)).collect();
    assert_eq!(named.len(), MOST);
    for serial in ["ab", &older.serial, &many[0].serial, &many[MOST - 3].serial] {
        assert!(named.iter().any(|one| one == serial), "{serial}");
    }
    assert!(!named.contains(&many[MOST - 2].serial), "the oldest are left out");
    let parts = format!("{:?}", replica.readiness.parts());
    assert!(parts.contains(&format!("{} in that of", 1_002 - MOST)), "{parts}");
    // Once they are over there is nothing to be said.
    replica.hours.store(2, Ordering::SeqCst);
    assert!(replica.told().await.complete);
    assert!(!replica.is_degraded());
}

#[tokio::test]
async fn where_others_may_stand_under_the_root_none_are_told_and_nothing_is_wrong() {
    let west = crate::rotation::ClusterConfig { name: "west".into(), endpoint: None };
    let mut replica = Replica::open(|config| config.clusters.push(west)).await;
    let told = replica.told().await;
    assert!(!told.complete && told.by_setup && told.crls.is_empty());
    assert!(told.reason.contains("the cluster west"), "{}", told.reason);
    assert!(!replica.is_degraded());
}
