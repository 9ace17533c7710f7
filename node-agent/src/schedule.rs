//! When to ask for the next certificate. Arithmetic only: time and chance are arguments.
//!
//! ```text
//!  issued        renew (40 to 50 % of the life)          retries, ever closer           expires
//!    ├──────────────────┤·········┤──────────────┼───────┼────┼──┼─┼┼┼┼ (back-off, capped; urgent near the end) ┤
//! ```

use std::time::{Duration, SystemTime};

/// How long a certificate is good, by this machine's clock.
///
/// The CA says when it issued and until when; the two clocks may differ. What counts is the span between the CA's
/// two times, laid on this machine's clock so that it never ends late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    issued: SystemTime,
    expires: SystemTime,
    received: SystemTime,
}

impl Life {
    /// The life of a certificate that the CA issued at `issued_at`, good until `not_after` (both by the CA's clock),
    /// and that arrived at `received` (by ours). `None` when it ends before it was issued.
    pub fn new(issued_at: SystemTime, not_after: SystemTime, received: SystemTime) -> Option<Self> {
        let span = not_after.duration_since(issued_at).ok().filter(|span| !span.is_zero())?;
        // A CA whose clock is ahead of ours has not issued in our future: the life starts when it arrived.
        let issued = issued_at.min(received);
        let expires = issued.checked_add(span)?.min(not_after);
        Some(Self { issued, expires, received })
    }

    /// When it was issued.
    pub fn issued(&self) -> SystemTime {
        self.issued
    }

    /// The last moment at which it is good.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// When it arrived here.
    pub fn received(&self) -> SystemTime {
        self.received
    }

    /// Whether it is over at `now`.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires <= now
    }

    /// From issuance to expiry.
    pub fn span(&self) -> Duration {
        self.expires.duration_since(self.issued).unwrap_or_default()
    }

    /// What is left of it at `at`; zero once it is over.
    pub fn remaining(&self, at: SystemTime) -> Duration {
        self.expires.duration_since(at).unwrap_or_default()
    }

    /// Whether less than a quarter of it is left at `at`: what usually must hold before a renewal has to give way.
    pub fn is_near_its_end(&self, at: SystemTime) -> bool {
        self.remaining(at) < self.span() / 4
    }
}

/// Chance, as an argument: a fraction from 0 up to, not including, 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jitter(u32);

impl Jitter {
    /// The fraction `parts / 2^32`.
    pub fn new(parts: u32) -> Self {
        Self(parts)
    }

    /// This fraction of a span.
    pub fn of(self, span: Duration) -> Duration {
        span.mul_f64(f64::from(self.0) / (f64::from(u32::MAX) + 1.0))
    }
}

/// What the CA said of when to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Later {
    /// Not earlier than so long after its answer.
    pub after: Duration,
    /// Nothing is wrong: it has too much to do at the moment, or no room in this reply.
    pub busy: bool,
}

/// The attempts that failed since the last one that succeeded; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    count: u32,
    last: SystemTime,
    /// What the CA said at the last one.
    later: Option<Later>,
}

impl Failures {
    /// One more failure, at `now`, after `earlier` ones.
    pub fn another(earlier: Option<Self>, now: SystemTime) -> Self {
        let count = earlier.map_or(0, |earlier| earlier.count);
        Self { count: count.saturating_add(1), last: now, later: None }
    }

    /// The same, where the CA said when to ask again.
    #[must_use]
    pub fn told(self, later: Option<Later>) -> Self {
        Self { later, ..self }
    }

    /// How many.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Before when the CA does not want to be asked again.
    pub fn not_before(&self) -> Option<SystemTime> {
        self.last.checked_add(self.later?.after)
    }
}

