//! The fleet: everybody in it, the store, and a driver that can be killed. One tick is one second.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::{
    super::{Action, Anchor, Kind, Limits, Phase, Rotation, Trust, Wait},
    members::{Client, Federated, Leaf, Node, Signer},
    neighbours::Neighbour,
};

mod drive;
mod hands;
mod life;
mod truth;

/// How long everything that is issued lives.
pub(super) const LIFE: u64 = 60;
const HINT: u64 = 30;
const SILENCE: u64 = 20;
/// An agent's proxies are back so long after it started.
const GRACE: u64 = 8;
/// The longest that an answer takes.
const ANSWER: u64 = 6;

/// How much goes wrong, in thousandths per tick and thing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chaos {
    pub(super) cuts: u32,
    pub(super) crashes: u32,
    pub(super) late: u32,
    pub(super) clock: u32,
    pub(super) joins: u32,
    pub(super) leaves: u32,
}

pub(super) const CALM: Chaos = Chaos { cuts: 0, crashes: 0, late: 0, clock: 0, joins: 0, leaves: 0 };

pub(super) struct Fleet {
    kind: Kind,
    chance: u64,
    pub(super) now: u64,
    /// How wrong the CA's clock is.
    skew: i64,
    // The store.
    pub(super) trust: Trust,
    bundles: BTreeMap<u64, BTreeSet<Anchor>>,
    pub(super) record: Rotation,
    revision: u64,
    // The files.
    known: BTreeSet<Anchor>,
    brings: Anchor,
    // Everybody.
    signers: Vec<Signer>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    federated: Vec<Federated>,
    born: usize,
    isolated: Option<usize>,
    // The driver: the record that it has in memory, of which revision, and when it looked.
    driver: Option<(u64, Rotation, u64)>,
    late: Vec<(u64, Action)>,
    /// What another driver has decided and not written yet.
    slow: Vec<(u64, u64, Rotation, Vec<Action>)>,
    /// The other cluster under the root, where it is one of two.
    pub(super) neighbour: Option<Neighbour>,
}

impl Fleet {
    pub(super) fn new(kind: Kind, seed: u64) -> Self {
        let a = Anchor::new("A");
        let trust = Trust { step: 4, sequence: 1, trusted: [a.clone()].into(), signing: a.clone() };
        let signer = |name: &str, cluster| Signer {
            name: name.into(),
            cluster,
            cut: false,
            view: trust.clone(),
            round: 0,
            leaf: Leaf { under: a.clone(), expires: LIFE },
            said: None,
        };
        let mut fleet = Self {
            kind,
            chance: seed,
            now: 0,
            skew: 0,
            bundles: [(1, trust.trusted.clone())].into(),
            record: Rotation::new(kind, a.clone(), None, trust.step, SystemTime::UNIX_EPOCH),
            revision: 1,
            known: [a.clone()].into(),
            brings: Anchor::new("B"),
            signers: vec![signer("replica 0", None), signer("replica 1", None), signer("west", Some(2))],
            nodes: Vec::new(),
            clients: vec![
                Client { sequence: 1, leaf: Leaf { under: a.clone(), expires: LIFE }, renews: 10 },
                Client { sequence: 1, leaf: Leaf { under: a.clone(), expires: LIFE }, renews: LIFE - 1 },
            ],
            federated: vec![Federated { sequence: 1, polls: 5 }],
            trust,
            born: 0,
            isolated: None,
            driver: None,
            late: Vec::new(),
            slow: Vec::new(),
            neighbour: None,
        };
        for cluster in [None, None, None, Some(2)] {
            fleet.join(cluster, true);
        }
        fleet
    }

    /// One of two clusters, which speak for themselves. It rotates nothing yet.
    pub(super) fn beside(neighbour: Neighbour, seed: u64) -> Self {
        let mut fleet = Self::new(Kind::Root, seed);
        fleet.signers.retain(|signer| signer.cluster.is_none());
        fleet.nodes.retain(|node| node.cluster.is_none());
        if neighbour.offline {
            fleet.known.clear();
        }
        fleet.record = fleet.record.entering(Phase::Done, SystemTime::UNIX_EPOCH);
        fleet.neighbour = Some(neighbour);
        fleet
    }

