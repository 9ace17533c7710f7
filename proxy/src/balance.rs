//! Which endpoint gets the next request: power of two choices by what is in flight.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Chooses between `count` endpoints: of two at random, the one with less in flight.
///
/// `load` says how much an endpoint has in flight, or `None` to pass it over; `random(n)` is below `n`.
pub(crate) fn choose(
    count: usize,
    load: impl Fn(usize) -> Option<usize>,
    mut random: impl FnMut(usize) -> usize,
) -> Option<usize> {
    let open: Vec<(usize, usize)> = (0..count).filter_map(|at| load(at).map(|load| (load, at))).collect();
    let first = open.get(random(open.len().max(1)))?;
    // A second one that differs from the first, where there is one.
    let others = open.len() - 1;
    if others == 0 {
        return Some(first.1);
    }
    let skip = open.iter().position(|o| o == first).unwrap_or_default();
    let second = random(others);
    let second = open.get(if second >= skip { second + 1 } else { second })?;
    Some(if second.0 < first.0 { second.1 } else { first.1 })
}

/// What one worker knows of the endpoints that it sends to, by their mesh address.
#[derive(Default)]
pub(crate) struct Loads {
    loads: Mutex<HashMap<SocketAddr, Arc<Load>>>,
    seed: AtomicU64,
}

impl Loads {
    pub(crate) fn new(seed: u64) -> Self {
        Self { loads: Mutex::default(), seed: AtomicU64::new(seed | 1) }
    }

    pub(crate) fn of(&self, endpoint: SocketAddr) -> Arc<Load> {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.entry(endpoint).or_default().clone()
    }

    /// Forgets the endpoints that are neither in use nor listed.
    pub(crate) fn retain(&self, listed: impl Fn(&SocketAddr) -> bool) {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.retain(|address, load| Arc::strong_count(load) > 1 || listed(address));
    }

    /// A number below `n`, by xorshift: it spreads load and guards nothing.
    pub(crate) fn random(&self, n: usize) -> usize {
        let mut x = self.seed.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.seed.store(x, Ordering::Relaxed);
        usize::try_from(x % (n.max(1) as u64)).unwrap_or_default()
    }
}

/// What is in flight to one endpoint, and whether it failed just now.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicUsize,
    failure: Mutex<Option<Failure>>,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    until: Instant,
    pause: Duration,
}

impl Load {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts one request until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Whether it failed so recently that others are to be preferred.
    pub(crate) fn is_failing(&self, now: Instant) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|failure| now < failure.until)
    }

    /// It could not be connected to: the pause doubles with each failure in a row.
    pub(crate) fn failed(&self, now: Instant) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = failure.map_or(FIRST_PAUSE, |f| (f.pause * 2).min(LAST_PAUSE));
        *failure = Some(Failure { until: now + pause, pause });
    }

    pub(crate) fn connected(&self) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A request in flight, counted while it lives.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Load>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_choice_is_open_and_never_the_busier_of_the_two(
            loads in prop::collection::vec(prop::option::of(0usize..9), 0..8),
            seed in any::<u64>(),
        ) {
            let random = Loads::new(seed);
            let mut drawn = Vec::new();
            let chosen = choose(loads.len(), |at| loads[at], |n| { let r = random.random(n); drawn.push(r); r });
            let open: Vec<usize> = (0..loads.len()).filter(|at| loads[*at].is_some()).collect();
            match chosen {
                None => prop_assert!(open.is_empty()),
                Some(chosen) => {
                    prop_assert!(open.contains(&chosen));
                    if open.len() == 2 {
                        prop_assert_eq!(loads[chosen], open.iter().map(|at| loads[*at]).min().unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn every_endpoint_gets_its_share() {
        let (loads, random) = ([Some(0); 5], Loads::new(7));
        let mut counts = [0; 5];
        for _ in 0..5000 {
            counts[choose(5, |at| loads[at], |n| random.random(n)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_failure_pauses_longer_each_time_and_a_success_forgives() {
        let (load, start) = (Load::default(), Instant::now());
        load.failed(start);
        assert!(load.is_failing(start) && !load.is_failing(start + FIRST_PAUSE));
        load.failed(start);
        assert!(load.is_failing(start + FIRST_PAUSE));
        (0..20).for_each(|_| load.failed(start));
        assert!(!load.is_failing(start + LAST_PAUSE));
        load.connected();
        assert!(!load.is_failing(start));
    }

    #[test]
    fn what_is_in_flight_is_counted_until_it_ends() {
        let load = Arc::new(Load::default());
        let (one, two) = (load.begin(), load.begin());
        assert_eq!(load.in_flight(), 2);
        drop((one, two));
        assert_eq!(load.in_flight(), 0);
    }
}