/// When to ask for the next certificate: of an identity that holds one of this `life` (or none), after these failures
/// (or none). `None` is at once.
pub fn next_attempt(life: Option<&Life>, failures: Option<&Failures>, jitter: Jitter) -> Option<SystemTime> {
    match (failures, life) {
        (Some(failures), life) => failures.last.checked_add(back_off(failures, life, jitter)),
        (None, Some(life)) => Some(renew_at(life, jitter)),
        (None, None) => None,
    }
}

/// How long to wait before the next connection to a CA that does not answer, after these failures.
pub fn reconnect_after(failures: &Failures, jitter: Jitter) -> Duration {
    let wait = spread(doubled(FIRST_RETRY, failures.count, RECONNECT_CAP), jitter);
    wait.max(failures.later.map_or(Duration::ZERO, |later| later.after))
}

/// When to ask first after an outage: at once where nothing is held; otherwise within a tenth of what is left, ten seconds at
/// most, so that not all nodes ask in the moment in which the CA comes back. Never before the CA wants it.
pub fn after_outage(life: Option<&Life>, failures: &Failures, now: SystemTime, jitter: Jitter) -> SystemTime {
    let within = life.map_or(Duration::ZERO, |life| (life.remaining(now) / 10).min(MAX_AFTER_OUTAGE));
    let at = now.checked_add(jitter.of(within)).unwrap_or(now);
    failures.not_before().map_or(at, |earliest| at.max(earliest))
}

/// Half of the life, up to a tenth of it earlier, so that what was issued together is not renewed together.
fn renew_at(life: &Life, jitter: Jitter) -> SystemTime {
    let span = life.span();
    let due = life.issued + (span / 2).saturating_sub(jitter.of(span / 10));
    // A certificate that arrived late in its life (a clock ahead, a reply that was repeated) must not make us ask in
    // a tight circle.
    let pause = (span / 10).min(life.remaining(life.received) / 2);
    due.max(life.received + pause)
}

fn back_off(failures: &Failures, life: Option<&Life>, jitter: Jitter) -> Duration {
    let floor = failures.later.map_or(Duration::ZERO, |later| later.after);
    hurried(wait(failures, life, jitter), failures, life).max(floor)
}

fn wait(failures: &Failures, life: Option<&Life>, jitter: Jitter) -> Duration {
    let (first, cap) = match life.map(Life::span) {
        None => (FIRST_RETRY, CAP_WITHOUT_CERTIFICATE),
        Some(span) => ((span / 100).clamp(FIRST_RETRY, MAX_FIRST_RETRY), (span / 12).clamp(MIN_CAP, MAX_CAP)),
    };
    match failures.later {
        // The CA knows when there is room. Those whom it told the same do not come back together.
        Some(Later { after, busy: true }) => after + jitter.of(doubled(after, failures.count, cap) / 2),
        _ => spread(doubled(first, failures.count, cap), jitter),
    }
}

fn hurried(wait: Duration, failures: &Failures, life: Option<&Life>) -> Duration {
    let Some(life) = life else { return wait };
    match life.remaining(failures.last) {
        Duration::ZERO => wait.min(CAP_WITHOUT_CERTIFICATE),
        // Near the end each wait is at most a quarter of what is left.
        left => wait.min((left / 4).max(FIRST_RETRY)),
    }
}

