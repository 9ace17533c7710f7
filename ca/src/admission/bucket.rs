//! How much each caller may ask for: a rate with a burst, one for each key, with time as an argument.
//!
//! A bucket is one moment (the generic cell rate algorithm): when it would be full again. Taking moves that moment on; what would
//! move it further than the burst allows is refused, and the distance is how long to wait. Idle buckets are full ones, and are
//! forgotten. Ours and not a library's because a take has a weight, `now` is an argument, and the table has a bound.

use std::{collections::HashMap, time::Duration};

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Between two of them.
    interval: Duration,
    /// As many at once.
    burst: u32,
}

impl Rate {
    /// So many a minute, and so many at once; `None` where either is nothing.
    pub(crate) fn per_minute(count: u32, burst: u32) -> Option<Self> {
        let interval = Duration::from_secs(60).checked_div(count)?;
        (burst > 0 && !interval.is_zero()).then_some(Self { interval, burst })
    }
}

/// The buckets of all callers. Moments are counted from any one beginning.
#[derive(Debug)]
pub(crate) struct Buckets {
    rate: Rate,
    full_at: HashMap<Box<str>, Duration>,
    /// Swept when it has so many entries.
    sweep_at: usize,
}

impl Buckets {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, full_at: HashMap::new(), sweep_at: SWEEP }
    }

    /// Takes `weight` from a caller's bucket.
    ///
    /// # Errors
    /// How long the caller should wait before it asks for the same again. Nothing is taken then.
    pub(crate) fn take(&mut self, caller: &str, weight: u32, now: Duration) -> Result<(), Duration> {
        let Rate { interval, burst } = self.rate;
        let full_at = self.full_at.get(caller).copied().unwrap_or_default().max(now);
        // More than a burst at once would never fit: it takes all of it, when the bucket is full.
        let next = full_at + interval * weight.min(burst);
        let latest = now + interval * burst;
        if next > latest {
            return Err(next - latest);
        }
        match self.full_at.get_mut(caller) {
            Some(known) => *known = next,
            None => self.insert(caller, next, now),
        }
        Ok(())
    }

    /// Gives back what was taken for nothing.
    pub(crate) fn give_back(&mut self, caller: &str, weight: u32) {
        let Rate { interval, burst } = self.rate;
        if let Some(full_at) = self.full_at.get_mut(caller) {
            *full_at = full_at.saturating_sub(interval * weight.min(burst));
        }
    }

    fn insert(&mut self, caller: &str, next: Duration, now: Duration) {
        if self.full_at.len() >= self.sweep_at {
            self.full_at.retain(|_, full_at| *full_at > now);
            // Twice what is in use: sweeping stays cheap by the entry.
            self.sweep_at = (self.full_at.len() * 2).max(SWEEP);
        }
        self.full_at.insert(caller.into(), next);
    }
}

const SWEEP: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn buckets(per_minute: u32, burst: u32) -> Buckets {
        Buckets::new(Rate::per_minute(per_minute, burst).unwrap())
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let mut buckets = buckets(60, 3);
        let at = Duration::from_secs;
        for _ in 0..3 {
            assert_eq!(buckets.take("a", 1, at(0)), Ok(()));
        }
        assert_eq!(buckets.take("a", 1, at(0)), Err(at(1)));
        // Another caller has a bucket of its own.
        assert_eq!(buckets.take("b", 3, at(0)), Ok(()));
        assert_eq!(buckets.take("a", 1, at(1)), Ok(()));
        assert_eq!(buckets.take("a", 2, at(1)), Err(at(2)));
        assert_eq!(buckets.take("a", 2, at(3)), Ok(()));
        // What is more than a burst waits for a full bucket, and not for ever.
        assert_eq!(buckets.take("a", 100, at(100)), Ok(()));
        assert_eq!(buckets.take("a", 100, at(100)), Err(at(3)));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let (mut buckets, at) = (buckets(60, 2), Duration::from_secs);
        for _ in 0..100 {
            assert_eq!(buckets.take("a", 1, at(0)), Ok(()));
            buckets.give_back("a", 1);
        }
        assert_eq!((buckets.take("a", 1, at(0)), buckets.take("a", 1, at(0))), (Ok(()), Ok(())));
        assert_eq!(buckets.take("a", 1, at(0)), Err(at(1)));
        // Never more than a burst, also for one who is given back what time has given back already.
        buckets.give_back("a", 1);
        buckets.give_back("a", 1);
        buckets.give_back("a", 1);
        buckets.give_back("nobody", 1);
        assert_eq!(buckets.take("a", 2, at(1000)), Ok(()));
        assert_eq!(buckets.take("a", 1, at(1000)), Err(at(1)));
    }

    #[test]
    fn a_rate_of_nothing_is_none() {
        for (count, burst) in [(0, 1), (1, 0), (0, 0)] {
            assert_eq!(Rate::per_minute(count, burst), None);
        }
    }

    #[test]
    fn idle_callers_are_forgotten() {
        let mut buckets = buckets(600, 10);
        for caller in 0..10_000u32 {
            // Each is full again after a tenth of a second.
            buckets.take(&caller.to_string(), 1, Duration::from_secs(caller.into())).unwrap();
        }
        assert!(buckets.full_at.len() <= SWEEP, "{} are known", buckets.full_at.len());
    }

    proptest! {
        /// In no window does a caller get more than the burst and what the rate gives in it; and one who waits as long as it is
        /// told gets what it asked for.
        #[test]
        fn nobody_gets_more_than_the_rate(
            per_minute in 1u32..6000,
            burst in 1u32..50,
            asks in proptest::collection::vec((0u64..5000, 1u32..20), 1..200),
        ) {
            let rate = Rate::per_minute(per_minute, burst).unwrap();
            let mut buckets = Buckets::new(rate);
            let (mut now, mut given) = (Duration::ZERO, 0u64);
            for (wait, weight) in asks {
                now += Duration::from_millis(wait);
                match buckets.take("a", weight, now) {
                    Ok(()) => given += u64::from(weight.min(burst)),
                    Err(after) => {
                        prop_assert!(after > Duration::ZERO);
                        now += after;
                        prop_assert_eq!(buckets.take("a", weight, now), Ok(()));
                        given += u64::from(weight.min(burst));
                    }
                }
                let most = u128::from(burst) + now.as_nanos() / rate.interval.as_nanos();
                prop_assert!(u128::from(given) <= most, "{given} in {now:?}, at most {most}");
            }
        }
    }
}
