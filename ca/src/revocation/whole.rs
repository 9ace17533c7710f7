//! Whether the CRLs that are there are all that somebody needs who checks by them: one verifier with a CRL refuses everybody of whose
//! issuer it has none.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;

use crate::replicas::{Phase, ReplicaState};

/// An intermediate of which something may be in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) issuer: Fingerprint,
    /// Whose it is, in words.
    pub(super) whose: String,
    /// Whether that replica signs with it at present.
    pub(super) signs: bool,
}

/// How the CRLs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Yes,
    /// One is missing.
    Lacks(String),
    /// There are authorities whose CRLs are never here.
    Never(String),
}

/// The intermediates of which something may be in use, by what the replicas say of themselves. Of one that is silent it is not
/// known whether it signs on, cut off from the store; of one that has stopped in order nothing is good after the longest life.
pub(super) fn needed(replicas: &[ReplicaState], life: Duration, now: SystemTime) -> Vec<Needed> {
    let is_over = |state: &&ReplicaState| {
        let since = now.duration_since(state.presence.seen).unwrap_or_default();
        !state.here && state.presence.phase == Phase::Stopped && since > life
    };
    let mut all = Vec::new();
    for state in replicas.iter().filter(|state| !is_over(state)) {
        let signs = state.presence.signing.intermediate;
        let held = state.presence.held.iter().map(|held| held.intermediate);
        for issuer in held.chain([signs]).collect::<BTreeSet<_>>() {
            let whose = if state.here { "this replica".to_owned() } else { state.name() };
            all.push(Needed { issuer, whose, signs: issuer == signs });
        }
    }
    all
}

/// Whether these are all. `elsewhere`: authorities of which no CRL comes here. `is_new`: it was not known a moment ago, so that its
/// CRL may be on the way; one that signs is announced before it does.
pub(super) fn whole(
    needed: &[Needed],
    there: &BTreeSet<Fingerprint>,
    elsewhere: &[String],
    is_new: impl Fn(Fingerprint) -> bool,
) -> Whole {
    if !elsewhere.is_empty() {
        return Whole::Never(elsewhere.join("; "));
    }
    if there.is_empty() && needed.is_empty() {
        return Whole::Lacks("every intermediate is revoked, and there is no CRL of the root here by which those under them are refused; have its key here, or import one (`alcazar revocations import`), or replace the intermediate (`alcazar ca rotate`)".into());
    }
    let lacking = needed.iter().filter(|one| !there.contains(&one.issuer) && (one.signs || !is_new(one.issuer)));
    let lacking: Vec<_> = lacking.map(|one| format!("of the intermediate {} of {}", one.issuer, one.whose)).collect();
    match lacking.is_empty() {
        true if there.is_empty() => Whole::Lacks("there is none yet".into()),
        true => Whole::Yes,
        false => Whole::Lacks(format!("there is no CRL that is good now {}", lacking.join(", nor "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::{HeldIntermediate, Presence};

    fn print(text: &str) -> Fingerprint {
        Fingerprint::of(text.as_bytes())
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn replica(id: &str, here: bool, phase: Phase, seen: u64, signs: &str, held: &[&str]) -> ReplicaState {
        let of = |intermediate: &str| HeldIntermediate { intermediate: print(intermediate), root: print("root") };
        let presence = Presence {
            host: "vm".into(),
            version: String::new(),
            instance: String::new(),
            started: at(0),
            seen: at(seen),
            phase,
            sequence: 1,
            round: 0,
            signing: of(signs),
            shared: false,
            not_after: at(1_000_000),
            serving: print(signs),
            serving_sequence: 1,
            held: held.iter().map(|held| of(held)).collect(),
            roots: Vec::new(),
            ledger: String::new(),
            entries: 0,
        };
        ReplicaState { id: id.parse().unwrap(), here, presence }
    }

    #[test]
    fn all_count_that_may_have_signed_what_is_in_use() {
        let (one, two, three) = ("00000000000000aa", "00000000000000bb", "00000000000000cc");
        let names = |replicas: &[ReplicaState], now| {
            let mut names: Vec<_> = needed(replicas, Duration::from_secs(100), at(now))
                .into_iter()
                .map(|needed| (needed.issuer, needed.signs))
                .collect();
            names.sort_unstable();
            names
        };
        let expect = |all: &[(&str, bool)]| {
            let mut all: Vec<_> = all.iter().map(|(name, signs)| (print(name), *signs)).collect();
            all.sort_unstable();
            all
        };
        let here = || replica(one, true, Phase::Serving, 1_000, "a2", &["a1", "a2"]);
        // What was rotated away from is held until the last leaf of it is over.
        assert_eq!(names(&[here()], 1_000), expect(&[("a1", false), ("a2", true)]));
        // An earlier version of the program lists what it signs with in one place alone.
        let serving = replica(two, false, Phase::Serving, 1_000, "b", &[]);
        let silent = replica(three, false, Phase::Draining, 0, "c", &["c"]);
        let all = [here(), serving, silent];
        assert_eq!(names(&all, 1_000), expect(&[("a1", false), ("a2", true), ("b", true), ("c", true)]));
        let stopped = [here(), replica(two, false, Phase::Stopped, 900, "b", &["b"])];
        assert_eq!(names(&stopped, 1_000), expect(&[("a1", false), ("a2", true), ("b", true)]));
        assert_eq!(names(&stopped, 1_001), expect(&[("a1", false), ("a2", true)]));
        // By a clock that was set back nothing is over.
        assert_eq!(names(&stopped, 0), expect(&[("a1", false), ("a2", true), ("b", true)]));
    }

    #[test]
    fn they_are_all_or_none() {
        let need = |name: &str, signs| Needed { issuer: print(name), whose: "vm".into(), signs };
        let all = [need("a1", false), need("a2", true)];
        let there = |names: &[&str]| names.iter().map(|name| print(name)).collect::<BTreeSet<_>>();
        let check = |names: &[&str], new: &[&str]| whole(&all, &there(names), &[], |one| there(new).contains(&one));
        assert_eq!(check(&["a1", "a2"], &[]), Whole::Yes);
        assert_eq!(check(&["a1", "a2", "more"], &[]), Whole::Yes);
        assert_eq!(check(&["a2"], &["a1"]), Whole::Yes, "nothing is signed with it yet");
        for (names, new) in [(&["a2"][..], &[][..]), (&["a1"], &["a2"]), (&[], &[])] {
            assert!(matches!(check(names, new), Whole::Lacks(_)), "{names:?}");
        }
        let Whole::Lacks(said) = check(&["a2"], &[]) else { panic!("one is missing") };
        assert_eq!(said, format!("there is no CRL that is good now of the intermediate {} of vm", print("a1")));
        assert!(matches!(check(&[], &["a1"]), Whole::Lacks(_)));
        let revoked = |there| whole(&[], &there, &[], |_| false);
        assert!(
            matches!(revoked(there(&[])), Whole::Lacks(reason) if reason.contains("every intermediate is revoked"))
        );
        assert_eq!(revoked(there(&["root"])), Whole::Yes);
        let never = whole(&all, &there(&["a1", "a2"]), &["west".into(), "a root".into()], |_| false);
        assert_eq!(never, Whole::Never("west; a root".into()));
    }
}