fn doubled(first: Duration, count: u32, cap: Duration) -> Duration {
    let factor = 1u32.checked_shl(count.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(cap)
}

/// Between half of the wait and all of it.
fn spread(wait: Duration, jitter: Jitter) -> Duration {
    wait / 2 + jitter.of(wait / 2)
}

const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_FIRST_RETRY: Duration = Duration::from_secs(5);
const MIN_CAP: Duration = Duration::from_secs(1);
const MAX_CAP: Duration = Duration::from_secs(300);
const CAP_WITHOUT_CERTIFICATE: Duration = Duration::from_secs(30);
const RECONNECT_CAP: Duration = Duration::from_secs(5);
const MAX_AFTER_OUTAGE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    /// Issued at `NOON`, so that clocks can be wrong in both directions.
    const NOON: u64 = 1_000_000_000_000;

    fn life(span: u64) -> Life {
        Life::new(at(NOON), at(NOON + span), at(NOON)).unwrap()
    }

    fn failures(count: u32, last: u64) -> Failures {
        (0..count).fold(None, |earlier, _| Some(Failures::another(earlier, at(last)))).unwrap()
    }

    #[test]
    fn it_counts_from_issuance_on_our_own_clock() {
        let hour = 3_600_000;
        let minute = 60_000;
        let due = |received: u64| {
            let life = Life::new(at(NOON), at(NOON + hour), at(received)).unwrap();
            let due = next_attempt(Some(&life), None, Jitter::new(0)).unwrap();
            due.duration_since(at(received)).unwrap().as_millis() as u64
        };
        assert_eq!(due(NOON), hour / 2);
        assert_eq!(due(NOON + minute), hour / 2 - minute, "our clock is ahead, or the reply came late");
        assert_eq!(due(NOON - minute), hour / 2, "our clock is behind");
        assert_eq!(due(NOON + 50 * minute), 5 * minute, "half of what is left, and not at once");
        assert!(Life::new(at(NOON), at(NOON), at(NOON)).is_none());
        assert!(Life::new(at(NOON), at(NOON - 1), at(NOON)).is_none());
    }

    #[test]
    fn retries_grow_to_a_cap_and_hurry_near_the_end() {
        let hour = life(3_600_000);
        let full = Jitter::new(u32::MAX);
        let wait = |count, last: u64| {
            let due = next_attempt(Some(&hour), Some(&failures(count, NOON + last)), full).unwrap();
            due.duration_since(at(NOON + last)).unwrap().as_secs_f64().round() as u64
        };
        assert_eq!([1, 2, 3, 4].map(|count| wait(count, 1_800_000)), [5, 10, 20, 40]);
        assert_eq!(wait(40, 1_800_000), 300, "the cap");
        assert_eq!(wait(40, 3_560_000), 10, "40 s are left");
        assert_eq!(wait(40, 4_000_000), 30, "expired: no hurry helps, but it goes on");
    }

    #[test]
    fn what_the_ca_says_is_a_floor_and_a_busy_one_is_asked_when_it_wants() {
        let hour = life(3_600_000);
        let wait = |later, count, jitter| {
            let failed = failures(count, NOON + 1_800_000).told(Some(later));
            let due = next_attempt(Some(&hour), Some(&failed), Jitter::new(jitter)).unwrap();
            due.duration_since(at(NOON + 1_800_000)).unwrap().as_millis()
        };
        let (soon, long) = (Duration::from_millis(100), Duration::from_secs(400));
        let busy = |after| Later { after, busy: true };
        assert_eq!([wait(busy(soon), 1, 0), wait(busy(soon), 1, u32::MAX / 2)], [100, 125], "no back-off of seconds");
        assert_eq!(wait(busy(soon), 4, u32::MAX / 2), 300, "who is told so again and again waits longer");
        assert_eq!(wait(busy(long), 9, 0), 400_000);
        let failed = |after| Later { after, busy: false };
        assert_eq!(wait(failed(soon), 1, 0), 2500, "a failure keeps its back-off");
        assert_eq!(wait(failed(long), 1, 0), 400_000);
        let away = failures(1, NOON).told(Some(failed(long)));
        assert_eq!(reconnect_after(&away, Jitter::new(7)), long);
        assert_eq!(away.not_before(), Some(at(NOON + 400_000)));
    }

    #[test]
    fn after_an_outage_not_all_ask_at_once() {
        let hour = life(3_600_000);
        let first = |life: Option<&Life>, now: u64, later, jitter| {
            let at = after_outage(life, &failures(3, NOON).told(later), at(now), Jitter::new(jitter));
            at.duration_since(self::at(now)).unwrap().as_millis()
        };
        assert_eq!(first(Some(&hour), NOON, None, u32::MAX), 9_999);
        assert_eq!(first(Some(&hour), NOON + 3_590_000, None, u32::MAX), 1_000, "a second of ten");
        assert_eq!(first(None, NOON, None, u32::MAX), 0);
        let later = Later { after: Duration::from_secs(30), busy: true };
        assert_eq!(first(Some(&hour), NOON, Some(later), 5), 30_000);
    }

    #[test]
    fn a_new_identity_is_asked_for_at_once() {
        assert_eq!(next_attempt(None, None, Jitter::new(7)), None);
        let due = next_attempt(None, Some(&failures(1, NOON)), Jitter::new(0)).unwrap();
        assert_eq!(due, at(NOON + 100));
    }

    proptest! {
        #[test]
        fn the_first_attempt_lies_between_two_fifths_and_half(span in 1_000u64..100_000_000, parts: u32) {
            let life = life(span);
            let due = next_attempt(Some(&life), None, Jitter::new(parts)).unwrap();
            prop_assert!(due >= life.issued() + life.span() * 2 / 5);
            prop_assert!(due <= life.issued() + life.span() / 2);
        }

        #[test]
        fn an_attempt_always_comes_before_the_end(
            span in 1_000u64..100_000_000, late in 0u64..100_000_000, count in 1u32..100, parts: u32,
        ) {
            let life = Life::new(at(NOON), at(NOON + span), at(NOON + late % span)).unwrap();
            let due = next_attempt(Some(&life), None, Jitter::new(parts)).unwrap();
            prop_assert!(due < life.expires());
            prop_assert!(due > life.received());
            let failed = failures(count, NOON + late % span);
            if life.remaining(failed.last) > FIRST_RETRY {
                prop_assert!(next_attempt(Some(&life), Some(&failed), Jitter::new(parts)).unwrap() < life.expires());
            }
        }

        #[test]
        fn waits_are_bounded_and_never_shrink(
            span in 1_000u64..100_000_000, last in 0u64..200_000_000, count in 1u32..60, parts: u32,
        ) {
            let life = life(span);
            let wait = |count| {
                let failed = failures(count, NOON + last);
                let due = next_attempt(Some(&life), Some(&failed), Jitter::new(parts)).unwrap();
                due.duration_since(failed.last).unwrap()
            };
            prop_assert!(wait(count) <= wait(count + 1));
            prop_assert!(wait(count) >= FIRST_RETRY / 2);
            prop_assert!(wait(count) <= MAX_CAP);
            prop_assert!(reconnect_after(&failures(count, NOON), Jitter::new(parts)) <= RECONNECT_CAP);
        }

        #[test]
        fn jitter_never_more_than_halves_a_wait(count in 1u32..60, a: u32, b: u32) {
            let wait = |parts| reconnect_after(&failures(count, NOON), Jitter::new(parts));
            prop_assert!(wait(a) * 2 >= wait(b));
        }

        #[test]
        fn a_later_issue_is_renewed_later(span in 1_000u64..100_000_000, later in 0u64..10_000_000, parts: u32) {
            let due = |issued: u64| {
                let life = Life::new(at(issued), at(issued + span), at(issued)).unwrap();
                next_attempt(Some(&life), None, Jitter::new(parts)).unwrap()
            };
            prop_assert_eq!(due(NOON + later).duration_since(due(NOON)).unwrap(), Duration::from_millis(later));
        }

        #[test]
        fn any_times_of_a_ca_make_a_life_or_none(issued: u32, end: u32, received: u32, parts: u32) {
            let second = |s: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(s.into());
            if let Some(life) = Life::new(second(issued), second(end), second(received)) {
                prop_assert!(life.issued() < life.expires());
                prop_assert!(life.expires() <= second(end));
                prop_assert!(next_attempt(Some(&life), None, Jitter::new(parts)).is_some());
            }
        }
    }
}
