//! Two clusters under one root that exchange it, each by its own machine: what they state is lost, late, doubled and out of order,
//! their processes end, their operators come when they like; and whoever is alive in one verifies whoever is alive in the other.

use proptest::prelude::*;

use super::{
    super::{Phase, clusters::Statement},
    chaos,
    fleet::{CALM, Chaos, Fleet},
    neighbours::Neighbour,
    set,
};

/// What the operator of a cluster does, and when.
#[derive(Clone, Copy, Debug)]
struct Operator {
    begins: u64,
    /// When the intermediate is plugged in, whoever has asked for it by then.
    early: Option<u64>,
    /// How long it takes otherwise, from when it is asked for.
    comes: u64,
    aborts: Option<Abort>,
    /// How long before that the old set is plugged in again.
    goes_back: u64,
}

/// When an operator has had enough: so long after a phase was entered, or when the other one has been for so long.
#[derive(Clone, Copy, Debug)]
struct Abort {
    phase: Phase,
    after: u64,
    follows: u64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default)]
struct Did {
    begun: bool,
    asked: Option<u64>,
    /// When it came to the phase in which its operator aborts it.
    fed_up: Option<u64>,
    aborted: Option<bool>,
    at: u64,
}

struct Two {
    sides: [Fleet; 2],
    operators: [Operator; 2],
    did: [Did; 2],
    brings: &'static str,
    now: u64,
    /// Whether nothing of this one arrives at the other.
    cut: [bool; 2],
    letters: Vec<(u64, usize, Statement)>,
}

impl Two {
    /// `makes`: the root's key is in the first of both; else it is offline.
    fn new(makes: bool, operators: [Operator; 2], seed: u64) -> Self {
        let east = Fleet::beside(Neighbour::new(["east", "west"], !makes), seed);
        let west = Fleet::beside(Neighbour::new(["west", "east"], true), seed ^ 0x5eed);
        Self {
            sides: [east, west],
            operators,
            did: Default::default(),
            brings: "B",
            now: 0,
            cut: [false; 2],
            letters: Vec::new(),
        }
    }

    /// Each operator begins once more, some time from now on.
    fn again(&mut self, brings: &'static str, operators: [Operator; 2]) {
        self.brings = brings;
        self.did = Default::default();
        self.operators = operators.map(|operator| Operator {
            begins: self.now + operator.begins,
            early: operator.early.map(|at| self.now + at),
            ..operator
        });
    }

    fn run(&mut self, ticks: u64, chaos: &Chaos) {
        for _ in 0..ticks {
            self.tick(chaos);
        }
    }

    fn tick(&mut self, chaos: &Chaos) {
        self.now += 1;
        for side in 0..2 {
            self.operate(side);
            self.sides[side].tick(chaos);
        }
        self.post(chaos);
        for (one, other) in [(0, 1), (1, 0)] {
            self.sides[one].check_that_all_believe(&self.sides[other].live());
        }
    }

    fn post(&mut self, chaos: &Chaos) {
        for side in 0..2 {
            let fleet = &mut self.sides[side];
            if fleet.happens(chaos.cuts) {
                self.cut[side] ^= true;
            }
            for _ in 0..2 {
                let Some(statement) = fleet.stated().filter(|_| fleet.happens(200)) else { continue };
                if self.cut[side] || fleet.happens(chaos.late * 20) {
                    continue;
                }
                // Asked for over the network, or carried by hand.
                let late = if fleet.happens(chaos.late * 10) { 200 } else { 4 };
                self.letters.push((self.now + fleet.below(late), 1 - side, statement));
            }
        }
        let now = self.now;
        for (_, side, statement) in self.letters.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
            self.sides[side].hear(&statement);
        }
    }

    fn operate(&mut self, side: usize) {
        let (operator, now) = (self.operators[side], self.now);
        // Where the first one makes the root, its certificate is carried to the other.
        let there = side == 0 || self.sides[0].offline() || self.sides[0].has(self.brings);
        // Nobody begins what the other has given up.
        let there = there && self.did[1 - side].aborted != Some(true);
        let other = self.did[1 - side];
        let did = &mut self.did[side];
        let fleet = &mut self.sides[side];
        if !did.begun && now >= operator.begins && there {
            fleet.begin(self.brings);
            did.begun = true;
        }
        if !did.begun {
            return;
        }
        let aborts = operator.aborts.filter(|_| did.aborted.is_none()).and_then(|abort| {
            if did.fed_up.is_none() && fleet.phase() >= abort.phase {
                did.fed_up = Some(now);
            }
            let follows = (other.aborted == Some(true)).then_some(other.at + abort.follows);
            did.fed_up.map(|since| since + abort.after).into_iter().chain(follows).min()
        });
        let turns_back = did.aborted == Some(true) || aborts.is_some_and(|at| now + operator.goes_back >= at);
        if fleet.offline() && !turns_back {
            if did.asked.is_none() && fleet.asks_for_an_intermediate() {
                did.asked = Some(now);
            }
            let asked = did.asked.is_some_and(|asked| now >= asked + operator.comes);
            if asked || operator.early.is_some_and(|at| now >= at) {
                fleet.plug_in(self.brings);
            }
        }
        if fleet.offline() && turns_back && !(fleet.is_over() && fleet.signs_by() == self.brings) {
            fleet.plug_in("A");
        }
        if aborts.is_some_and(|at| now >= at) {
            (did.aborted, did.at) = (Some(fleet.abort()), now);
        }
    }

    /// Faults end, clocks are right, and each operator hears what the other has done.
    fn calm_down(&mut self) {
        self.cut = [false; 2];
        self.sides.iter_mut().for_each(Fleet::calm_down);
        for operator in &mut self.operators {
            operator.begins = operator.begins.min(self.now);
        }
    }

    /// Whether both have ended what they began, and will begin nothing.
    fn runs_to_the_end(&mut self, at_most: u64) -> bool {
        let given_up = |two: &Self| two.did.iter().any(|did| did.aborted == Some(true));
        let is_over =
            |two: &Self| (0..2).all(|side| (two.did[side].begun || given_up(two)) && two.sides[side].is_over());
        (0..at_most).any(|_| {
            self.tick(&CALM);
            is_over(self)
        })
    }

    /// Where both end once nothing goes wrong any more.
    fn end(&mut self) -> [String; 2] {
        self.calm_down();
        if !self.runs_to_the_end(1500) {
            let [east, west] = &self.sides;
            panic!("they wait for ever: {:?} {:?} {:?}", self.did, east.waiting(), west.waiting());
        }
        [0, 1].map(|side| self.sides[side].in_use())
    }

    /// The same, where an operator may have come too late to go back: then the other one cannot alone.
    fn end_of_an_abort(&mut self) -> Option<[String; 2]> {
        self.calm_down();
        for side in 0..2 {
            if self.did[side].begun && self.did[side].fed_up.is_none() {
                self.did[side].fed_up = Some(self.now);
            }
        }
        self.run(400, &CALM);
        let too_late = self.did.iter().any(|did| did.aborted == Some(false));
        if too_late { None } else { Some(self.end()) }
    }
}

