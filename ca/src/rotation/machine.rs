//! What comes next: a function of what is remembered and what is seen.

use std::{collections::BTreeSet, time::SystemTime};

use thiserror::Error;

use super::{
    Anchor, Class, Kind, Limits, Observations, Observed, Party, Phase, Role, Rotation,
    gate::{self, Wait, Why},
};

/// What a look at the world leads to. The next state is written first, by compare-and-swap; then the actions are executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The rotation as it is to be remembered: another phase, or the same with more time waited.
    pub(crate) next: Rotation,
    pub(crate) actions: Vec<Action>,
    /// Whom the phase waits for; empty while there is something to do.
    pub(crate) waiting: Vec<Wait>,
}

/// Something to do. Doing it twice, or late, does no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make what the rotation brings, unless it has been made.
    Make,
    /// Let the trust state be so, unless a later step has ordered something: with one write.
    Settle {
        /// For which step.
        step: u64,
        /// What is to be trusted.
        trusted: BTreeSet<Anchor>,
        /// What is not.
        dropped: BTreeSet<Anchor>,
        /// What is to sign.
        signing: Anchor,
    },
    /// Remove it and its key. Never what is trusted or signs.
    Forget(Anchor),
}

impl Rotation {
    /// What is to be done, remembered and waited for now.
    pub(crate) fn step(&self, seen: &Observations, limits: &Limits, now: SystemTime) -> Step {
        let stay = |actions, waiting| Step { next: self.clone(), actions, waiting };
        let go = |next| Step { next, actions: Vec::new(), waiting: Vec::new() };
        match self.phase {
            Phase::Done => stay(Vec::new(), Vec::new()),
            Phase::Prepare => match (&self.new, &seen.made) {
                (Some(_), _) => go(self.entering(self.following(), now)),
                (None, Some(made)) => go(Self { new: Some(made.clone()), ..self.clone() }),
                (None, None) if seen.person => stay(Vec::new(), vec![gate::for_a_person()]),
                (None, None) => stay(vec![Action::Make], Vec::new()),
            },
            Phase::Forget => match self.leftover(seen) {
                Some(anchor) => stay(vec![Action::Forget(anchor.clone())], Vec::new()),
                None => go(self.entering(Phase::Done, now)),
            },
            Phase::Distribute | Phase::Switch | Phase::Reissue | Phase::Retire => {
                if !self.is_settled(seen) {
                    let (trusted, dropped) = self.trusted();
                    let signing = if self.has_turned(seen) { &seen.trust.signing } else { self.signing() }.clone();
                    return stay(vec![Action::Settle { step: self.step, trusted, dropped, signing }], Vec::new());
                }
                self.wait(seen, limits, now)
            }
        }
    }

    /// The trust state is as it should be: what remains is to wait.
    fn wait(&self, seen: &Observations, limits: &Limits, now: SystemTime) -> Step {
        let waiting = gate::waiting(self, seen, limits);
        if waiting.is_empty() && self.waited >= limits.settle {
            return Step { next: self.entering(self.following(), now), actions: Vec::new(), waiting };
        }
        // Until every CA hands out the new bundle, those who take it from them have not begun to. In Reissue all sign anew.
        let counts = self.phase == Phase::Reissue || !waiting.iter().any(|wait| wait.authority);
        let waited = if counts && self.counting { self.waited.saturating_add(seen.elapsed) } else { self.waited };
        Step { next: Self { waited, counting: counts, ..self.clone() }, actions: Vec::new(), waiting }
    }

    /// Whether nobody of this cluster is waited for in this phase any more; what other clusters do is theirs to say. An
    /// intermediate that is missing is stated apart: it is asked for when every cluster has heard of the root.
    pub(crate) fn is_settled_at_home(&self, seen: &Observations, limits: &Limits) -> bool {
        if matches!(self.phase, Phase::Prepare | Phase::Forget) || !self.is_settled(seen) {
            return false;
        }
        let elsewhere = |party: &Party| matches!(&party.class, Class::Observed(Observed { role: Role::Cluster, .. }));
        let parties = seen.parties.iter().filter(|party| !elsewhere(party)).cloned().collect();
        let waiting = gate::waiting(self, &Observations { parties, ..seen.clone() }, limits);
        waiting.iter().all(|wait| wait.why == Why::Intermediate)
    }

    /// Whether the CA's own trust state is this phase's, by this phase's order: then nothing that was ordered before can
    /// change it any more.
    pub(super) fn is_settled(&self, seen: &Observations) -> bool {
        let (trusted, dropped) = self.trusted();
        seen.trust.step == self.step
            && (seen.trust.signing == *self.signing() || self.has_turned(seen))
            && trusted.is_subset(&seen.trust.trusted)
            && dropped.is_disjoint(&seen.trust.trusted)
    }

