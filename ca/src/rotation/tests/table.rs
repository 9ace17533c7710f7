//! What each phase is, as a table that people read.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use super::super::{
    Anchor, Class, Kind, Limits, NotAborted, Observations, Observed, Party, Phase, Report, Role, Rotation, Standing,
    Timed, Trust, driver::apart,
};

fn at(kind: Kind, phase: Phase, back: bool) -> Rotation {
    let begun = Rotation::new(kind, Anchor::new("A"), Some(Anchor::new("B")), 0, SystemTime::UNIX_EPOCH);
    Rotation { phase, back, ..begun }
}

fn names(set: &BTreeSet<Anchor>) -> String {
    set.iter().map(Anchor::as_str).collect()
}

#[test]
fn each_phase_says_how_the_world_should_be() {
    use Phase::{Distribute, Forget, Prepare, Reissue, Retire, Switch};
    let table = [
        // phase, then trusted, not trusted, signing: on the way there, and on the way back
        (Prepare, "A", "B", "A", "A", "B", "A"),
        (Distribute, "AB", "", "A", "AB", "", "B"),
        (Switch, "AB", "", "B", "AB", "", "A"),
        (Reissue, "AB", "", "B", "AB", "", "A"),
        (Retire, "B", "A", "B", "A", "B", "A"),
        (Forget, "B", "A", "B", "A", "B", "A"),
    ];
    for (phase, trusted, dropped, signing, trusted_back, dropped_back, signing_back) in table {
        for (back, expected) in
            [(false, (trusted, dropped, signing)), (true, (trusted_back, dropped_back, signing_back))]
        {
            let rotation = at(Kind::Root, phase, back);
            let (trusted, dropped) = rotation.trusted();
            let found = (names(&trusted), names(&dropped), rotation.signing().to_string());
            assert_eq!((found.0.as_str(), found.1.as_str(), found.2.as_str()), expected, "{phase}, back: {back}");
        }
    }
}

#[test]
fn the_way_back_begins_where_the_present_phase_allows() {
    let after =
        |phase| at(Kind::Root, phase, false).aborted(false, SystemTime::UNIX_EPOCH).map(|back| (back.phase, back.back));
    assert_eq!(after(Phase::Prepare), Ok((Phase::Forget, true)));
    assert_eq!(after(Phase::Distribute), Ok((Phase::Retire, true)));
    let brought = at(Kind::Root, Phase::Distribute, false).bringing("PEM".into());
    let brought = brought.aborted(false, SystemTime::UNIX_EPOCH).map(|back| back.phase);
    assert_eq!(brought, Ok(Phase::Switch), "what is plugged in may have signed");
    assert_eq!(after(Phase::Switch), Ok((Phase::Switch, true)));
    assert_eq!(after(Phase::Reissue), Ok((Phase::Switch, true)));
    assert_eq!(after(Phase::Retire), Ok((Phase::Distribute, true)));
    assert_eq!(after(Phase::Forget), Err(NotAborted::TooLate));
    assert_eq!(after(Phase::Done), Err(NotAborted::TooLate));
    let again = at(Kind::Root, Phase::Switch, true).aborted(false, SystemTime::UNIX_EPOCH);
    assert_eq!(again, Err(NotAborted::Already));
    // Other clusters may be further than they are known to be: the new root may sign there, and the old one be trusted no more.
    let beside_others =
        |phase| at(Kind::Root, phase, false).aborted(true, SystemTime::UNIX_EPOCH).map(|back| back.phase);
    assert_eq!(beside_others(Phase::Distribute), Ok(Phase::Switch));
    assert_eq!(beside_others(Phase::Reissue), Ok(Phase::Distribute));
    let intermediate = at(Kind::Intermediate, Phase::Reissue, false).aborted(true, SystemTime::UNIX_EPOCH);
    assert_eq!(intermediate.map(|back| back.phase), Ok(Phase::Switch), "no other cluster has it");
    // What a person brings may have signed before the switch.
    let brought = at(Kind::Root, Phase::Distribute, false).bringing("PEM".into());
    let mut back = brought.aborted(false, SystemTime::UNIX_EPOCH).unwrap();
    let mut phases = vec![back.phase];
    while !back.is_over() {
        back = back.entering(back.following(), SystemTime::UNIX_EPOCH);
        phases.push(back.phase);
    }
    assert_eq!(phases, [Phase::Switch, Phase::Reissue, Phase::Retire, Phase::Forget, Phase::Done]);
}

