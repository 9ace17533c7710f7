//! How everybody in the fleet goes through a second: what goes wrong, what they ask for and take.

use super::{
    super::{
        super::{Phase, Report},
        members::{Client, Coming, Federated, Leaf, Node, Proxy},
    },
    ANSWER, Chaos, Fleet, GRACE, HINT, LIFE,
};

impl Fleet {
    pub(super) fn misfortune(&mut self, chaos: &Chaos) {
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
            if let Some(other) = &mut self.neighbour {
                other.ends();
            }
        }
        if self.happens(chaos.clock) {
            self.skew = i64::try_from(self.below(200_000)).unwrap() - 100_000;
        }
        if self.happens(chaos.joins) && self.nodes.len() < 8 {
            let cluster = if self.neighbour.is_none() && self.happens(300) { Some(2) } else { None };
            self.join(cluster, false);
        }
        if self.happens(chaos.leaves) && self.nodes.len() > 2 && self.isolated.is_none() {
            let index = usize::try_from(self.below(self.nodes.len() as u64)).unwrap();
            self.nodes.remove(index);
        }
    }

    pub(super) fn join(&mut self, cluster: Option<usize>, first: bool) {
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
    pub(super) fn signer_for(&mut self, cluster: Option<usize>, by_store: bool) -> Option<usize> {
        let all: Vec<_> = (0..self.signers.len())
            .filter(|index| self.signers[*index].cluster == cluster && !(by_store && self.signers[*index].cut))
            .collect();
        if all.is_empty() {
            return None;
        }
        let index = usize::try_from(self.below(all.len() as u64)).unwrap();
        Some(all[index])
    }

    pub(super) fn signers_live(&mut self) {
        for index in 0..self.signers.len() {
            let hears = !self.signers[index].cut && !self.happens(300);
            let (now, trust, record) = (self.now, self.trust.clone(), self.record.clone());
            let (members, able) = (self.members(index), self.able());
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
                able,
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
    pub(super) fn members(&self, signer: usize) -> Vec<Option<Report>> {
        match self.signers[signer].cluster {
            None => Vec::new(),
            cluster => {
                let nodes = self.nodes.iter().filter(|node| node.cluster == cluster);
                nodes.map(|node| node.said.as_ref().map(|(_, report)| report.clone())).collect()
            }
        }
    }

    pub(super) fn node_lives(&mut self, index: usize, chaos: &Chaos) {
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

    pub(super) fn timed_live(&mut self) {
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
}
