//! A renewal that the store has not heard of, and what becomes of it when the store answers again.
//!
//! ```text
//!   the store's lineage       s0 ──────────────────── (away) ──────────────────▶ what is found there
//!   here, in the meantime      └─▶ p1 ─▶ p2 ─▶ …  a Pending, in a file ──────────▶ settle ─┘
//! ```
//!
//! The store's word wins. Where another replica has renewed the same certificate, the key that it certified tells a reply that
//! was lost (one holder asked twice, with one key) from two holders, of whom one is a thief.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use alcazar_identity::SpiffeId;
use alcazar_store::Revision;
use serde::{Deserialize, Serialize};

use super::{KeyTag, Leaf, Lineage, Mark, Stored, seconds, text};

/// How far a node has come without the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pending {
    #[serde(with = "text")]
    pub(crate) node: SpiffeId,
    /// The lineage as it is to be in the store.
    pub(crate) lineage: Lineage,
    /// What the store had, when it was last heard: the revision, and the key of the certificate.
    base: u64,
    base_key: Option<KeyTag>,
    /// The certificate that it went on from, where that is one which another replica gave and the store was not known to have.
    #[serde(default)]
    from: Option<Mark>,
    /// Since when the store has not heard of this node.
    #[serde(with = "seconds")]
    since: SystemTime,
    /// The key of the first certificate that the store does not know.
    first_key: KeyTag,
    /// How often its holder went on from a certificate that the store does not know.
    steps: u32,
    /// Certificates that may be in the store all the same: nobody has said whether they were written.
    tried: VecDeque<String>,
}

/// What is to be done about a pending renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The store has it.
    Done,
    /// It is written over what was found.
    Write { over: Revision, lineage: Box<Lineage> },
    /// The store's word stands.
    Drop(Dropped),
    /// Two holders of one certificate have each renewed it: the lineage is ended.
    End { at: Revision, other: String },
}

/// Why a pending renewal counts no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The node was revoked or forgotten, or its lineage was ended by another replica.
    Gone,
    /// The node has attested anew since.
    Anew,
    /// Its holder went on at another replica, and has never used what it was given here.
    WentOn,
    /// Another holder has renewed as well, but what was given here has ended and renews nothing.
    Over,
}

impl Pending {
    /// The first renewal without the store. `stepped` when the holder of the latest certificate went on; not when that one is
    /// replaced because its holder never got it.
    pub(crate) fn begin(
        node: SpiffeId,
        base: &Stored<Lineage>,
        lineage: Lineage,
        stepped: bool,
        now: SystemTime,
    ) -> Self {
        let first_key = lineage.latest.key.tag();
        let base_key = base.record.keys().nth(usize::from(!stepped));
        let (base, tried) = (base.revision.get(), VecDeque::from([lineage.latest.print.to_string()]));
        Self { node, lineage, base, base_key, from: None, since: now, first_key, steps: 0, tried }
    }

    /// The same, from a certificate of another replica, which is younger than what is known of the store.
    pub(crate) fn begin_from(node: SpiffeId, base: &Stored<Lineage>, from: &Mark, leaf: Leaf, now: SystemTime) -> Self {
        let next = base.record.next(leaf, from).adopting(from);
        Self { from: Some(from.clone()), ..Self::begin(node, base, next, true, now) }
    }

    /// The next one.
    pub(crate) fn next(&self, lineage: Lineage, stepped: bool) -> Self {
        let steps = self.steps.saturating_add(stepped.into());
        // What replaces the first one that its holder never got is the first one now.
        let first_key = if steps == 0 { lineage.latest.key.tag() } else { self.first_key.clone() };
        Self { lineage, steps, first_key, ..self.clone() }
    }

    /// The same, where the store is about to be told of it.
    pub(crate) fn trying(&self) -> Self {
        let mut tried = self.tried.clone();
        let print = self.lineage.latest.print.to_string();
        if !tried.contains(&print) {
            tried.push_back(print);
            if tried.len() > TRIED {
                tried.pop_front();
            }
        }
        Self { tried, ..self.clone() }
    }

