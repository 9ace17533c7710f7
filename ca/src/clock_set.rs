//! A clock that somebody sets, or a machine that slept: what is due by the new time is not left until the next look.

use std::time::{Duration, SystemTime};

use alcazar_service::clock::Clock;
use tokio::time::{Instant, sleep};

/// Notices when the clock goes otherwise than time passes.
pub(crate) struct ClockSet {
    clock: Clock,
    seen: (SystemTime, Instant),
}

impl ClockSet {
    pub(crate) fn new(clock: &Clock) -> Self {
        Self { clock: Clock::clone(clock), seen: (clock(), Instant::now()) }
    }

    /// Whether the clock was set since the last look.
    pub(crate) fn look(&mut self) -> bool {
        let now = ((self.clock)(), Instant::now());
        let passed = now.1.duration_since(self.seen.1);
        let was_set = is_set(self.seen.0, now.0, passed);
        self.seen = now;
        was_set
    }

    /// Waits until the clock was set. Nothing is lost by not waiting to the end.
    pub(crate) async fn wait(&mut self) {
        loop {
            sleep(LOOK).await;
            if self.look() {
                return;
            }
        }
    }
}

/// Whether a clock that showed `before` and shows `now` was set in between, when this much time has passed.
fn is_set(before: SystemTime, now: SystemTime, passed: Duration) -> bool {
    let ahead = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
    let shown = ahead(before, now);
    ahead(now, before) > TOLERANCE || shown.abs_diff(passed) > TOLERANCE
}

const LOOK: Duration = Duration::from_secs(1);
/// A clock that is disciplined goes a little wrong, and a process is not always woken in time.
const TOLERANCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_with_time_was_not_set() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let check = |before, now, passed, expected| {
            assert_eq!(is_set(at(before), at(now), Duration::from_secs(passed)), expected, "{before} {now} {passed}");
        };
        check(1000, 1001, 1, false);
        check(1000, 1000, 1, false);
        check(1000, 990, 1, false);
        check(1000, 1100, 100, false);
        check(1000, 1100, 1, true);
        check(1000, 900, 1, true);
        check(1000, 1000, 100, true);
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_so_once() {
        let hands = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(1000));
        let read = hands.clone();
        let began = Instant::now();
        let clock: Clock = std::sync::Arc::new(move || {
            let set = read.load(std::sync::atomic::Ordering::SeqCst);
            SystemTime::UNIX_EPOCH + Duration::from_secs(set) + began.elapsed()
        });
        let mut watch = ClockSet::new(&clock);
        let long = Duration::from_secs(3600);
        tokio::time::timeout(long, watch.wait()).await.unwrap_err();
        hands.store(5000, std::sync::atomic::Ordering::SeqCst);
        tokio::time::timeout(long, watch.wait()).await.unwrap();
        tokio::time::timeout(long, watch.wait()).await.unwrap_err();
        hands.store(1000, std::sync::atomic::Ordering::SeqCst);
        tokio::time::timeout(long, watch.wait()).await.unwrap();
    }
}
