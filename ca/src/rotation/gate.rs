//! Who is still waited for, and why.

use std::time::Duration;

use super::{Class, Kind, Limits, Observations, Observed, Phase, Role, Rotation, Timed};

/// One reason why a phase is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// The party's name; the operator is one, too.
    pub(crate) party: String,
    pub(crate) standing: Standing,
    pub(crate) why: Why,
    /// Whether it is a CA of this cluster: until all of those have followed, no time counts for those who take from them.
    pub(crate) authority: bool,
}

/// What can be expected of a party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It reports: it will say so.
    Awaited,
    /// It has been silent for so long; only a person goes past it.
    Unreachable(Duration),
    /// It never reports; so much time must pass yet.
    Timed(Duration),
    /// A person must do something first.
    Person,
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Nothing was ever heard of it.
    Unheard,
    /// It, or somebody whom it serves, holds an older bundle.
    Bundle {
        /// Which sequence is held.
        holds: u64,
        /// Which should be.
        wanted: u64,
        /// Who lags.
        behind: Vec<String>,
    },
    /// It signs by the other one.
    Signer,
    /// It has not heard of the reissue yet, or waits for an answer from before.
    Round,
    /// Leaves of the other one are in use.
    Leaves {
        /// How many.
        count: usize,
        /// Whose.
        behind: Vec<String>,
    },
    /// It looks at the bundle now and then only.
    BundleLife,
    /// What was issued to it lives on.
    LeafLife,
    /// There is no intermediate under the new root yet.
    Intermediate,
}

impl Wait {
    /// Whether a person can decide not to wait for it.
    pub(crate) fn is_forceable(&self) -> bool {
        self.standing != Standing::Person && self.why != Why::Intermediate
    }
}

/// The party of which a person's deed is expected.
pub(crate) const OPERATOR: &str = "operator";

/// Everything that the present phase waits for. The trust state is that of the phase already.
pub(super) fn waiting(rotation: &Rotation, seen: &Observations, limits: &Limits) -> Vec<Wait> {
    let mut waits = Vec::new();
    for party in seen.parties.iter().filter(|party| !rotation.forced.contains(&party.name)) {
        let (missing, standing, authority) = match &party.class {
            Class::Observed(observed) => {
                let standing = match observed.silent {
                    silent if silent > limits.silence => Standing::Unreachable(silent),
                    _ => Standing::Awaited,
                };
                // Who takes from the CA of another cluster is for that cluster to count.
                (lacks(rotation, seen, limits, observed), standing, observed.role == Role::Replica)
            }
            Class::Timed(timed) => match left(rotation, timed) {
                Some((why, left)) => (Some(why), Standing::Timed(left), false),
                None => (None, Standing::Awaited, false),
            },
        };
        // Time begins when the bundle is handed out, whoever may sign then.
        let authority = authority && missing != Some(Why::Intermediate);
        if let Some(why) = missing {
            waits.push(Wait { party: party.name.clone(), standing, why, authority });
        }
    }
    // Last of all: what is installed signs at once, and everybody is to have heard of its root then. Of a root that a replica made the
    // others are given theirs.
    let able = rotation.to().is_some_and(|to| seen.able.contains(to));
    let asks = rotation.brought.is_some() && rotation.phase == Phase::Distribute && !able;
    if asks && waits.iter().all(|wait| wait.why == Why::Intermediate) {
        waits.push(for_a_person());
    }
    waits
}

/// A person is to plug in an intermediate.
pub(super) fn for_a_person() -> Wait {
    Wait { party: OPERATOR.into(), standing: Standing::Person, why: Why::Intermediate, authority: false }
}

/// Of those who are waited for, whoever must have heard of a root before anything signs under it: all but those who have no intermediate.
pub(super) fn before_signing(waits: Vec<Wait>) -> Vec<String> {
    waits.into_iter().filter(|wait| wait.why != Why::Intermediate).map(|wait| wait.party).collect()
}

/// What somebody who reports has not done yet.
fn lacks(rotation: &Rotation, seen: &Observations, limits: &Limits, observed: &Observed) -> Option<Why> {
    let authority = observed.is_authority();
    match rotation.phase {
        // JWT-SVIDs are in nobody's report.
        Phase::Reissue if rotation.kind == Kind::Jwt => None,
        // A certificate that has expired is no certificate: this end comes for the silent, too. But who signs may have signed
        // a moment ago.
        Phase::Reissue if !authority && rotation.waited >= limits.longest_life => None,
        Phase::Switch if !authority => None,
        Phase::Distribute | Phase::Switch | Phase::Reissue | Phase::Retire => {
            let Some(report) = &observed.report else { return Some(Why::Unheard) };
            let wanted = seen.trust.sequence;
            let behind = || report.behind.clone();
            match rotation.phase {
                Phase::Switch => (report.signing.as_ref() != rotation.to()).then_some(Why::Signer),
                Phase::Reissue => {
                    let count = rotation.from().and_then(|from| report.leaves.get(from)).copied().unwrap_or(0);
                    match (report.round < rotation.step, count) {
                        (true, _) => Some(Why::Round),
                        (false, 0) => None,
                        (false, count) => Some(Why::Leaves { count, behind: behind() }),
                    }
                }
                _ if report.sequence < wanted => Some(Why::Bundle { holds: report.sequence, wanted, behind: behind() }),
                // The others are able when they say so: each CA needs an intermediate of its own.
                Phase::Distribute if authority && rotation.to().is_some_and(|to| !report.able.contains(to)) => {
                    Some(Why::Intermediate)
                }
                _ => None,
            }
        }
        Phase::Prepare | Phase::Forget | Phase::Done => None,
    }
}

/// How long somebody who never reports is to be waited for yet.
fn left(rotation: &Rotation, timed: &Timed) -> Option<(Why, Duration)> {
    let (why, wait) = match rotation.phase {
        Phase::Distribute | Phase::Retire => (Why::BundleLife, timed.bundle),
        Phase::Reissue => (Why::LeafLife, timed.leaf),
        _ => return None,
    };
    let left = wait.saturating_sub(rotation.waited);
    (!left.is_zero()).then_some((why, left))
}