fn operator() -> impl Strategy<Value = Operator> {
    let early = prop_oneof![Just(None), (0u64..400).prop_map(Some)];
    (0u64..200, early, 0u64..150, 0u64..8).prop_map(|(begins, early, comes, goes_back)| Operator {
        begins,
        early,
        comes,
        aborts: None,
        goes_back,
    })
}

fn aborts() -> impl Strategy<Value = Abort> {
    let phase = prop_oneof![
        Just(Phase::Prepare),
        Just(Phase::Distribute),
        Just(Phase::Distribute),
        Just(Phase::Switch),
        Just(Phase::Reissue),
        Just(Phase::Reissue),
        Just(Phase::Retire)
    ];
    (phase, 0u64..150, 0u64..300).prop_map(|(phase, after, follows)| Abort { phase, after, follows })
}

fn abort(operators: [Operator; 2], aborts: [Abort; 2]) -> [Operator; 2] {
    let [east, west] = operators;
    [Operator { aborts: Some(aborts[0]), ..east }, Operator { aborts: Some(aborts[1]), ..west }]
}

fn operators() -> impl Strategy<Value = [Operator; 2]> {
    [operator(), operator()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn peers_of_two_clusters_verify_each_other_until_both_rotations_are_done(
        makes: bool, operators in operators(), chaos in chaos(), seed: u64, disorder in 50u64..900
    ) {
        let mut two = Two::new(makes, operators, seed);
        two.run(disorder, &chaos);
        prop_assert_eq!(two.end(), ["B", "B"]);
        prop_assert_eq!(two.sides[0].known(), if makes { set(&["B"]) } else { set(&[]) });
    }

    #[test]
    fn peers_of_two_clusters_verify_each_other_when_both_go_back_at_any_moment(
        makes: bool, operators in operators(), aborts in [aborts(), aborts()], chaos in chaos(), seed: u64, disorder in 50u64..900
    ) {
        let mut two = Two::new(makes, abort(operators, aborts), seed);
        two.run(disorder, &chaos);
        if let Some(end) = two.end_of_an_abort() {
            prop_assert_eq!(end, ["A", "A"]);
        }
    }

    #[test]
    fn a_root_that_was_given_up_is_brought_once_more(
        makes: bool, first in operators(), aborts in [[aborts(), aborts()], [aborts(), aborts()]], second in operators(), gives_up: bool,
        chaos in chaos(), seed: u64, disorder in [50u64..400, 50u64..600]
    ) {
        let mut two = Two::new(makes, abort(first, aborts[0]), seed);
        two.run(disorder[0], &chaos);
        let Some(_) = two.end_of_an_abort() else { return Ok(()) };
        let brings = if makes { "C" } else { "B" };
        two.again(brings, if gives_up { abort(second, aborts[1]) } else { second });
        two.run(disorder[1], &chaos);
        if !gives_up {
            prop_assert_eq!(two.end(), [brings, brings]);
        } else if let Some(end) = two.end_of_an_abort() {
            prop_assert_eq!(end, ["A", "A"]);
        }
    }
}