    /// The revision of the store's lineage that this one goes on from.
    pub(crate) fn base(&self) -> Revision {
        Revision::new(self.base)
    }

    /// Whether the store has this from here, as far as it was told: what is pending went on from it.
    pub(crate) fn has_told(&self, lineage: &Lineage) -> bool {
        lineage.latest.print != self.lineage.latest.print && self.tried.contains(&lineage.latest.print.to_string())
    }

    /// Whether the store has been away for longer than anybody is renewed without it.
    pub(crate) fn is_too_old(&self, now: SystemTime) -> bool {
        now.duration_since(self.since).is_ok_and(|away| away > LONGEST)
    }

    /// What becomes of it where the store has `found`.
    pub(crate) fn settle(&self, found: Option<&Stored<Lineage>>, now: SystemTime) -> Settlement {
        let Some(Stored { record, revision }) = found else { return Settlement::Drop(Dropped::Gone) };
        let write = |lineage: Lineage| Settlement::Write { over: *revision, lineage: Box::new(lineage) };
        if *revision == self.base() {
            return write(self.lineage.clone());
        }
        if record.latest.print == self.lineage.latest.print {
            return Settlement::Done;
        }
        if !record.is_the_same_as(&self.lineage) {
            return Settlement::Drop(Dropped::Anew);
        }
        // A write of ours that nobody had acknowledged, or what another replica has told of since.
        let from = self.from.as_ref().is_some_and(|from| record.is_latest(from));
        if from || self.tried.contains(&record.latest.print.to_string()) {
            return write(self.lineage.clone());
        }
        // Another replica went on from here.
        let here = self.lineage.latest.mark();
        if record.was_latest(&here) || record.has_adopted(&here) {
            return Settlement::Drop(Dropped::WentOn);
        }
        let mut since_base = record.keys().take_while(|key| Some(key) != self.base_key.as_ref());
        let place = since_base.position(|key| key == self.first_key);
        match (place, self.steps) {
            // The reply of one of the two was lost, and nobody knows which.
            (Some(0), 0) => write(self.lineage.with_twin(&record.latest)),
            (Some(0), _) => write(self.lineage.clone()),
            (Some(_), 0) => Settlement::Drop(Dropped::WentOn),
            _ if self.lineage.latest.not_after <= now => Settlement::Drop(Dropped::Over),
            _ => Settlement::End { at: *revision, other: record.latest.serial.clone() },
        }
    }
}

/// Whether a certificate is younger than the latest that is known: another replica has renewed it and has not said so yet.
pub(crate) fn is_younger(known: &Leaf, issued: SystemTime, presented: &Mark) -> bool {
    known.print != presented.print && issued > known.issued_at
}

