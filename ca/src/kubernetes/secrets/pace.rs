//! When a Secret may be written again, and how long a failure is left alone: plain data in, plain data out.
//!
//! Whoever may edit a Secret decides when it is repaired. Each repair is a certificate on record for ever, so there are only so
//! many of them in a row. What the CA itself has cause for, other roots or another intermediate, is never held up.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::world::Place;

/// The past of each account's Secret, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct Pace {
    places: BTreeMap<Place, Past>,
}

#[derive(Debug)]
struct Past {
    /// When all of its writes at once are there again.
    restored: SystemTime,
    /// With which of the CA's own trust it was written last.
    generation: Option<u64>,
    failures: u32,
    /// Whether it fails for a reason that waiting does not mend.
    lasting: bool,
    /// What was said of it last.
    said: Option<String>,
}

impl Past {
    fn new(now: SystemTime) -> Self {
        Self { restored: now, generation: None, failures: 0, lasting: false, said: None }
    }
}

impl Pace {
    /// Whether the Secret may be written now, to be in accord with this generation of the CA's trust.
    ///
    /// # Errors
    /// When it is to be left alone until then.
    pub(super) fn may_write(&self, place: &Place, generation: u64, now: SystemTime) -> Result<(), SystemTime> {
        let Some(past) = self.places.get(place).filter(|past| past.generation == Some(generation)) else {
            return Ok(());
        };
        // A clock that went back holds nobody up for longer.
        let restored = past.restored.min(now + AT_ONCE * EACH);
        let then = restored.checked_sub((AT_ONCE - 1) * EACH).unwrap_or(now);
        if then <= now { Ok(()) } else { Err(then) }
    }

    /// It was written.
    pub(super) fn wrote(&mut self, place: &Place, generation: u64, now: SystemTime) {
        let past = self.past(place, now);
        past.restored = past.restored.clamp(now, now + AT_ONCE * EACH) + EACH;
        past.generation = Some(generation);
    }

    /// It is as it should be, or there is none.
    pub(super) fn fine(&mut self, place: &Place) {
        if let Some(past) = self.places.get_mut(place) {
            (past.failures, past.lasting, past.said) = (0, false, None);
        }
    }

    /// It could not be kept up. When to try again, and whether to tell somebody: the same is said once.
    pub(super) fn failed(&mut self, place: &Place, why: String, lasting: bool, now: SystemTime) -> (SystemTime, bool) {
        let past = self.past(place, now);
        let longest = if lasting { LASTING } else { PASSING };
        let wait = FIRST.saturating_mul(1 << past.failures.min(16)).min(longest);
        past.failures = past.failures.saturating_add(1);
        past.lasting = lasting;
        let is_new = past.said.as_ref() != Some(&why);
        past.said = Some(why);
        (now + wait, is_new)
    }

    /// Those that fail for a reason of ours, which may be another by now.
    pub(super) fn refused(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|(_, past)| past.lasting).map(|(place, _)| place)
    }

    /// Those that fail, and why.
    pub(super) fn failing(&self) -> impl Iterator<Item = (&Place, &str)> {
        self.places.iter().filter_map(|(place, past)| Some((place, past.said.as_deref()?)))
    }

    /// Forgets what no longer matters.
    pub(super) fn forget(&mut self, now: SystemTime) {
        self.places.retain(|_, past| past.said.is_some() || past.restored > now);
    }

    fn past(&mut self, place: &Place, now: SystemTime) -> &mut Past {
        self.places.entry(place.clone()).or_insert_with(|| Past::new(now))
    }
}

/// Writes of one Secret at once, and how long it takes until there is one more.
const AT_ONCE: u32 = 6;
const EACH: Duration = Duration::from_secs(60);
/// After a failure. What passes by itself is tried again more often than what does not.
const FIRST: Duration = Duration::from_secs(5);
const PASSING: Duration = Duration::from_secs(40);
const LASTING: Duration = Duration::from_secs(640);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn cart() -> Place {
        ("shop".into(), "cart".into())
    }

    /// Edited again as soon as it is written, for an hour.
    #[test]
    fn whoever_edits_without_end_is_repaired_a_few_times_and_then_now_and_then() {
        let (mut pace, mut written) = (Pace::default(), Vec::new());
        for second in 0..3600 {
            if pace.may_write(&cart(), 1, at(second)).is_ok() {
                pace.wrote(&cart(), 1, at(second));
                written.push(second);
            }
        }
        assert_eq!(written[..6], [0, 1, 2, 3, 4, 5]);
        assert!(written[6] >= 60 && written.len() <= 6 + 60, "{written:?}");
        // What it is told to wait for is when it may.
        let then = pace.may_write(&cart(), 1, at(3599)).unwrap_err();
        assert!(pace.may_write(&cart(), 1, then).is_ok() && then <= at(3659));
        // Another account has its own share, and what the CA has cause for waits for nothing.
        assert!(pace.may_write(&("shop".into(), "till".into()), 1, at(3599)).is_ok());
        assert!(pace.may_write(&cart(), 2, at(3599)).is_ok());
        // Left alone for a while, it has all of them again, and nothing is remembered.
        pace.forget(at(3599));
        assert!(pace.may_write(&cart(), 1, at(3599)).is_err(), "it is not forgotten too soon");
        pace.forget(at(3600 + 6 * 60));
        assert!(pace.places.is_empty());
    }

    #[test]
    fn a_clock_that_goes_back_holds_nobody_up_for_longer_than_one_that_stands() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.wrote(&cart(), 1, at(1_000_000));
        }
        let then = pace.may_write(&cart(), 1, at(0)).unwrap_err();
        assert_eq!(then, at(60));
    }

    #[test]
    fn a_failure_is_told_once_and_tried_less_and_less_often() {
        let mut pace = Pace::default();
        let mut tell = |why: &str, lasting| {
            let (then, told) = pace.failed(&cart(), why.into(), lasting, at(0));
            (then.duration_since(at(0)).unwrap().as_secs(), told)
        };
        assert_eq!(tell("revoked", true), (5, true));
        assert_eq!(tell("revoked", true), (10, false));
        for _ in 0..10 {
            tell("revoked", true);
        }
        assert_eq!(tell("revoked", true), (640, false));
        assert_eq!(tell("the API is away", false), (40, true), "what passes is looked at sooner");
        assert_eq!(pace.refused().count(), 0);
        pace.failed(&cart(), "revoked".into(), true, at(0));
        assert_eq!(pace.refused().collect::<Vec<_>>(), [&cart()]);
        assert_eq!(pace.failing().next().unwrap().1, "revoked");
        pace.fine(&cart());
        assert_eq!((pace.refused().count(), pace.failing().count()), (0, 0));
        assert!(pace.failed(&cart(), "revoked".into(), true, at(9)).1, "after it was fine it is news");
    }
}