#[test]
fn a_rotation_is_left_as_it_is_from_every_phase_but_the_end() {
    use Phase::{Forget, Prepare, Reissue, Switch};
    for (phase, back) in [(Prepare, false), (Switch, false), (Reissue, true), (Forget, true)] {
        let rotation = at(Kind::Intermediate, phase, back);
        let left = rotation.left_as_it_is(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(
            (left.phase, left.back, left.left_as_it_is, left.step),
            (Phase::Done, true, true, rotation.step + 1)
        );
        assert_eq!(left.left_as_it_is(SystemTime::UNIX_EPOCH), Err(NotAborted::TooLate));
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// The world in the middle of a reissue of root A to root B: one of each class, whose certificates are all under A.
fn reissuing(rotation: &Rotation) -> Observations {
    let report = |round| Report {
        round,
        signing: rotation.from().cloned(),
        leaves: rotation.from().into_iter().map(|from| (from.clone(), 1)).collect(),
        ..Report::default()
    };
    let observed = |name: &str, role, report| {
        let class = Class::Observed(Observed { role, silent: Duration::ZERO, report });
        Party { name: name.into(), class }
    };
    let parties = vec![
        observed("node", Role::Node, Some(report(9))),
        observed("deaf node", Role::Node, Some(report(0))),
        observed("mute node", Role::Node, None),
        observed("replica", Role::Replica, Some(report(9))),
        observed("cluster", Role::Cluster, Some(report(0))),
        observed("mute cluster", Role::Cluster, None),
        Party { name: "client".into(), class: Class::Timed(Timed { bundle: HOUR, leaf: HOUR * 2 }) },
    ];
    let both: BTreeSet<_> = rotation.from().into_iter().chain(rotation.to()).cloned().collect();
    let signing = rotation.to().cloned().unwrap();
    let trust = Trust { step: rotation.step, sequence: 2, trusted: both.clone(), signing };
    Observations { trust, made: None, person: false, able: both.clone(), known: both, parties, elapsed: Duration::ZERO }
}

#[test]
fn the_longest_life_is_an_end_for_nodes_and_never_for_whoever_signs() {
    let limits = Limits { silence: HOUR, settle: Duration::ZERO, longest_life: HOUR * 4 };
    let waits = |waited: Duration, forced: &[&str]| {
        let forced = forced.iter().map(|name| (*name).to_owned()).collect();
        let rotation = Rotation { waited, forced, ..at(Kind::Root, Phase::Reissue, false) };
        let step = rotation.step(&reissuing(&rotation), &limits, SystemTime::UNIX_EPOCH);
        assert!(step.waiting.iter().all(|wait| wait.standing != Standing::Person));
        let names = step.waiting.into_iter().map(|wait| wait.party).collect::<Vec<_>>().join(", ");
        (names, step.next.phase)
    };
    let signing = "replica, cluster, mute cluster";
    let all = format!("node, deaf node, mute node, {signing}, client");
    assert_eq!(waits(Duration::ZERO, &[]), (all, Phase::Reissue));
    let without_client = format!("node, deaf node, mute node, {signing}");
    assert_eq!(waits(HOUR * 4 - Duration::from_secs(1), &[]), (without_client, Phase::Reissue));
    for hours in [4, 400] {
        assert_eq!(waits(HOUR * hours, &[]), (signing.to_owned(), Phase::Reissue), "{hours} h");
    }
    let forced = waits(HOUR * 4, &["replica", "cluster", "mute cluster"]);
    assert_eq!(forced, (String::new(), Phase::Retire), "a person goes past them");
}

#[test]
fn every_phase_raises_the_step_and_forgets_what_was_forced() {
    let mut rotation = at(Kind::Root, Phase::Prepare, false);
    let mut phases = vec![rotation.phase];
    while !rotation.is_over() {
        rotation.forced.insert("somebody".into());
        let next = rotation.entering(rotation.following(), SystemTime::UNIX_EPOCH);
        assert_eq!((next.step, next.forced.len()), (rotation.step + 1, 0));
        rotation = next;
        phases.push(rotation.phase);
    }
    use Phase::{Distribute, Done, Forget, Prepare, Reissue, Retire, Switch};
    assert_eq!(phases, [Prepare, Distribute, Switch, Reissue, Retire, Forget, Done]);
}

#[test]
fn looks_at_a_large_fleet_leave_the_time_to_others() {
    let millis = Duration::from_millis;
    for (cost, expected) in [(0, 50), (1, 50), (10, 200), (150, 3_000), (900, 10_000)] {
        assert_eq!(apart(millis(cost)), millis(expected), "{cost}");
    }
}

#[test]
fn a_rotation_reads_back() {
    let mut rotation = at(Kind::Jwt, Phase::Reissue, true);
    rotation.waited = Duration::from_millis(1234);
    rotation.forced.insert("node 1".into());
    let text = serde_json::to_string(&rotation).unwrap();
    assert_eq!(serde_json::from_str::<Rotation>(&text).unwrap(), rotation);
}
