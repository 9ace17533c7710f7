//! The machine by itself, and a whole fleet that follows it through crashes, delays, partitions and wrong clocks.

mod brought;
mod clusters;
mod fleet;
mod last_crl;
mod members;
mod neighbours;
mod observe;
mod plugged_again;
mod replicas;
mod table;
mod two;
mod whole;

use std::collections::BTreeSet;

use proptest::prelude::*;

use self::fleet::{Chaos, Fleet};
use super::{Anchor, Class, Kind, Phase, Standing};

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Root), Just(Kind::Root), Just(Kind::Intermediate), Just(Kind::Jwt)]
}

fn chaos() -> impl Strategy<Value = Chaos> {
    (0u32..15, 0u32..10, 0u32..20, 0u32..30, 0u32..5, 0u32..3)
        .prop_map(|(cuts, crashes, late, clock, joins, leaves)| Chaos { cuts, crashes, late, clock, joins, leaves })
}

fn set(names: &[&str]) -> BTreeSet<Anchor> {
    names.iter().copied().map(Anchor::new).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_two_live_peers_verify_each_other_until_the_rotation_is_done(
        kind in kinds(), chaos in chaos(), seed: u64, disorder in 50u64..600
    ) {
        let mut fleet = Fleet::new(kind, seed);
        fleet.run(disorder, &chaos);
        fleet.calm_down();
        fleet.run_until_over(3000);
        prop_assert_eq!(fleet.in_use(), "B");
        prop_assert_eq!(fleet.known(), set(&["B"]));
    }

    #[test]
    fn an_abort_at_any_moment_leads_back_to_what_was(
        kind in kinds(), chaos in chaos(), seed: u64, before in 0u64..400, disorder in 50u64..400
    ) {
        let mut fleet = Fleet::new(kind, seed);
        fleet.run(before, &chaos);
        let aborted = fleet.abort();
        fleet.run(disorder, &chaos);
        fleet.calm_down();
        fleet.run_until_over(3000);
        let expected = if aborted { "A" } else { "B" };
        prop_assert_eq!(fleet.in_use(), expected);
        prop_assert_eq!(fleet.known(), set(&[expected]));
    }

    #[test]
    fn two_rotations_and_an_abort_between_them_disturb_each_other_never(chaos in chaos(), seed: u64, before in 0u64..300) {
        let mut fleet = Fleet::new(Kind::Root, seed);
        fleet.run(before, &chaos);
        fleet.abort();
        fleet.calm_down();
        fleet.run_until_over(3000);
        let left = fleet.in_use();
        fleet.begin_another("C");
        fleet.run(before, &chaos);
        fleet.calm_down();
        fleet.run_until_over(3000);
        prop_assert_eq!(fleet.in_use(), "C");
        prop_assert_eq!(fleet.known(), set(&["C"]), "left {}", left);
    }

    #[test]
    fn nobody_who_has_not_adopted_is_passed_by_without_force(seed: u64, chaos in chaos(), victim in 0usize..4) {
        let mut fleet = Fleet::new(Kind::Root, seed);
        // Cut off before it could hear of anything, for longer than any of its certificates lives.
        fleet.isolate(victim);
        fleet.run(400, &Chaos { leaves: 0, ..chaos });
        fleet.calm_down_but_for_the_isolated();
        fleet.run_on(600);
        prop_assert_eq!(fleet.phase(), Phase::Distribute);
        let named = fleet.waiting().swap_remove(0);
        if victim < 3 {
            prop_assert!(matches!(named.standing, Standing::Unreachable(_)), "{:?}", named);
            prop_assert_eq!(fleet.waiting().len(), 1);
        } else {
            prop_assert_eq!(&named.party, "west", "the other cluster speaks for its nodes");
        }

        // By force it goes on, and only the one that was named is broken; the check of the fleet leaves it out from here.
        fleet.force(&named.party);
        fleet.run_on(600);
        if victim == 3 {
            prop_assert_eq!(fleet.phase(), Phase::Reissue, "whoever signs is waited for, however much time passes");
            fleet.force(&named.party);
            fleet.run_on(600);
        }
        prop_assert_eq!(fleet.phase(), Phase::Retire, "there it is waited for once more");
        prop_assert_eq!(fleet.signs_by(), "B");
    }
}

#[test]
fn a_rotation_of_a_fleet_that_listens_takes_as_long_as_its_timed_parties() {
    for (kind, timed) in [(Kind::Root, true), (Kind::Root, false), (Kind::Intermediate, false)] {
        let mut fleet = Fleet::new(kind, 7);
        if !timed {
            fleet.without_timed();
        }
        let took = fleet.run_until_over(2000);
        let fastest = if timed { 3 * fleet::LIFE } else { 0 };
        assert!((fastest..fastest + 60).contains(&took), "{kind} took {took}");
    }
}

#[test]
fn a_wait_is_told_with_its_party_and_its_reason() {
    let mut fleet = Fleet::new(Kind::Root, 3);
    fleet.isolate(0);
    fleet.run_on(30);
    let waits = fleet.waiting();
    assert!(waits.iter().any(|wait| matches!(wait.standing, Standing::Unreachable(_))), "{waits:?}");
    assert!(waits.iter().any(|wait| matches!(wait.standing, Standing::Timed(_))), "{waits:?}");
    assert!(fleet.parties().iter().any(|party| matches!(party.class, Class::Timed(_))));
}
