//! How many denials are explained: finding the reason costs time in proportion to the rules.

use std::time::{Duration, SystemTime};

/// A token bucket, and the count of those that got no token.
pub(super) struct Bucket {
    tokens: f64,
    at: SystemTime,
    refused: u64,
    told: SystemTime,
}

impl Bucket {
    pub(super) fn new() -> Self {
        Self { tokens: BURST, at: SystemTime::UNIX_EPOCH, refused: 0, told: SystemTime::UNIX_EPOCH }
    }

    /// Whether there is a token.
    pub(super) fn take(&mut self, now: SystemTime) -> bool {
        // A clock that was set back gives nothing, and counts from there.
        let passed = now.duration_since(self.at).unwrap_or_default();
        self.at = now;
        self.tokens = (self.tokens + passed.as_secs_f64() * A_SECOND).min(BURST);
        if self.tokens < 1.0 {
            self.refused += 1;
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// How many got none since it was told last; at most once a second.
    pub(super) fn tell(&mut self, now: SystemTime) -> Option<u64> {
        // Told in what is now the future: the clock was set back.
        let due = now.duration_since(self.told).map_or(true, |passed| passed >= TELL_EVERY);
        if self.refused == 0 || !due {
            return None;
        }
        self.told = now;
        Some(std::mem::take(&mut self.refused))
    }
}

const A_SECOND: f64 = 100.0;
const BURST: f64 = 200.0;
const TELL_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_passes_then_a_hundred_a_second() {
        let mut bucket = Bucket::new();
        let mut taken = |now| (0..1000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(at(0)), 200);
        assert_eq!(taken(at(500)), 50);
        assert_eq!(taken(at(1500)), 100);
        assert_eq!(taken(at(1_000_000)), 200);
        assert_eq!(taken(at(10)), 0, "a clock that was set back");
        assert_eq!(taken(at(1010)), 100);
    }

    #[test]
    fn what_was_left_out_is_told_once_a_second_and_once() {
        let mut bucket = Bucket::new();
        assert_eq!((0..203).filter(|_| bucket.take(at(0))).count(), 200);
        assert_eq!(bucket.tell(at(0)), Some(3));
        assert!(!bucket.take(at(1)));
        assert_eq!(bucket.tell(at(999)), None);
        assert_eq!(bucket.tell(at(1000)), Some(1));
        assert_eq!(bucket.tell(at(5000)), None);
    }
}
