//! The machine on a real CA, its files and its store: ended and opened again at every turn.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use alcazar_api::spiffe::validate_jwt_svid;
use alcazar_identity::SpiffeId;
use alcazar_mtls::{Side, verify_peer};
use tempfile::TempDir;

use super::super::{
    Kind, Note, Phase, Rotation,
    driver::{Looked, Memory},
};
use crate::{ca::Ca, config::Config, hierarchy::pem, profile::ProfileConfig};

pub(super) const NOON: u64 = 1_800_000_000;
pub(super) const KINDS: [Kind; 3] = [Kind::Root, Kind::Intermediate, Kind::Jwt];

/// A CA, and the disk that it is opened on again and again.
pub(super) struct Whole {
    pub(super) folder: TempDir,
    clock: Arc<AtomicU64>,
    pub(super) ca: Ca,
    pub(super) memory: Option<Memory>,
    pub(super) change: fn(&mut Config),
}

impl Whole {
    pub(super) async fn open(change: fn(&mut Config)) -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(NOON)));
        let ca = open(&folder, &clock, change).await;
        Self { folder, clock, ca, memory: None, change }
    }

    pub(super) fn set_clock(&self, change: i64) {
        self.clock.store(NOON.saturating_add_signed(change), Ordering::SeqCst);
    }

    /// Ends it, as far as it knows anything that is not on the disk, and opens it again.
    pub(super) async fn open_again(&mut self) {
        self.ca.close().await;
        self.ca = open(&self.folder, &self.clock, self.change).await;
        self.memory = None;
        self.check();
    }

    pub(super) async fn rotation(&self) -> Rotation {
        self.ca.0.records.rotation().await.unwrap().unwrap().record.rotation
    }

    /// One look, a while after the last.
    pub(super) async fn look(&mut self) -> Looked {
        tokio::time::advance(Duration::from_secs(60)).await;
        let looked = self.ca.look_at_rotation(&mut self.memory).await.unwrap();
        self.check();
        looked
    }

    pub(super) async fn run_to(&mut self, phase: Phase) {
        while self.rotation().await.phase != phase {
            assert!(!self.rotation().await.is_over(), "it went past {phase}");
            self.look().await;
        }
    }

    pub(super) async fn run_to_the_end(&mut self) {
        for _ in 0..400 {
            if self.rotation().await.is_over() {
                return;
            }
            self.look().await;
        }
        panic!("it waits for ever: {:?}", self.ca.rotation().await);
    }

    /// What the CA shows is believed by whoever has its bundle, while clocks are right.
    fn check(&self) {
        if self.clock.load(Ordering::SeqCst) != NOON {
            return;
        }
        let (serving, now) = (self.ca.serving_credentials(), SystemTime::UNIX_EPOCH + Duration::from_secs(NOON));
        verify_peer(serving.svid().chain(), &self.ca.trust_bundles(), Side::Server, now).unwrap();
        verify_peer(serving.svid().chain(), serving.bundles(), Side::Server, now).unwrap();
    }

    /// What signs, and everything that is here and could sign or be believed.
    pub(super) async fn stands_on(&self, kind: Kind) -> (String, BTreeSet<String>) {
        let (hierarchy, authorities) = (self.ca.hierarchy(), self.ca.authorities().await.unwrap());
        let prints =
            |infos: &[crate::authority::AuthorityInfo]| infos.iter().map(|info| info.fingerprint.to_string()).collect();
        match kind {
            Kind::Root => {
                let here: BTreeSet<String> = prints(&authorities.roots);
                assert_eq!(here, prints(hierarchy.roots()), "what is trusted is what is here");
                assert_eq!(authorities.intermediates.len(), 1);
                (hierarchy.root().fingerprint.to_string(), here)
            }
            Kind::Intermediate => {
                (hierarchy.intermediate().info().fingerprint.to_string(), prints(&authorities.intermediates))
            }
            Kind::Jwt => {
                let signing = self.ca.signing_jwt_key().unwrap().as_str().to_owned();
                let labels = self.ca.keys().labels().unwrap().into_iter();
                let private =
                    labels.filter_map(|label| label.as_str().strip_prefix("jwt-").map(str::to_owned)).collect();
                let published = self.ca.own_bundle().unwrap();
                let published: BTreeSet<_> = published.jwt_authorities().map(|key| key.key_id().to_owned()).collect();
                assert_eq!(published, private, "what is believed has its key here, and nothing else has");
                (signing, published)
            }
        }
    }
}

async fn open(folder: &TempDir, clock: &Arc<AtomicU64>, change: fn(&mut Config)) -> Ca {
    let mut config = Config::new(folder.path());
    change(&mut config);
    let clock = Arc::clone(clock);
    let now = move || SystemTime::UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::SeqCst));
    let ca = Ca::open(config, Arc::new(now)).await.unwrap();
    ca.look_after_jwt_svids().await.unwrap();
    ca
}

