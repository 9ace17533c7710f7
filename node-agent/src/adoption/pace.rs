//! How often the CA is told.

use std::time::Duration;

use tokio::time::Instant;

/// A few reports at once, and then no faster than the CA takes them; of what can wait, one now and then.
///
/// The CA takes sixty a minute of a node, and refuses the rest. To put one together costs the more the more is held.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many may follow each other at once.
    left: u32,
    /// Since when `left` is what it is.
    since: Instant,
    last: Option<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now, last: None }
    }

    /// The moment from which on the next report may be made: of something that the CA waits for, or of what can wait.
    pub(super) fn next(&self, urgent: bool) -> Instant {
        match (urgent, self.last) {
            (true, _) if self.left > 0 => self.since,
            (true, _) => self.since + EACH,
            (false, Some(last)) => last + CALM,
            (false, None) => self.since,
        }
    }

    /// One was made.
    pub(super) fn made(&mut self, now: Instant) {
        let grown = now.duration_since(self.since).as_millis() / EACH.as_millis();
        self.left = self.left.saturating_add(u32::try_from(grown).unwrap_or(u32::MAX)).min(AT_ONCE);
        // What is left over of a span counts on, unless there is no room for it.
        self.since = match self.left {
            AT_ONCE => now,
            _ => self.since + EACH.saturating_mul(u32::try_from(grown).unwrap_or(u32::MAX)),
        };
        self.left = self.left.saturating_sub(1);
        self.last = Some(now);
    }
}

const AT_ONCE: u32 = 8;
/// Forty a minute.
const EACH: Duration = Duration::from_millis(1500);
/// As long as nothing is waited for.
const CALM: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_told_at_once_and_never_more_often_than_the_ca_takes() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut made) = (start, Vec::new());
        while now < start + Duration::from_secs(120) {
            now = now.max(pace.next(true)) + Duration::from_millis(30);
            pace.made(now);
            made.push(now);
        }
        let within = |from: Instant, span| made.iter().filter(|at| **at >= from && **at < from + span).count();
        assert!(within(start, Duration::from_millis(300)) >= 8, "at once");
        assert!(made.iter().all(|from| within(*from, Duration::from_secs(60)) <= 50), "the CA takes sixty a minute");
        assert!(within(start + Duration::from_secs(60), Duration::from_secs(60)) >= 35, "and no slower than need be");
        // After a pause there is room again.
        pace.made(now + Duration::from_secs(60));
        assert!(pace.next(true) <= now + Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_is_told_now_and_then() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.next(false), start);
        pace.made(start);
        assert_eq!(pace.next(false), start + CALM);
        assert_eq!(pace.next(true), start, "something happened");
    }
}