    // What a test does and asks.

    pub(super) fn run(&mut self, ticks: u64, chaos: &Chaos) {
        for _ in 0..ticks {
            self.tick(chaos);
        }
    }

    pub(super) fn run_on(&mut self, ticks: u64) {
        self.run(ticks, &CALM);
    }

    pub(super) fn run_until_over(&mut self, at_most: u64) -> u64 {
        let begun = self.now;
        while !self.record.is_over() {
            assert!(self.now - begun < at_most, "it waits for ever: {:?} {:?}", self.record, self.waiting());
            self.tick(&CALM);
        }
        self.now - begun
    }

    pub(super) fn calm_down(&mut self) {
        if self.neighbour.is_some() {
            self.skew = 0;
        }
        self.isolated = None;
        self.heal();
    }

    pub(super) fn calm_down_but_for_the_isolated(&mut self) {
        self.heal();
    }

    fn heal(&mut self) {
        self.signers.iter_mut().for_each(|signer| signer.cut = false);
        let isolated = self.isolated;
        self.nodes.iter_mut().enumerate().for_each(|(index, node)| node.cut = Some(index) == isolated);
    }

    pub(super) fn isolate(&mut self, node: usize) {
        self.isolated = Some(node);
        self.nodes[node].cut = true;
    }

    pub(super) fn abort(&mut self) -> bool {
        let Ok(next) = self.record.aborted(self.neighbour.is_some(), self.clock()) else { return false };
        self.write(next);
        true
    }

    pub(super) fn force(&mut self, party: &str) {
        let (next, broken) = self.record.forced(&[party.to_owned()].into(), &self.observe(), &limits()).unwrap();
        assert_eq!(broken.len(), 1);
        let isolated = self.isolated.unwrap();
        self.nodes[isolated].given_up = true;
        self.write(next);
    }

    pub(super) fn begin_another(&mut self, brings: &str) {
        self.record = Rotation::new(
            self.kind,
            self.trust.signing.clone(),
            None,
            self.record.step.max(self.trust.step),
            self.clock(),
        );
        self.revision += 1;
        self.brings = Anchor::new(brings);
    }

    pub(super) fn without_timed(&mut self) {
        self.clients.clear();
        self.federated.clear();
    }

    pub(super) fn offline(&self) -> bool {
        self.neighbour.as_ref().is_some_and(|neighbour| neighbour.offline)
    }

    pub(super) fn phase(&self) -> Phase {
        self.record.phase
    }

    pub(super) fn in_use(&self) -> String {
        if self.kind != Kind::Intermediate {
            assert_eq!(self.trust.trusted, [self.trust.signing.clone()].into(), "more is trusted than signs");
        }
        self.signs_by()
    }

    pub(super) fn signs_by(&self) -> String {
        self.trust.signing.to_string()
    }

    pub(super) fn known(&self) -> BTreeSet<Anchor> {
        self.known.clone()
    }

    pub(super) fn waiting(&self) -> Vec<Wait> {
        self.record.step(&self.observe(), &limits(), self.clock()).waiting
    }

    // Chance, and clocks.

    pub(super) fn random(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.random() % limit
    }

    pub(super) fn happens(&mut self, thousandths: u32) -> bool {
        self.below(1000) < u64::from(thousandths)
    }

    pub(super) fn clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs((1_000_000 + self.now).saturating_add_signed(self.skew))
    }

    // One second.

    pub(super) fn tick(&mut self, chaos: &Chaos) {
        self.now += 1;
        self.misfortune(chaos);
        self.signers_live();
        for index in 0..self.nodes.len() {
            self.node_lives(index, chaos);
        }
        self.timed_live();
        self.late_actions();
        self.look_at_what_is_plugged_in();
        self.drive(chaos);
        self.check();
    }
}

pub(super) fn limits() -> Limits {
    Limits {
        silence: Duration::from_secs(SILENCE),
        settle: Duration::from_secs(1),
        longest_life: Duration::from_secs(LIFE + ANSWER),
    }
}
