//! What is over by the clock is not destroyed at first sight: a clock that was set ahead by mistake may be set right again.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// Since when things have been seen to be over.
#[derive(Debug)]
pub(crate) struct Patience<K>(Mutex<BTreeMap<K, SystemTime>>);

impl<K> Default for Patience<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Patience<K> {
    /// Of everything that is over now, what has been so at each look for an hour.
    pub(crate) fn over(&self, over: impl IntoIterator<Item = K>, now: SystemTime) -> Vec<K> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let still = |key: K| {
            let since = seen.get(&key).copied().filter(|since| *since <= now).unwrap_or(now);
            (key, since)
        };
        let present: BTreeMap<K, SystemTime> = over.into_iter().map(still).collect();
        *seen = present;
        let long = |since: SystemTime| now.duration_since(since).is_ok_and(|passed| passed >= LONG);
        seen.iter().filter(|(_, since)| long(**since)).map(|(key, _)| key.clone()).collect()
    }
}

/// A clock that is wrong at the start of a machine has been set by then.
const LONG: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_given_up_when_it_was_over_for_an_hour_at_each_look() {
        let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(10_000 + second);
        let patience = Patience::default();
        let check = |over: &[&'static str], second, expected: &[&str]| {
            assert_eq!(patience.over(over.iter().copied(), at(second)), expected, "{second}");
        };
        check(&["a"], 0, &[]);
        check(&["a", "b"], 3599, &[]);
        check(&["a", "b"], 3600, &["a"]);
        // The clock was ahead and is right again: `b` is not over, and begins anew when it is.
        check(&["a"], 3700, &["a"]);
        check(&["a", "b"], 8000, &["a"]);
        // Set back, it begins anew too.
        check(&["a", "b"], 10, &[]);
        check(&["a", "b"], 3610, &["a", "b"]);
    }
}
