//! Two clusters under one root that exchange it, and say to each other how far they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use alcazar_identity::{Fingerprint, RevocationReason};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    super::{
        Action, Anchor, Class, Kind, Limits, Observations, Observed, Party, Phase, Report, Role, Rotation, Standing,
        Timed, Trust, Wait, Why,
        clusters::{ClusterConfig, Place, Progress, Statement, Us, report},
        driver::Looked,
    },
    whole::Whole,
};
use crate::{records::family, revocation::Subject};

fn west(config: &mut crate::config::Config) {
    config.cluster = "west".into();
    config.clusters = vec![ClusterConfig { name: "local".into(), endpoint: None }];
}

fn east(config: &mut crate::config::Config) {
    config.clusters = vec![ClusterConfig { name: "west".into(), endpoint: None }];
}

/// Both believe the roots of both, as if they were one: what they sign is what counts here.
async fn two() -> (Whole, Whole) {
    let (east, west) = (Whole::open(east).await, Whole::open(west).await);
    for (one, other) in [(&east, &west), (&west, &east)] {
        one.ca.add_roots(vec![other.ca.hierarchy().root().certificate.clone()]).await.unwrap();
    }
    (east, west)
}

#[tokio::test(start_paused = true)]
async fn a_root_is_left_by_all_clusters_or_by_none() {
    let (mut east, mut west) = two().await;
    east.ca.start_rotation(Kind::Root).await.unwrap();
    for _ in 0..12 {
        east.look().await;
    }
    let waits = east.ca.rotation().await.unwrap().unwrap().waits;
    assert_eq!((waits.len(), waits[0].party.as_str()), (1, "the cluster west"));
    assert_eq!((&waits[0].why, east.rotation().await.phase), (&Why::Unheard, Phase::Distribute));

    // It states that it rotates nothing, and is waited for all the same.
    assert_eq!(west.look().await, Looked::Nothing);
    let state = west.ca.exported_state().unwrap();
    assert_eq!(east.ca.import_state(state.as_bytes()).await.unwrap(), ("west".into(), true));
    assert_eq!(east.ca.import_state(state.as_bytes()).await.unwrap(), ("west".into(), false), "nothing newer");
    east.look().await;
    let waits = east.ca.rotation().await.unwrap().unwrap().waits;
    assert!(matches!(waits[0].why, Why::Bundle { .. }), "{waits:?}");

    // Nobody is passed by in silence: only a person goes on without a cluster.
    east.set_clock(3600);
    tokio::time::advance(Duration::from_secs(60)).await;
    east.look().await;
    let shown = east.ca.rotation().await.unwrap().unwrap();
    assert!(matches!(shown.waits[0].standing, Standing::Unreachable(_)), "{:?}", shown.waits);
    east.ca.force_rotation(shown.rotation.step, &["the cluster west".to_owned()].into()).await.unwrap();
    while east.rotation().await.phase == Phase::Distribute {
        east.look().await;
    }
    for whole in [east, west] {
        whole.ca.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_is_believed_of_the_cluster_whose_ca_has_signed_it() {
    let (mut east, mut west) = two().await;
    east.look().await;
    west.look().await;
    let state = west.ca.exported_state().unwrap();
    let refused = async |bytes: &[u8]| east.ca.import_state(bytes).await.unwrap_err().to_string();
    assert!(refused(b"{}").await.contains("not the state of a cluster"));
    assert!(refused(&vec![b' '; 70_000]).await.contains("not the state of a cluster"));
    assert!(refused(east.ca.exported_state().unwrap().as_bytes()).await.contains("of this cluster"));
    // One bit of what is stated, another's statement in its place, a root that nobody trusts.
    let mut forged: serde_json::Value = serde_json::from_str(&state).unwrap();
    let own: serde_json::Value = serde_json::from_str(&east.ca.exported_state().unwrap()).unwrap();
    let genuine = forged["statement"].clone();
    forged["statement"] = own["statement"].clone();
    assert!(refused(forged.to_string().as_bytes()).await.contains("not signed"));
    forged["statement"] = genuine;
    assert!(east.ca.import_state(forged.to_string().as_bytes()).await.is_ok());
    let mut stranger = Whole::open(west_alone).await;
    stranger.look().await;
    assert!(refused(stranger.ca.exported_state().unwrap().as_bytes()).await.contains("not signed"));
    // One that nobody waits for.
    assert_eq!(heard(&east).await, [("the cluster west".to_owned(), true)]);
    east.change = |_| ();
    east.open_again().await;
    assert!(heard(&east).await.is_empty(), "it left the configuration");
    let refused = east.ca.import_state(state.as_bytes()).await.unwrap_err().to_string();
    assert!(refused.contains("west is not among the clusters: in ca.yaml"), "{refused}");
    for whole in [east, west, stranger] {
        whole.ca.close().await;
    }
}

/// The other clusters that a rotation of the root would wait for, and whether each has said anything.
async fn heard(whole: &Whole) -> Vec<(String, bool)> {
    let rotation = Rotation::new(Kind::Root, Anchor::new("A"), None, 0, SystemTime::UNIX_EPOCH);
    let parties = whole.ca.clusters(&rotation, 1).await.unwrap();
    let told = |class| matches!(class, Class::Observed(Observed { report: Some(_), .. }));
    parties.into_iter().map(|party| (party.name, told(party.class))).collect()
}

fn stated(state: &str) -> Statement {
    let signed: serde_json::Value = serde_json::from_str(state).unwrap();
    serde_json::from_slice(&STANDARD.decode(signed["statement"].as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_a_later_version_states_is_read_as_far_as_it_is_known() {
    let (mut east, mut west) = two().await;
    east.ca.start_rotation(Kind::Root).await.unwrap();
    west.ca.start_rotation(Kind::Root).await.unwrap();
    for whole in [&mut east, &mut west] {
        for _ in 0..12 {
            whole.look().await;
        }
    }
    let mut later = serde_json::to_value(stated(&west.ca.exported_state().unwrap())).unwrap();
    assert!(later["rotation"].is_object(), "{later}");
    later["since"] = "a later version".into();
    later["rotation"]["waits"] = serde_json::json!(["n1"]);
    let state = west.ca.signed_state(later.to_string().into_bytes()).await.unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&state).unwrap();
    state["note"] = 7.into();
    assert!(east.ca.import_state(state.to_string().as_bytes()).await.is_ok());
    assert_eq!(heard(&east).await, [("the cluster west".to_owned(), true)]);
    for whole in [east, west] {
        whole.ca.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn how_a_rotation_of_the_root_ended_is_stated_whatever_is_rotated_after_it() {
    let mut whole = Whole::open(west).await;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let (a, b) = (Anchor::from(Fingerprint::of(b"A")), Anchor::from(Fingerprint::of(b"B")));
    let over = Rotation::new(Kind::Root, a.clone(), Some(b.clone()), 7, now).entering(Phase::Done, now);
    whole.ca.0.records.put_rotation(Expected::Absent, &over).await.unwrap();
    assert_eq!(whole.look().await, Looked::Nothing);
    let said = |whole: &Whole| {
        let statement = stated(&whole.ca.exported_state().unwrap());
        let progress = statement.rotation.unwrap();
        assert_eq!(
            (progress.old, progress.new, progress.phase, progress.settled),
            (a.clone(), Some(b.clone()), Phase::Done, true)
        );
        statement.step
    };
    let step = said(&whole);
    for kind in [Kind::Jwt, Kind::Intermediate] {
        whole.ca.start_rotation(kind).await.unwrap();
        while !whole.rotation().await.is_over() {
            whole.look().await;
            assert_eq!(said(&whole), step, "{kind}");
        }
        whole.open_again().await;
        whole.look().await;
        assert_eq!(said(&whole), step, "after {kind}");
    }
    whole.ca.replace_stolen().await.unwrap();
    whole.look().await;
    assert_eq!(said(&whole), step);
    whole.ca.close().await;
}

fn made(whole: &Whole) -> SystemTime {
    crate::issue::whole_seconds((whole.ca.0.clock)())
}

#[tokio::test(start_paused = true)]
async fn a_cluster_whose_store_was_lost_is_heard_though_it_counts_from_the_beginning() {
    let (east, west) = two().await;
    let takes = async |step| {
        let state = west.ca.state(None, step, made(&west), BTreeMap::new()).await.unwrap();
        east.ca.import_state(state.as_bytes()).await.unwrap().1
    };
    assert!(takes(40).await && takes(41).await);
    assert!(!takes(40).await, "of one epoch nothing older counts");
    let records = &west.ca.0.records;
    let found = records.get::<serde_json::Value>(family::ROTATION, "epoch").await.unwrap().unwrap();
    records.delete(family::ROTATION, "epoch", found.revision).await.unwrap();
    west.set_clock(100);
    assert!(takes(1).await && takes(2).await);
    assert!(!takes(1).await);
    east.ca.close().await;
    west.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_revoked_intermediate_has_stated_does_not_count() {
    let (east, west) = two().await;
    let by_the_first = async |step| west.ca.state(None, step, made(&west), BTreeMap::new()).await.unwrap();
    let (before, after) = (by_the_first(40).await, by_the_first(50).await);
    assert!(east.ca.import_state(before.as_bytes()).await.unwrap().1);
    assert_eq!(heard(&east).await, [("the cluster west".to_owned(), true)]);
    let first = west.ca.fingerprints();
    let next = west.ca.make_intermediate(first.root.fingerprint).await.unwrap().fingerprint;
    west.ca.activate(next).await.unwrap();
    let first = first.intermediate.fingerprint;
    west.ca
        .revoke(Subject::Intermediate { print: first, force: false }, RevocationReason::KeyCompromise, "a test")
        .await
        .unwrap();
    let lists = west.ca.follow_revocations().borrow().signed.clone();
    east.ca.import_revocations(lists, false).await.unwrap();

    assert_eq!(heard(&east).await, [("the cluster west".to_owned(), false)], "it has said nothing that counts");
    let refused = east.ca.import_state(after.as_bytes()).await.unwrap_err().to_string();
    assert!(refused.contains("revoked") && refused.contains(&first.to_string()), "{refused}");
    // What it states by the next one counts, whatever the thief has claimed before.
    let state = west.ca.state(None, 3, made(&west), BTreeMap::new()).await.unwrap();
    assert!(east.ca.import_state(state.as_bytes()).await.unwrap().1);
    assert_eq!(heard(&east).await, [("the cluster west".to_owned(), true)]);
    east.ca.close().await;
    west.ca.close().await;
}

fn west_alone(config: &mut crate::config::Config) {
    config.cluster = "west".into();
}

#[test]
fn what_a_cluster_states_counts_for_the_same_rotation_and_as_far_as_it_says() {
    let (a, b) = (Anchor::new("A"), Anchor::new("B"));
    let ours =
        |phase| Rotation { phase, ..Rotation::new(Kind::Root, a.clone(), Some(b.clone()), 7, SystemTime::UNIX_EPOCH) };
    let stated = |phase, settled, new: &Anchor, signing: &Anchor| Statement {
        trust_domain: "td".into(),
        cluster: "west".into(),
        made: SystemTime::UNIX_EPOCH,
        epoch: 0,
        step: 1,
        signing: signing.clone(),
        rotation: Some(Progress {
            old: a.clone(),
            new: Some(new.clone()),
            back: false,
            phase,
            settled,
            able: phase > Phase::Prepare,
        }),
        heard: heard_of_us(ours(phase).turned),
    };
    use Phase::{Distribute, Done, Reissue, Retire, Switch};
    // What it states; then, for our phase, the sequence (9 is ours), whether it counts as reissued, and what it signs under.
    let table = [
        (Distribute, false, Distribute, 0, false),
        (Distribute, true, Distribute, 9, false),
        (Switch, false, Distribute, 9, false),
        (Reissue, false, Reissue, 9, false),
        (Reissue, true, Reissue, 9, true),
        (Retire, false, Reissue, 9, true),
        (Retire, false, Retire, 0, true),
        (Retire, true, Retire, 9, true),
        (Done, true, Retire, 9, true),
    ];
    for (phase, settled, our, sequence, reissued) in table {
        let signing = if phase >= Switch { &b } else { &a };
        let told: Report = report(&stated(phase, settled, &b, signing), &ours(our), 9, US);
        let done = told.leaves.is_empty() && told.round >= ours(our).step;
        assert_eq!((told.sequence, done), (sequence, reissued), "{phase}, settled: {settled}, while we are in {our}");
        assert_eq!(told.signing.as_ref(), Some(signing));
        // Of another rotation nothing counts.
        let other = report(&stated(phase, settled, &Anchor::new("C"), signing), &ours(our), 9, US);
        assert_eq!((other.sequence, other.leaves.len(), other.able.len()), (0, 1, 0));
        // Nor on the way back, while it goes on.
        let back = report(&stated(phase, settled, &b, signing), &Rotation { back: true, ..ours(our) }, 9, US);
        assert_eq!((back.sequence, back.leaves.len()), (0, 1));
    }
}

/// The one that waits, whichever it is.
const US: Us<'_> = Us { cluster: "we", epoch: 1 };

fn heard_of_us(step: u64) -> BTreeMap<String, Place> {
    [(US.cluster.to_owned(), Place { epoch: US.epoch, step })].into()
}

#[test]
fn what_is_stated_by_one_who_has_not_heard_of_ours_does_not_count() {
    let (a, b) = (Anchor::new("A"), Anchor::new("B"));
    let begun = Rotation::new(Kind::Root, a.clone(), Some(b.clone()), 7, NOW).entering(Phase::Distribute, NOW);
    let back = begun.aborted(true, NOW).unwrap();
    let stated = |rotation: Option<Progress>, signing: &Anchor, heard| Statement {
        trust_domain: "td".into(),
        cluster: "west".into(),
        made: NOW,
        epoch: 0,
        step: 1,
        signing: signing.clone(),
        rotation,
        heard,
    };
    let far = |rotation: &Rotation, phase| Some(Progress::over(&Rotation { phase, ..rotation.clone() }));
    let counts = |stated: &Statement, ours: &Rotation| {
        let told = report(stated, ours, 9, US);
        told.sequence == 9
            && told.leaves.is_empty()
            && told.round == ours.step
            && told.able == ours.to().cloned().into_iter().collect()
    };
    // Of before it began, or before it turned back, or of a store that was lost since: a rotation to the same root was given up before.
    for (ours, far) in [(&begun, far(&begun, Phase::Done)), (&back, far(&back, Phase::Done))] {
        let signing = ours.to().unwrap();
        assert!(counts(&stated(far.clone(), signing, heard_of_us(ours.turned)), ours));
        assert!(!counts(&stated(far.clone(), signing, heard_of_us(ours.turned - 1)), ours));
        assert!(!counts(&stated(far.clone(), signing, BTreeMap::new()), ours));
        let lost = [(US.cluster.to_owned(), Place { epoch: 0, step: 99 })].into();
        assert!(!counts(&stated(far, signing, lost), ours));
    }
    // One that rotates nothing, or something else that is over, is where we go back to, and not where we go to.
    let another = Rotation::new(Kind::Root, Anchor::new("Z"), Some(a.clone()), 3, NOW);
    for rests in [None, far(&another, Phase::Done)] {
        assert!(counts(&stated(rests.clone(), &a, heard_of_us(back.turned)), &back));
        assert!(!counts(&stated(rests.clone(), &a, heard_of_us(back.turned - 1)), &back), "it may begin yet");
        assert!(!counts(&stated(rests.clone(), &b, heard_of_us(back.turned)), &back));
        assert!(!counts(&stated(rests, &a, heard_of_us(begun.turned)), &begun));
    }
    assert!(!counts(&stated(far(&begun, Phase::Distribute), &a, heard_of_us(back.turned)), &back), "it goes on");
}

#[test]
fn a_clock_that_was_ahead_for_a_moment_silences_no_cluster() {
    let at = |second: u64| NOW + Duration::from_secs(1_000_000 + second);
    let day = 24 * 3600;
    assert_eq!(Statement::next_made(None, at(5)), at(5));
    assert_eq!(Statement::next_made(Some(at(4)), at(5)), at(5));
    assert_eq!(Statement::next_made(Some(at(5)), at(5)), at(6), "two of one second");
    assert_eq!(Statement::next_made(Some(at(5)), at(0)), at(6), "a clock that is set back by little");
    // Nobody has taken what was made a day ahead, nor would take the next one.
    assert_eq!(Statement::next_made(Some(at(day)), at(5)), at(5));
    let stated = |made| Statement {
        trust_domain: "td".into(),
        cluster: "west".into(),
        made,
        epoch: 1,
        step: 3,
        signing: Anchor::new("A"),
        rotation: None,
        heard: BTreeMap::new(),
    };
    let (ahead, right) = (stated(at(day)), stated(at(5)));
    assert!(ahead.is_of_the_future(at(5)) && !ahead.is_of_the_future(at(day)));
    // But one whose own clock was ahead, too; it hears the next one all the same, once its clock is right.
    assert!(right.replaces(&ahead, at(6)));
    assert!(!right.replaces(&ahead, at(day)), "of two that are not of the future the newer one counts");
}

/// A cluster that exchanges a root which is kept offline, as plain data: its CA, and federated trust domains that never say anything.
struct Side {
    rotation: Rotation,
    trust: Trust,
    stated: Option<Statement>,
    waits: Vec<Wait>,
}

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const LIMITS: Limits = Limits {
    silence: Duration::from_secs(200),
    settle: Duration::from_millis(500),
    longest_life: Duration::from_secs(4000),
};

impl Side {
    fn new() -> Self {
        let (a, b) = (Anchor::new("A"), Anchor::new("B"));
        let trust = Trust { step: 0, sequence: 1, trusted: [a.clone()].into(), signing: a.clone() };
        let rotation = Rotation::new(Kind::Root, a, Some(b), 0, NOW).bringing("B".into());
        Self { rotation, trust, stated: None, waits: Vec::new() }
    }

    fn look(&mut self, other: Option<&Statement>) {
        // What is plugged in signs, and nothing else can.
        let able: BTreeSet<_> = [Anchor::new("A"), self.trust.signing.clone()].into();
        let own = Report {
            sequence: self.trust.sequence,
            round: self.rotation.step,
            signing: Some(self.trust.signing.clone()),
            able: able.clone(),
            ..Report::default()
        };
        let said = other.map(|other| report(other, &self.rotation, self.trust.sequence, US));
        let party = |name: &str, role, report| Party {
            name: name.into(),
            class: Class::Observed(Observed { role, silent: Duration::ZERO, report }),
        };
        let federated = Timed { bundle: Duration::from_secs(30), leaf: Duration::ZERO };
        let seen = Observations {
            trust: self.trust.clone(),
            made: None,
            person: false,
            able,
            known: BTreeSet::new(),
            parties: vec![
                party("the CA", Role::Replica, Some(own)),
                party("the other cluster", Role::Cluster, said),
                Party { name: "federated".into(), class: Class::Timed(federated) },
            ],
            elapsed: Duration::from_secs(10),
        };
        let step = self.rotation.step(&seen, &LIMITS, NOW);
        self.stated = Some(Statement {
            trust_domain: "td".into(),
            cluster: "another".into(),
            made: NOW,
            epoch: 1,
            step: self.rotation.step,
            signing: self.trust.signing.clone(),
            rotation: Some(Progress {
                old: self.rotation.old.clone(),
                new: self.rotation.new.clone(),
                back: false,
                phase: self.rotation.phase,
                settled: self.rotation.is_settled_at_home(&seen, &LIMITS),
                able: self.rotation.to().is_some_and(|to| seen.able.contains(to)),
            }),
            heard: other.map_or_else(BTreeMap::new, |other| heard_of_us(other.step)),
        });
        for action in step.actions {
            match action {
                Action::Settle { step, trusted, dropped, signing } => {
                    let after = self.trust.trusted.union(&trusted).filter(|one| !dropped.contains(one)).cloned();
                    let after: BTreeSet<_> = after.collect();
                    let sequence = self.trust.sequence + u64::from(after != self.trust.trusted);
                    self.trust = Trust { step, sequence, trusted: after, signing };
                }
                // It is nowhere here.
                Action::Forget(_) => {}
                Action::Make => panic!("a person has made it"),
            }
        }
        self.waits = step.waiting;
        self.rotation = step.next;
    }

    fn asks(&self) -> bool {
        self.waits.iter().any(|wait| wait.standing == Standing::Person)
    }
}

#[test]
fn clusters_that_wait_for_each_other_go_on_together_to_the_end() {
    let (mut east, mut west) = (Side::new(), Side::new());
    let mut asked = None;
    for turn in 0.. {
        assert!(turn < 200, "they wait for each other for ever: {:?} {:?}", east.waits, west.waits);
        // What one states arrives a while later.
        let (of_east, of_west) = (east.stated.clone(), west.stated.clone());
        east.look(of_west.as_ref());
        west.look(of_east.as_ref());
        for (one, other) in [(&east.trust, &west.trust), (&west.trust, &east.trust)] {
            assert!(one.trusted.contains(&other.signing), "{turn}: {one:?} {other:?}");
        }
        if east.rotation.is_over() && west.rotation.is_over() {
            break;
        }
        // A person comes to the one when both have asked, and to the other later.
        if asked.is_none() && east.asks() && west.asks() {
            asked = Some(turn);
            east.trust.signing = Anchor::new("B");
        }
        if asked.is_some_and(|at| turn == at + 5) {
            assert_eq!(east.rotation.phase, Phase::Distribute, "it waits for the other's intermediate");
            west.trust.signing = Anchor::new("B");
        }
    }
    assert!(asked.is_some());
    for side in [east, west] {
        assert_eq!((side.trust.trusted, side.trust.signing.as_str()), (BTreeSet::from([Anchor::new("B")]), "B"));
    }
}
