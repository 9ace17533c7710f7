//! The driver of the fleet's CA, which can be killed, be late and be two.

use std::time::Duration;

use super::{
    super::super::{Class, Kind, Observations, Observed, Party, Report, Role, Rotation, Timed},
    Chaos, Fleet, HINT, LIFE, limits,
};

impl Fleet {
    pub(in super::super) fn parties(&self) -> Vec<Party> {
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
        parties.extend(self.neighbour.as_ref().map(|other| other.party(&self.record, self.trust.sequence)));
        parties
    }

    pub(in super::super) fn observe(&self) -> Observations {
        let elapsed = match &self.driver {
            Some((revision, _, looked)) if *revision == self.revision => self.now - looked,
            _ => 0,
        };
        Observations {
            trust: self.trust.clone(),
            made: self.known.get(&self.brings).cloned(),
            person: false,
            able: self.able(),
            known: self.known.clone(),
            parties: self.parties(),
            elapsed: Duration::from_secs(elapsed),
        }
    }

    pub(super) fn drive(&mut self, chaos: &Chaos) {
        let now = self.now;
        // What a driver decided a while ago, before it lost its lease.
        for (_, revision, next, actions) in self.slow.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
            if revision == self.revision {
                self.write(next);
                self.driver = None;
                self.execute(actions, chaos);
            }
        }
        if self.happens(chaos.crashes * 10) {
            return;
        }
        if self.record.is_over() {
            self.state(None);
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
        self.driver = Some((self.revision, step.next.clone(), now));
        self.execute(step.actions, chaos);
        self.state(Some((&step.next, &seen)));
    }

    pub(super) fn write(&mut self, next: Rotation) {
        self.record = next;
        self.revision += 1;
    }
}
