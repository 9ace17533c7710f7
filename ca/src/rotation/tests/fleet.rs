//! The fleet: everybody in it, the store, and a driver that can be killed. One tick is one second.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::{
    super::{
        Action, Anchor, Class, Kind, Limits, Observations, Observed, Party, Phase, Report, Role, Rotation, Timed,
        Trust, Wait,
    },
    members::{Client, Coming, Federated, Leaf, Node, Proxy, Signer},
};

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

const CALM: Chaos = Chaos { cuts: 0, crashes: 0, late: 0, clock: 0, joins: 0, leaves: 0 };

pub(super) struct Fleet {
    kind: Kind,
    chance: u64,
    now: u64,
    /// How wrong the CA's clock is.
    skew: i64,
    // The store.
    trust: Trust,
    bundles: BTreeMap<u64, BTreeSet<Anchor>>,
    record: Rotation,
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
        };
        for cluster in [None, None, None, Some(2)] {
            fleet.join(cluster, true);
        }
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
        let Ok(next) = self.record.aborted(self.clock()) else { return false };
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

    fn random(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random() % limit
    }

    fn happens(&mut self, thousandths: u32) -> bool {
        self.below(1000) < u64::from(thousandths)
    }

    fn clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs((1_000_000 + self.now).saturating_add_signed(self.skew))
    }

    // One second.

    fn tick(&mut self, chaos: &Chaos) {
        self.now += 1;
        self.misfortune(chaos);
        self.signers_live();
        for index in 0..self.nodes.len() {
            self.node_lives(index, chaos);
        }
        self.timed_live();
        self.late_actions();
        self.drive(chaos);
        self.check();
    }

    fn misfortune(&mut self, chaos: &Chaos) {
        for index in 0..self.signers.len() {
            if self.happens(chaos.cuts) {
                self.signers[index].cut ^= true;
            }
        }
        for index in 0..self.nodes.len() {
            if self.happens(chaos.cuts) && self.isolated != Some(index) {
                self.nodes[index].cut ^= true;
            }
            if self.happens(chaos.crashes) {
                let node = &mut self.nodes[index];
                node.coming.clear();
                // Certificates of workloads are in memory alone; the node's own and the bundle are on its disk.
                node.held.iter_mut().for_each(|held| *held = None);
                node.round = 0;
                node.quiet_until = self.now + GRACE;
            }
        }
        if self.happens(chaos.crashes) {
            self.driver = None;
        }
        if self.happens(chaos.clock) {
            self.skew = i64::try_from(self.below(200_000)).unwrap() - 100_000;
        }
        if self.happens(chaos.joins) && self.nodes.len() < 8 {
            let cluster = if self.happens(300) { Some(2) } else { None };
            self.join(cluster, false);
        }
        if self.happens(chaos.leaves) && self.nodes.len() > 2 && self.isolated.is_none() {
            let index = usize::try_from(self.below(self.nodes.len() as u64)).unwrap();
            self.nodes.remove(index);
        }
    }

    fn join(&mut self, cluster: Option<usize>, first: bool) {
        let Some(signer) = self.signer_for(cluster, true) else { return };
        let (sequence, under) = (self.signers[signer].view.sequence, self.signers[signer].view.signing.clone());
        let leaf = Leaf { under, expires: self.now + LIFE };
        let at = self.now + if first { 0 } else { self.below(ANSWER) };
        self.born += 1;
        self.nodes.push(Node {
            name: format!("node {}", self.born),
            cluster,
            cut: false,
            since: self.now,
            sequence: if first { sequence } else { 0 },
            round: 0,
            leaf: None,
            held: vec![None, None],
            proxies: vec![Proxy { sequence, leaf: None }, Proxy { sequence, leaf: None }],
            coming: vec![Coming { slot: None, asked: 0, at, leaf, sequence }],
            quiet_until: at + 1,
            given_up: false,
            said: None,
        });
    }

    /// A CA that answers a node of this cluster; one that reaches the store, where it must.
    fn signer_for(&mut self, cluster: Option<usize>, by_store: bool) -> Option<usize> {
        let all: Vec<_> = (0..self.signers.len())
            .filter(|index| self.signers[*index].cluster == cluster && !(by_store && self.signers[*index].cut))
            .collect();
        if all.is_empty() {
            return None;
        }
        let index = usize::try_from(self.below(all.len() as u64)).unwrap();
        Some(all[index])
    }

    fn signers_live(&mut self) {
        for index in 0..self.signers.len() {
            let hears = !self.signers[index].cut && !self.happens(300);
            let (now, trust, record) = (self.now, self.trust.clone(), self.record.clone());
            let members = self.members(index);
            let signer = &mut self.signers[index];
            if hears {
                signer.view = trust;
                if record.phase == Phase::Reissue {
                    signer.round = record.step;
                }
            }
            if signer.leaf.under != signer.view.signing || signer.leaf.expires < now + LIFE / 2 {
                signer.leaf = Leaf { under: signer.view.signing.clone(), expires: now + LIFE };
            }
            if !hears {
                continue;
            }
            let mut report = Report {
                sequence: signer.view.sequence,
                round: signer.round,
                leaves: [(signer.leaf.under.clone(), 1)].into(),
                signing: Some(signer.view.signing.clone()),
                able: self.known.clone(),
                behind: Vec::new(),
            };
            for member in members {
                let said = member.unwrap_or_default();
                report.sequence = report.sequence.min(said.sequence);
                report.round = report.round.min(said.round);
                for (anchor, count) in said.leaves {
                    *report.leaves.entry(anchor).or_insert(0) += count;
                }
            }
            signer.said = Some((now, report));
        }
    }

    /// What the nodes of another cluster have said to its CA.
    fn members(&self, signer: usize) -> Vec<Option<Report>> {
        match self.signers[signer].cluster {
            None => Vec::new(),
            cluster => {
                let nodes = self.nodes.iter().filter(|node| node.cluster == cluster);
                nodes.map(|node| node.said.as_ref().map(|(_, report)| report.clone())).collect()
            }
        }
    }

    fn node_lives(&mut self, index: usize, chaos: &Chaos) {
        let now = self.now;
        let arrived: Vec<_> = self.nodes[index].coming.extract_if(.., |coming| coming.at <= now).collect();
        let node = &mut self.nodes[index];
        for coming in arrived {
            // A bundle never goes back.
            node.sequence = node.sequence.max(coming.sequence);
            match coming.slot {
                None => node.leaf = Some(coming.leaf),
                Some(slot) => node.held[slot] = Some(coming.leaf),
            }
        }
        // The proxies take what the agent has, now or a little later; at the latest when they are waited for.
        for slot in 0..self.nodes[index].proxies.len() {
            if self.happens(300) && now + 1 < self.nodes[index].quiet_until {
                continue;
            }
            if !self.happens(300) || now + 1 == self.nodes[index].quiet_until {
                let node = &mut self.nodes[index];
                node.proxies[slot].sequence = node.sequence;
                if node.held[slot].is_some() {
                    node.proxies[slot].leaf = node.held[slot].clone();
                }
            }
        }
        if self.nodes[index].cut {
            return;
        }
        let cluster = self.nodes[index].cluster;
        let live = self.nodes[index].leaf.as_ref().is_some_and(|leaf| leaf.expires > now);
        // One whose certificate is gone shows a token, which only the store can tell.
        let Some(signer) = self.signer_for(cluster, !live) else { return };
        let (view, round) = (self.signers[signer].view.clone(), self.signers[signer].round);
        let (from, delay) = (self.record.from().cloned(), if self.happens(100 + chaos.late) { ANSWER } else { 1 });
        let node = &mut self.nodes[index];
        if live {
            node.sequence = node.sequence.max(view.sequence);
            node.round = node.round.max(round);
        }
        let asked = node.round;
        let mut slots = vec![None];
        slots.extend((0..node.held.len()).map(Some).filter(|_| live));
        for slot in slots {
            let held = match slot {
                None => &node.leaf,
                Some(slot) => &node.held[slot],
            };
            let due = match held {
                None => true,
                Some(leaf) => {
                    leaf.expires < now + LIFE / 2
                        || (node.round > 0 && Some(&leaf.under) == from.as_ref() && leaf.under != view.signing)
                }
            };
            if due && !node.coming.iter().any(|coming| coming.slot == slot) {
                let leaf = Leaf { under: view.signing.clone(), expires: now + LIFE };
                node.coming.push(Coming { slot, asked, at: now + delay, leaf, sequence: view.sequence });
            }
        }
        if live && !self.happens(200) {
            // A report may be old when it arrives.
            let report = self.nodes[index].report(now);
            if let Some(report) = report {
                self.nodes[index].said = Some((now, report));
            }
        }
    }

    fn timed_live(&mut self) {
        for index in 0..self.clients.len() {
            let Some(signer) = self.signer_for(None, false) else { continue };
            let view = self.signers[signer].view.clone();
            let client = &mut self.clients[index];
            if self.now >= client.renews {
                let (sequence, life) = (client.sequence.max(view.sequence), LIFE);
                // One at half of its life, the other when it must.
                let renews = self.now + if index == 0 { life / 2 } else { life - 1 };
                *client = Client { sequence, leaf: Leaf { under: view.signing, expires: self.now + life }, renews };
            }
        }
        for index in 0..self.federated.len() {
            let Some(signer) = self.signer_for(None, false) else { continue };
            let sequence = self.signers[signer].view.sequence;
            let federated = &mut self.federated[index];
            if self.now >= federated.polls {
                *federated = Federated { sequence: federated.sequence.max(sequence), polls: self.now + HINT };
            }
        }
    }

    // The driver.

    pub(super) fn parties(&self) -> Vec<Party> {
        let age = |said: &Option<(u64, Report)>, since: u64| {
            Duration::from_secs(self.now - said.as_ref().map_or(since, |(at, _)| *at))
        };
        let mut parties = Vec::new();
        for signer in &self.signers {
            let role = if signer.cluster.is_some() { Role::Cluster } else { Role::Replica };
            let report = signer.said.as_ref().map(|(_, report)| report.clone());
            let class = Class::Observed(Observed { role, silent: age(&signer.said, 0), report });
            parties.push(Party { name: signer.name.clone(), class });
        }
        for node in self.nodes.iter().filter(|node| node.cluster.is_none()) {
            let report = node.said.as_ref().map(|(_, report)| report.clone());
            let class = Class::Observed(Observed { role: Role::Node, silent: age(&node.said, node.since), report });
            parties.push(Party { name: node.name.clone(), class });
        }
        let seconds = Duration::from_secs;
        let mut timed = |name: &str, bundle, leaf| {
            let class = Class::Timed(Timed { bundle: seconds(bundle), leaf: seconds(leaf) });
            parties.push(Party { name: name.into(), class });
        };
        if !self.clients.is_empty() {
            timed("clients of the CSR API", LIFE, LIFE);
        }
        if !self.federated.is_empty() {
            timed("federated", HINT, 0);
        }
        if self.kind == Kind::Jwt {
            timed("JWT-SVIDs in use", 0, LIFE);
        }
        parties
    }

    fn observe(&self) -> Observations {
        let elapsed = match &self.driver {
            Some((revision, _, looked)) if *revision == self.revision => self.now - looked,
            _ => 0,
        };
        Observations {
            trust: self.trust.clone(),
            made: self.known.get(&self.brings).cloned(),
            able: self.known.clone(),
            known: self.known.clone(),
            parties: self.parties(),
            elapsed: Duration::from_secs(elapsed),
        }
    }

    fn drive(&mut self, chaos: &Chaos) {
        let now = self.now;
        // What a driver decided a while ago, before it lost its lease.
        for (_, revision, next, actions) in self.slow.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
            if revision == self.revision {
                self.write(next);
                self.driver = None;
                self.execute(actions, chaos);
            }
        }
        if self.record.is_over() || self.happens(chaos.crashes * 10) {
            return;
        }
        let seen = self.observe();
        let record = match &self.driver {
            Some((revision, memory, _)) if *revision == self.revision => memory.clone(),
            _ => self.record.clone(),
        };
        let step = record.step(&seen, &limits(), self.clock());
        if self.happens(chaos.late) {
            let at = now + self.below(30);
            self.slow.push((at, self.revision, step.next.clone(), step.actions.clone()));
            if self.happens(500) {
                return;
            }
        }
        let only_time = step.next.phase == self.record.phase && step.next.new == self.record.new;
        // Time is written now and then; until then it is in memory.
        if !only_time || self.happens(100) {
            self.write(step.next.clone());
        }
        self.driver = Some((self.revision, step.next, now));
        self.execute(step.actions, chaos);
    }

    fn write(&mut self, next: Rotation) {
        self.record = next;
        self.revision += 1;
    }

    fn execute(&mut self, actions: Vec<Action>, chaos: &Chaos) {
        for action in actions {
            for _ in 0..2 {
                if self.happens(chaos.late * 10) {
                    let at = self.now + self.below(100);
                    self.late.push((at, action.clone()));
                }
            }
            if !self.happens(chaos.crashes * 20) {
                self.act(&action);
            }
        }
    }

    fn late_actions(&mut self) {
        let now = self.now;
        for (_, action) in self.late.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.act(&action);
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            // What one rotation ordered is not made for the next: it has another name.
            Action::Make if self.record.phase == Phase::Prepare => {
                self.known.insert(self.brings.clone());
            }
            Action::Make => {}
            Action::Settle { step, .. } if *step < self.trust.step => {}
            Action::Settle { step, trusted, dropped, signing } => {
                let after: BTreeSet<_> =
                    self.trust.trusted.union(trusted).filter(|anchor| !dropped.contains(anchor)).cloned().collect();
                if self.kind != Kind::Intermediate {
                    assert!(after.contains(signing), "{signing} is to sign, and nobody trusts it");
                }
                assert!(self.known.contains(signing), "{signing} is to sign, and there is none");
                if after != self.trust.trusted {
                    self.trust.sequence += 1;
                    self.bundles.insert(self.trust.sequence, after.clone());
                }
                self.trust =
                    Trust { step: *step, sequence: self.trust.sequence, trusted: after, signing: signing.clone() };
            }
            Action::Forget(anchor) => {
                let trusted = self.kind != Kind::Intermediate && self.trust.trusted.contains(anchor);
                if trusted || self.trust.signing == *anchor {
                    return;
                }
                let live =
                    self.live().into_iter().filter(|(_, _, leaf)| leaf.as_ref().is_some_and(|l| l.under == *anchor));
                assert_eq!(
                    live.map(|(name, ..)| name).collect::<Vec<_>>(),
                    Vec::<String>::new(),
                    "still under {anchor}"
                );
                self.known.remove(anchor);
            }
        }
    }

    // The truth.

    /// Everybody who is alive and was not given up: what it believes, and what it shows.
    fn live(&self) -> Vec<(String, u64, Option<Leaf>)> {
        let mut live = Vec::new();
        let mut show = |name: String, sequence: u64, leaf: Option<&Leaf>| {
            if let Some(leaf) = leaf.filter(|leaf| leaf.expires > self.now) {
                live.push((name, sequence, Some(leaf.clone())));
            }
        };
        for signer in &self.signers {
            show(signer.name.clone(), signer.view.sequence, Some(&signer.leaf));
        }
        for node in self.nodes.iter().filter(|node| !node.given_up) {
            show(node.name.clone(), node.sequence, node.leaf.as_ref());
            for (slot, proxy) in node.proxies.iter().enumerate() {
                show(format!("proxy {slot} of {}", node.name), proxy.sequence, proxy.leaf.as_ref());
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            show(format!("client {index}"), client.sequence, Some(&client.leaf));
        }
        live.extend(self.federated.iter().map(|federated| ("federated".to_owned(), federated.sequence, None)));
        live
    }

    fn check(&self) {
        if self.kind == Kind::Intermediate {
            return;
        }
        let live = self.live();
        for (name, sequence, _) in &live {
            let believed = &self.bundles[sequence];
            for (other, _, leaf) in &live {
                if let Some(leaf) = leaf {
                    assert!(
                        believed.contains(&leaf.under),
                        "{name} (sequence {sequence}, {believed:?}) does not believe {other}, under {}, in {:?} at {}",
                        leaf.under,
                        self.record,
                        self.now
                    );
                }
            }
        }
    }
}

fn limits() -> Limits {
    Limits {
        silence: Duration::from_secs(SILENCE),
        settle: Duration::from_secs(1),
        longest_life: Duration::from_secs(LIFE + ANSWER),
    }
}
