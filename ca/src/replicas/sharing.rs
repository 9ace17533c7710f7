//! What a replica asks the others for: a function of what it signs with and of what they say of themselves.
//!
//! An intermediate that several replicas sign with is left by each of them: for one of its own as soon as a replica with the root's
//! key is there, and until then for the one that another has gone over to. Which of two is gone over to is decided by their ends
//! alone, so that all come to the same one and nobody goes back and forth.

use std::time::SystemTime;

use alcazar_identity::Fingerprint;

use super::{HeldIntermediate, Presence};
use crate::{hierarchy::Condition, rotation::Anchor};

/// What a replica asks the others for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    Nothing,
    /// One of its own in place of the shared one, which is good.
    ItsOwn,
    /// Another one: what it signs with is old, or must be left.
    Another,
    /// What another replica signs with.
    This(HeldIntermediate),
}

/// A replica as it looks at what it signs with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stands {
    pub(super) condition: Condition,
    pub(super) signing: HeldIntermediate,
    pub(super) not_after: SystemTime,
    pub(super) leaves: Leaves,
}

/// Whether it must leave what it signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaves {
    No,
    /// It is revoked, or its root is trusted no more.
    Must,
    /// The replica whose it is rotates it, and signs with this one.
    For(Fingerprint),
}

/// What to ask for, where `others` sign at this moment. Under another root than these nothing is asked for; `good` is what may be
/// signed with.
pub(super) fn asks(
    stands: &Stands,
    others: &[&Presence],
    roots: &[Fingerprint],
    good: impl Fn(Fingerprint) -> bool,
) -> Wants {
    let own = match (stands.leaves, stands.condition) {
        (Leaves::Must | Leaves::For(_), _) | (_, Condition::Old) => Wants::Another,
        (Leaves::No, Condition::Shared) => Wants::ItsOwn,
        (Leaves::No, Condition::Good) => return Wants::Nothing,
    };
    if others.iter().any(|other| other.roots.iter().any(|root| roots.contains(root))) {
        return own;
    }
    let next = others.iter().filter(|other| {
        let HeldIntermediate { intermediate, root } = other.signing;
        let better = match stands.leaves {
            Leaves::No => other.not_after > stands.not_after,
            Leaves::Must => true,
            Leaves::For(next) => intermediate == next,
        };
        better && intermediate != stands.signing.intermediate && roots.contains(&root) && good(intermediate)
    });
    match next.max_by_key(|other| (other.not_after, other.signing)) {
        Some(next) => Wants::This(next.signing),
        // Nobody has the root at the moment: what is shared goes on.
        None if own == Wants::ItsOwn => Wants::Nothing,
        None => own,
    }
}

/// The roots under which a replica may make itself an intermediate, in the order in which it does: while a root is rotated the one
/// that is to sign and no other, since not everybody may have heard of it; else the one that it signs under before others.
pub(super) fn to_sign_under(
    mut trusted: Vec<Fingerprint>,
    present: Fingerprint,
    rotation: Option<&Anchor>,
) -> Vec<Fingerprint> {
    if let Some(signing) = rotation {
        trusted.retain(|root| Anchor::from(*root) == *signing);
    }
    trusted.sort_by_key(|root| *root != present);
    trusted
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::replicas::Phase;

    fn print(text: &str) -> Fingerprint {
        Fingerprint::of(text.as_bytes())
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn held(intermediate: &str, root: &str) -> HeldIntermediate {
        HeldIntermediate { intermediate: print(intermediate), root: print(root) }
    }

    fn presence(intermediate: &str, root: &str, end: u64, roots: &[&str]) -> Presence {
        let signing = held(intermediate, root);
        Presence {
            host: "vm".into(),
            version: String::new(),
            instance: String::new(),
            started: at(0),
            seen: at(0),
            phase: Phase::Serving,
            sequence: 1,
            round: 0,
            signing,
            shared: false,
            not_after: at(end),
            serving: signing.intermediate,
            serving_sequence: 1,
            held: vec![signing],
            roots: roots.iter().map(|root| print(root)).collect(),
            ledger: String::new(),
            entries: 0,
        }
    }

    #[test]
    fn a_replica_asks_for_its_own_or_for_what_ends_later_or_for_what_it_must() {
        let revoked = print("revoked");
        let check = |condition, leaves, others: &[Presence], expected| {
            let stands = Stands { condition, signing: held("shared", "root"), not_after: at(100), leaves };
            let others: Vec<_> = others.iter().collect();
            let asked = asks(&stands, &others, &[print("root")], |intermediate| intermediate != revoked);
            assert_eq!(asked, expected, "{stands:?} {others:?}");
        };
        let one = |intermediate: &str, end| presence(intermediate, "root", end, &[]);
        let has_root = || presence("its own", "root", 50, &["root"]);
        let this = |name: &str| Wants::This(held(name, "root"));

        // What is its own and fresh stays, whatever others have.
        check(Condition::Good, Leaves::No, &[has_root(), one("later", 200)], Wants::Nothing);
        // What is shared is left for one of its own, or for what ends later.
        check(Condition::Shared, Leaves::No, &[], Wants::Nothing);
        check(Condition::Shared, Leaves::No, &[has_root(), one("later", 200)], Wants::ItsOwn);
        check(Condition::Shared, Leaves::No, &[one("shared", 100), one("sooner", 90)], Wants::Nothing);
        check(Condition::Shared, Leaves::No, &[one("shared", 100), one("later", 200)], this("later"));
        check(Condition::Shared, Leaves::No, &[one("later", 200), one("latest", 201)], this("latest"));
        check(
            Condition::Shared,
            Leaves::No,
            &[presence("later", "another root", 200, &["another root"])],
            Wants::Nothing,
        );
        check(Condition::Shared, Leaves::No, &[one("revoked", 200)], Wants::Nothing);
        // What is old is asked for with an error where nobody has it.
        check(Condition::Old, Leaves::No, &[has_root()], Wants::Another);
        check(Condition::Old, Leaves::No, &[one("later", 200)], this("later"));
        check(Condition::Old, Leaves::No, &[one("sooner", 90)], Wants::Another);
        // What must be left is left for anything that is good.
        for condition in [Condition::Good, Condition::Shared, Condition::Old] {
            check(condition, Leaves::Must, &[has_root()], Wants::Another);
            check(condition, Leaves::Must, &[one("shared", 100), one("sooner", 90)], this("sooner"));
            check(condition, Leaves::Must, &[one("shared", 100), one("revoked", 200)], Wants::Another);
        }
        // What is rotated is left for what its replica signs with, also where that goes back to what ends sooner.
        let rotated = Leaves::For(print("sooner"));
        check(Condition::Shared, rotated, &[one("sooner", 90), one("later", 200)], this("sooner"));
        check(Condition::Shared, rotated, &[one("shared", 100)], Wants::Another);
        check(Condition::Shared, rotated, &[has_root()], Wants::Another);
    }

    #[test]
    fn a_replica_goes_over_to_the_root_that_signs_and_to_no_other() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|root| Fingerprint::of(root));
        assert_eq!(to_sign_under(vec![a, b, c], b, None), [b, a, c]);
        // What it signs under is trusted no more.
        assert_eq!(to_sign_under(vec![a, c], b, None), [a, c]);
        // Everybody is about to hear of `a`, and `b` signs; later it is the other way round.
        assert_eq!(to_sign_under(vec![a, b], b, Some(&b.into())), [b]);
        assert_eq!(to_sign_under(vec![a, b], b, Some(&a.into())), [a]);
        assert_eq!(to_sign_under(vec![a], b, Some(&c.into())), []);
    }
}