/// A renewal is written when the store seems to answer: nobody tries that often without an answer.
const TRIED: usize = 64;
/// A replica that is cut off while others are not would renew a stolen certificate for as long. Longer than a long weekend.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csr::KeyHash;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    /// The certificate of this number, for the key of that one, good until 1000.
    fn leaf(serial: u32, key: u32) -> Leaf {
        Leaf { not_after: at(1000), ..Leaf::sample(serial, KeyHash::of(&key.to_be_bytes())) }
    }

    fn node() -> SpiffeId {
        "spiffe://td/node/c/n".parse().unwrap()
    }

    /// A lineage that goes through these certificates, each a number and that of its key.
    fn lineage(path: &[(u32, u32)]) -> Lineage {
        let (first, rest) = path.split_first().unwrap();
        let begun = Lineage::begin(leaf(first.0, first.1), Revision::new(7));
        rest.iter().fold(begun, |lineage, (serial, key)| lineage.next(leaf(*serial, *key), &lineage.latest.mark()))
    }

    fn stored(revision: u64, path: &[(u32, u32)]) -> Stored<Lineage> {
        Stored { record: lineage(path), revision: Revision::new(revision) }
    }

    #[test]
    fn who_went_on_at_another_replica_is_no_thief_whichever_of_the_two_tells_first() {
        let base = stored(10, &[(1, 1)]);
        let (one, two) = (leaf(1, 1).mark(), leaf(2, 2).mark());
        let here = Pending::begin(node(), &base, base.record.next(leaf(2, 2), &one), true, at(0));
        let there = Pending::begin_from(node(), &base, &two, leaf(3, 3), at(0));
        let further = there.lineage.next(leaf(4, 4), &leaf(3, 3).mark());
        for there in [there.clone(), there.next(further, true)] {
            let write =
                |over| Settlement::Write { over: Revision::new(over), lineage: Box::new(there.lineage.clone()) };
            // The other one tells first, or afterwards.
            assert_eq!(there.settle(Some(&base), at(1)), write(10));
            let told = Stored { record: there.lineage.clone(), revision: Revision::new(11) };
            assert_eq!(here.settle(Some(&told), at(1)), Settlement::Drop(Dropped::WentOn));
            let told = Stored { record: here.lineage.clone(), revision: Revision::new(11) };
            assert_eq!(there.settle(Some(&told), at(1)), write(11));
        }
    }

    /// What is pending after the store had 1 at the revision 10, and its holder renewed along these here.
    fn pending(path: &[(u32, u32)]) -> Pending {
        let base = stored(10, &[(1, 1)]);
        let (first, rest) = path.split_first().unwrap();
        let next = base.record.next(leaf(first.0, first.1), &base.record.latest.mark());
        let begun = Pending::begin(node(), &base, next, true, at(100));
        rest.iter().fold(begun, |pending, (serial, key)| {
            let next = pending.lineage.next(leaf(*serial, *key), &pending.lineage.latest.mark());
            pending.next(next, true)
        })
    }

    fn write(over: u64, lineage: Lineage) -> Settlement {
        Settlement::Write { over: Revision::new(over), lineage: Box::new(lineage) }
    }

    fn check(pending: &Pending, found: Option<Stored<Lineage>>, expected: Settlement) {
        assert_eq!(pending.settle(found.as_ref(), at(500)), expected);
    }

    #[test]
    fn what_the_store_never_heard_of_is_written_and_its_own_word_wins() {
        let ours = pending(&[(2, 2), (3, 3)]);
        check(&ours, Some(stored(10, &[(1, 1)])), write(10, ours.lineage.clone()));
        check(&ours, Some(stored(11, &[(1, 1), (2, 2), (3, 3)])), Settlement::Done);
        // The first write arrived, and its answer did not.
        check(&ours, Some(stored(11, &[(1, 1), (2, 2)])), write(11, ours.lineage.clone()));
        check(&ours, None, Settlement::Drop(Dropped::Gone));
        // Another token began another lineage, even one that began at the same revision.
        let anew = Lineage::begin(leaf(9, 9), Revision::new(11));
        check(&ours, Some(Stored { record: anew, revision: Revision::new(12) }), Settlement::Drop(Dropped::Anew));
        check(&ours, Some(stored(12, &[(9, 9)])), Settlement::Drop(Dropped::Anew));
    }

    #[test]
    fn two_holders_who_each_renewed_are_a_theft_and_end_the_lineage() {
        let end = |other: &str| Settlement::End { at: Revision::new(11), other: other.into() };
        check(&pending(&[(2, 2)]), Some(stored(11, &[(1, 1), (8, 8)])), end("8"));
        check(&pending(&[(2, 2), (3, 3)]), Some(stored(11, &[(1, 1), (8, 8), (9, 9)])), end("9"));
        // The thief uses the key that he stole once more.
        check(&pending(&[(2, 1)]), Some(stored(11, &[(1, 1), (8, 8)])), end("8"));
        // One key, from which two holders went on.
        check(&pending(&[(2, 2), (3, 3)]), Some(stored(11, &[(1, 1), (8, 2), (9, 9)])), end("9"));
        // What has ended renews nothing.
        let ended = pending(&[(2, 2)]).settle(Some(&stored(11, &[(1, 1), (8, 8)])), at(1000));
        assert_eq!(ended, Settlement::Drop(Dropped::Over));
    }

    #[test]
    fn a_holder_whose_reply_was_lost_and_who_asked_elsewhere_is_one_holder() {
        // With the key of the request before, at a replica that knew nothing of it.
        let ours = pending(&[(2, 2)]);
        let twins = ours.lineage.with_twin(&leaf(8, 2));
        check(&ours, Some(stored(11, &[(1, 1), (8, 2)])), write(11, twins));
        let went_on = pending(&[(2, 2), (3, 3)]);
        check(&went_on, Some(stored(11, &[(1, 1), (8, 2)])), write(11, went_on.lineage.clone()));
        check(&ours, Some(stored(11, &[(1, 1), (8, 2), (9, 9)])), Settlement::Drop(Dropped::WentOn));
        check(
            &ours,
            Some(stored(15, &[(1, 1), (8, 2), (9, 9), (10, 10), (11, 11)])),
            Settlement::Drop(Dropped::WentOn),
        );
    }

    #[test]
    fn a_certificate_that_was_never_received_is_replaced() {
        // The store has 2, for which the node asks again with the same key: 3 takes its place.
        let base = stored(10, &[(1, 1), (2, 2)]);
        let first = Pending::begin(node(), &base, base.record.instead(leaf(3, 2)), false, at(100));
        check(&first, Some(stored(10, &[(1, 1), (2, 2)])), write(10, first.lineage.clone()));
        let elsewhere = Stored { record: base.record.instead(leaf(4, 2)), revision: Revision::new(11) };
        check(&first, Some(elsewhere.clone()), write(11, first.lineage.with_twin(&elsewhere.record.latest)));
        // And again, here.
        let again = first.next(first.lineage.instead(leaf(5, 2)), false);
        check(&again, Some(elsewhere), write(11, again.lineage.with_twin(&leaf(4, 2))));
    }

    #[test]
    fn a_node_that_goes_from_one_replica_to_another_is_one_holder_whoever_tells_first() {
        let base = stored(10, &[(1, 1)]);
        let here = pending(&[(2, 2)]);
        let there = Pending::begin_from(node(), &base, &leaf(2, 2).mark(), leaf(3, 3), at(100));
        // This one tells first.
        check(&there, Some(stored(11, &[(1, 1), (2, 2)])), write(11, there.lineage.clone()));
        // That one does.
        check(&there, Some(base), write(10, there.lineage.clone()));
        let told = Stored { record: there.lineage.clone(), revision: Revision::new(11) };
        check(&here, Some(told.clone()), Settlement::Drop(Dropped::WentOn));
        // But a copy of what it went on from went on here.
        let end = |other: &str| Settlement::End { at: Revision::new(11), other: other.into() };
        check(&pending(&[(2, 2), (4, 4)]), Some(told), end("3"));
        check(&there, Some(stored(11, &[(1, 1), (2, 2), (4, 4)])), end("4"));
        check(&there, Some(stored(11, &[(1, 1), (8, 8)])), end("8"));
    }

    #[test]
    fn what_was_tried_is_remembered_and_bounded() {
        let mut ours = pending(&[(2, 2)]);
        for serial in 3..100 {
            let next = ours.lineage.next(leaf(serial, serial), &ours.lineage.latest.mark());
            ours = ours.next(next, true).trying().trying();
        }
        assert_eq!(ours.tried.len(), TRIED);
        assert!(!ours.is_too_old(at(100) + LONGEST) && ours.is_too_old(at(101) + LONGEST));
        assert!(!ours.is_too_old(at(0)), "a clock that was set back ends nothing");
    }

    #[test]
    fn a_certificate_of_another_replica_is_younger_than_what_is_known() {
        let known = Leaf { issued_at: at(100), ..leaf(1, 1) };
        let other = leaf(2, 2).mark();
        assert!(is_younger(&known, at(101), &other));
        assert!(!is_younger(&known, at(100), &other) && !is_younger(&known, at(101), &known.mark()));
    }
}
