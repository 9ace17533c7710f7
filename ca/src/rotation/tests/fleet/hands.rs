//! The hands of the fleet's CA: what it does of what was decided, at once, late, twice or never.

use std::collections::BTreeSet;

use super::{
    super::super::{Action, Anchor, Kind, Phase, Trust},
    Chaos, Fleet,
};

impl Fleet {
    /// What it could sign under.
    pub(super) fn able(&self) -> BTreeSet<Anchor> {
        let held = self.neighbour.iter().flat_map(|other| &other.held);
        self.known.iter().chain(held).chain([&self.trust.signing]).cloned().collect()
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
            Action::Settle { step, .. } if *step < self.trust.step || self.is_plugged_under_what_is_left() => {}
            Action::Settle { step, trusted, dropped, signing } => {
                let after: BTreeSet<_> =
                    self.trust.trusted.union(trusted).filter(|anchor| !dropped.contains(anchor)).cloned().collect();
                if self.kind != Kind::Intermediate {
                    assert!(after.contains(signing), "{signing} is to sign, and nobody trusts it");
                }
                assert!(self.able().contains(signing), "{signing} is to sign, and there is none");
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