fn reviews() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/reviews".parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_ends_at_any_turn_of_any_rotation_goes_on_with_it() {
    for kind in KINDS {
        let mut whole = Whole::open(|_| ()).await;
        let (old, _) = whole.stands_on(kind).await;
        whole.ca.start_rotation(kind).await.unwrap();
        whole.open_again().await;
        let mut phases = vec![Phase::Prepare];
        while !whole.rotation().await.is_over() {
            // After each decision, before anything is done for it; and after what was done, before it is looked at.
            if whole.look().await != Looked::Waits {
                whole.open_again().await;
            }
            let phase = whole.rotation().await.phase;
            if phases.last() != Some(&phase) {
                phases.push(phase);
            }
            assert!(phases.len() < 9, "{phases:?}");
        }
        let (new, here) = whole.stands_on(kind).await;
        assert_ne!(new, old, "{kind}");
        assert_eq!(here, [new].into(), "{kind}: nothing of before is left, and nothing was made twice");
        let trusts = kind != Kind::Intermediate;
        assert_eq!(phases.len(), if trusts { 7 } else { 5 }, "{kind}: {phases:?}");
        whole.ca.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_in_any_phase_of_any_rotation_leaves_what_was_before() {
    use Phase::{Distribute, Prepare, Reissue, Retire, Switch};
    for kind in KINDS {
        let mut whole = Whole::open(|_| ()).await;
        let before = whole.stands_on(kind).await;
        for phase in [Prepare, Distribute, Switch, Reissue, Retire] {
            if kind == Kind::Intermediate && matches!(phase, Distribute | Retire) {
                continue;
            }
            whole.ca.start_rotation(kind).await.unwrap();
            whole.run_to(phase).await;
            // In the middle of it, and once made before it is noted.
            whole.look().await;
            if whole.rotation().await.phase != phase && phase != Prepare {
                panic!("{kind}: it went past {phase} at once");
            }
            whole.ca.abort_rotation().await.unwrap();
            whole.open_again().await;
            whole.run_to_the_end().await;
            assert!(whole.rotation().await.back);
            assert_eq!(whole.stands_on(kind).await, before, "{kind}, aborted in {phase}");
        }
        whole.ca.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaf_may_live_for_as_long_as_was_ever_allowed_whatever_is_configured_now() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let limit = async |whole: &Whole| whole.ca.limits().await.unwrap().longest_life - Duration::from_secs(300);
    // The profile that is the default is not the longest.
    let mut whole = Whole::open(|config| {
        config.certificates.max_ttl = Duration::from_secs(12 * 3600);
        let short = ProfileConfig { max_ttl: Some(Duration::from_secs(3600)), ..ProfileConfig::default() };
        config.profiles.insert("default".into(), short);
    })
    .await;
    assert_eq!(whole.ca.0.profile.max_ttl(), hours(1));
    assert_eq!(limit(&whole).await, hours(12));
    // What was given before lives on when less is allowed, also after a second start.
    whole.change = |config| config.certificates.max_ttl = Duration::from_secs(2 * 3600);
    for _ in 0..2 {
        whole.open_again().await;
        assert_eq!(limit(&whole).await, hours(12));
    }
    whole.change = |config| config.certificates.max_ttl = Duration::from_secs(20 * 3600);
    whole.open_again().await;
    assert_eq!(limit(&whole).await, hours(20));
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_root_that_was_begun_is_the_only_one_that_is_made_whatever_the_clock_says() {
    // Back by less than a certificate begins before its time: with a root that is not good yet no CA opens.
    for change in [-40, 7200] {
        let mut whole = Whole::open(|_| ()).await;
        whole.ca.start_rotation(Kind::Root).await.unwrap();
        whole.set_clock(change);
        // Made, and the process ends before its intermediate is.
        whole.ca.make_root().await.unwrap();
        whole.open_again().await;
        whole.set_clock(change * 2);
        whole.run_to(Phase::Distribute).await;
        assert_eq!(whole.ca.authorities().await.unwrap().roots.len(), 2, "the old one and one new one");
        whole.run_to_the_end().await;
        assert_eq!(whole.stands_on(Kind::Root).await.1.len(), 1);
        whole.ca.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_whose_key_another_replica_has_is_not_taken_for_the_one_that_was_begun() {
    let mut whole = Whole::open(|_| ()).await;
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    // What is left of a rotation that another replica drove.
    for _ in 0..6 {
        let other = Whole::open(|_| ()).await;
        let root = other.ca.hierarchy().root().clone();
        let name = format!("hierarchy/root-elsewhere-{}.pem", &root.fingerprint.to_string()[..16]);
        fs::write(whole.folder.path().join(name), pem(&root.certificate)).unwrap();
        other.ca.close().await;
    }
    let keys = async |whole: &Whole| whole.ca.own_roots().await.unwrap().len();
    whole.run_to(Phase::Distribute).await;
    assert_eq!(keys(&whole).await, 2, "the old one and one new one");
    whole.run_to_the_end().await;
    assert_eq!(keys(&whole).await, 1);
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_checked_by_every_bundle_for_as_long_as_it_is_good() {
    let mut whole = Whole::open(|_| ()).await;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOON);
    let audience = ["shop".to_owned()];
    let ttl = Duration::from_secs(300);
    whole.ca.note_token(ttl).await.unwrap();
    let old = whole.ca.sign_jwt(&reviews(), &audience, ttl).await.unwrap();
    let (mut waited, mut signed) = (false, vec![old.token.clone()]);
    whole.ca.start_rotation(Kind::Jwt).await.unwrap();
    while !whole.rotation().await.is_over() {
        whole.look().await;
        let bundles = whole.ca.trust_bundles();
        let phase = whole.rotation().await.phase;
        let now_signed = whole.ca.sign_jwt(&reviews(), &audience, ttl).await.unwrap();
        assert!(validate_jwt_svid(&now_signed.token, "shop", &bundles, now).is_ok(), "{phase}");
        let checks = |token: &String| validate_jwt_svid(token, "shop", &bundles, now).is_ok();
        if phase <= Phase::Reissue {
            assert!(signed.iter().all(checks), "{phase}");
            signed.push(now_signed.token);
        }
        if phase == Phase::Reissue {
            let shown = whole.ca.rotation().await.unwrap().unwrap();
            waited |= shown.waits.iter().any(|wait| wait.party == super::super::observe::TOKENS);
        }
    }
    assert!(waited, "tokens that are in use are waited for");
    assert!(validate_jwt_svid(&old.token, "shop", &whole.ca.trust_bundles(), now).is_err());
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stolen_jwt_key_is_believed_no_more_at_once_whatever_is_under_way() {
    let mut whole = Whole::open(|_| ()).await;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOON);
    for phase in [None, Some(Phase::Distribute), Some(Phase::Reissue)] {
        let audience = ["shop".to_owned()];
        let sign =
            async |whole: &Whole| whole.ca.sign_jwt(&reviews(), &audience, Duration::from_secs(60)).await.unwrap();
        let stolen = sign(&whole).await;
        if let Some(phase) = phase {
            whole.ca.note_token(Duration::from_secs(600)).await.unwrap();
            whole.ca.start_rotation(Kind::Jwt).await.unwrap();
            whole.run_to(phase).await;
        }
        let shown = whole.ca.replace_stolen().await.unwrap();
        assert!(shown.rotation.is_over());
        assert!(validate_jwt_svid(&stolen.token, "shop", &whole.ca.trust_bundles(), now).is_err());
        assert!(validate_jwt_svid(&sign(&whole).await.token, "shop", &whole.ca.trust_bundles(), now).is_ok());
        whole.open_again().await;
        let (signs, here) = whole.stands_on(Kind::Jwt).await;
        assert_eq!(here, [signs].into(), "the stolen key is gone, {phase:?}");
        assert_eq!(whole.look().await, Looked::Nothing);
    }
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_for_a_moment_lets_nobody_be_forgotten() {
    let mut whole = Whole::open(|_| ()).await;
    whole.ca.note_unreported(Duration::from_secs(600)).await.unwrap();
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    let waits = async |whole: &Whole| {
        let seen = whole.ca.observe(&whole.rotation().await, Duration::ZERO).await.unwrap();
        seen.parties.iter().any(|party| party.name == super::super::observe::CLIENTS)
    };
    for phase in [Phase::Distribute, Phase::Reissue, Phase::Retire] {
        whole.run_to(phase).await;
        whole.look().await;
        whole.set_clock(200_000);
        for _ in 0..3 {
            whole.look().await;
            assert!(waits(&whole).await, "{phase}");
        }
        assert_eq!(whole.rotation().await.phase, phase, "600 s have not passed");
        whole.set_clock(0);
        whole.look().await;
    }
    whole.run_to_the_end().await;
    // For a moment before a rotation; and for so long that it is the time.
    whole.set_clock(200_000);
    for look in 0..70 {
        whole.look().await;
        let over = whole.ca.in_use(Note::Certificates, None).await.unwrap().is_none();
        assert_eq!(over, look >= 60, "{look} min");
    }
    whole.set_clock(0);
    assert!(whole.ca.in_use(Note::Certificates, None).await.unwrap().is_some());
    whole.ca.close().await;
}
