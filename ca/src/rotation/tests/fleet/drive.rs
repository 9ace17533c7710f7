//! The driver of the fleet's CA, which can be killed, be late and be two.

use std::{collections::BTreeSet, time::Duration};

use super::{
    super::super::{Action, Class, Kind, Observations, Observed, Party, Phase, Report, Role, Rotation, Timed, Trust},
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
        parties
    }

    pub(super) fn observe(&self) -> Observations {
        let elapsed = match &self.driver {
            Some((revision, _, looked)) if *revision == self.revision => self.now - looked,
            _ => 0,
        };
        Observations {
            trust: self.trust.clone(),
            made: self.known.get(&self.brings).cloned(),
            person: false,
            able: self.known.clone(),
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

    pub(super) fn write(&mut self, next: Rotation) {
        self.record = next;
        self.revision += 1;
    }

    pub(super) fn execute(&mut self, actions: Vec<Action>, chaos: &Chaos) {
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

    pub(super) fn late_actions(&mut self) {
        let now = self.now;
        for (_, action) in self.late.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.act(&action);
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
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
}