    /// Whether what a person has plugged in signs already, which it does by itself once everybody has heard of its root.
    fn has_turned(&self, seen: &Observations) -> bool {
        let brought = self.brought.is_some() && self.phase == Phase::Distribute;
        brought && Some(&seen.trust.signing) == self.to() && seen.trust.trusted.contains(&seen.trust.signing)
    }

    /// Whether this is one of its two roots, and not the one that is to sign at present: what a person plugs in under it waits.
    pub(super) fn holds_back(&self, root: &Anchor) -> bool {
        let its = [self.from(), self.to()].contains(&Some(root));
        self.kind == Kind::Root && self.brought.is_some() && !self.is_over() && its && self.signing() != root
    }

    /// Whom a root that is held back waits for before anything may sign under it.
    pub(super) fn awaited_before_signing(&self, root: &Anchor, seen: &Observations, limits: &Limits) -> Vec<String> {
        let one = |what: &str| vec![what.to_owned()];
        match self.phase {
            // Whoever trusts the other root alone would be cut off: also shortly before it is aborted.
            _ if self.to() != Some(root) && self.back => one("the rotation, which goes back from this root"),
            _ if self.to() != Some(root) => one("the rotation, which leaves this root until it is aborted"),
            Phase::Distribute if self.is_settled(seen) => gate::before_signing(gate::waiting(self, seen, limits)),
            _ => one("the rotation, which hands the root out just now"),
        }
    }

    /// What is to be forgotten and is there yet. What was made without anybody having remembered it counts.
    fn leftover<'s>(&'s self, seen: &'s Observations) -> Option<&'s Anchor> {
        let made = if self.back { seen.made.as_ref() } else { None };
        self.from().or(made).filter(|anchor| seen.known.contains(anchor))
    }

    /// The same rotation, on its way back to what was before. `others`: other clusters stand under the root, and may be further by a
    /// phase than they are known to be.
    ///
    /// # Errors
    /// When it is on its way back already, or it is too late.
    pub(crate) fn aborted(&self, others: bool, now: SystemTime) -> Result<Self, NotAborted> {
        if self.is_over() || self.phase == Phase::Forget {
            return Err(NotAborted::TooLate);
        }
        if self.back {
            return Err(NotAborted::Already);
        }
        let others = others && self.kind == Kind::Root;
        let phase = match self.phase {
            Phase::Prepare => Phase::Forget,
            // What a person brings signs when it is plugged in, and another cluster signs when all have heard: leaves of it may be in use.
            Phase::Distribute if self.brought.is_some() || others => Phase::Switch,
            // Nothing was ever signed by the new one.
            Phase::Distribute => Phase::Retire,
            // Others have been told that nothing of the old one is left here, and may trust the new one alone.
            Phase::Reissue if others => Phase::Distribute,
            Phase::Switch | Phase::Reissue => Phase::Switch,
            // Some trust the new one alone.
            _ => Phase::Distribute,
        };
        let back = Self { back: true, ..self.clone() }.entering(phase, now);
        Ok(Self { turned: back.step, ..back })
    }

    /// The same rotation, ended where it stands: the replica that drove it is gone, and what it has made stays.
    ///
    /// # Errors
    /// When it is over.
    pub(crate) fn left_as_it_is(&self, now: SystemTime) -> Result<Self, NotAborted> {
        if self.is_over() {
            return Err(NotAborted::TooLate);
        }
        Ok(Self { back: true, left_as_it_is: true, ..self.clone() }.entering(Phase::Done, now))
    }

    /// The same rotation, which waits no longer in this phase for the parties named; and what each was waited for.
    ///
    /// # Errors
    /// When one of them is not waited for, or cannot be passed over.
    pub(crate) fn forced(
        &self,
        parties: &BTreeSet<String>,
        seen: &Observations,
        limits: &Limits,
    ) -> Result<(Self, Vec<Wait>), NotForced> {
        let waiting = if self.is_settled(seen) { gate::waiting(self, seen, limits) } else { Vec::new() };
        let mut forced = self.forced.clone();
        let mut broken = Vec::new();
        for party in parties {
            let wait = waiting.iter().find(|wait| wait.party == *party);
            let wait = wait.ok_or_else(|| NotForced::NotAwaited(party.clone()))?;
            if !wait.is_forceable() {
                return Err(NotForced::Needed(party.clone()));
            }
            forced.insert(party.clone());
            broken.push(wait.clone());
        }
        Ok((Self { forced, ..self.clone() }, broken))
    }
}

/// Why a rotation does not turn back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotAborted {
    /// It does already.
    #[error("it is on its way back already")]
    Already,
    /// The old key is being removed, or is gone.
    #[error("it is too late: the old key is gone; rotate once more instead")]
    TooLate,
}

/// Why a wait is not passed over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotForced {
    /// Nobody waits for it, or no longer.
    #[error("{0} is not waited for now")]
    NotAwaited(String),
    /// There is no going on without it.
    #[error("nothing can go on without {0}: an intermediate under the new root is missing")]
    Needed(String),
}
