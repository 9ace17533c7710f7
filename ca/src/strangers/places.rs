//! Who is served at a time: strangers all, so none of them holds the others up for long.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep_until},
};

/// The places of an endpoint.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// The oldest first.
    taken: VecDeque<Taken>,
    bounds: Bounds,
}

/// How many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at a time.
    pub(super) all: usize,
    /// Of them, from one address, or one network of IPv6 that a single host has as a rule.
    pub(super) of_one: usize,
    /// How long a connection may take when somebody waits for its place.
    pub(super) grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { all: 256, of_one: 32, grace: Duration::from_secs(1) }
    }
}

#[derive(Debug)]
struct Taken {
    by: IpAddr,
    since: Instant,
    end: oneshot::Sender<()>,
}

/// Held while a connection is served.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    end: oneshot::Receiver<()>,
}

impl Places {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { free: Arc::new(Semaphore::new(bounds.all)), taken: VecDeque::new(), bounds }
    }

    /// A place for a connection from there, once there is one; `None` where as many from there are served already.
    ///
    /// When all are taken, the connection that has had its place for the longest gives it up after its grace.
    pub(super) async fn take(&mut self, from: IpAddr) -> Option<Place> {
        let by = network(from);
        self.forget_finished();
        if self.taken.iter().filter(|taken| taken.by == by).count() >= self.bounds.of_one {
            return None;
        }
        let acquire = Arc::clone(&self.free).acquire_owned();
        let mut acquire = std::pin::pin!(acquire);
        let oldest = self.taken.front().map_or_else(Instant::now, |oldest| oldest.since) + self.bounds.grace;
        let permit = tokio::select! {
            biased;
            permit = &mut acquire => permit,
            () = sleep_until(oldest) => {
                self.forget_finished();
                if let Some(oldest) = self.taken.pop_front() {
                    tracing::debug!(from = %oldest.by, "ended a connection of a stranger that had its time while others waited");
                    // It may just have ended by itself.
                    oldest.end.send(()).ok();
                }
                acquire.await
            }
        };
        let (end, ended) = oneshot::channel();
        self.taken.push_back(Taken { by, since: Instant::now(), end });
        // Nobody closes the semaphore.
        Some(Place { _permit: permit.ok()?, end: ended })
    }

    fn forget_finished(&mut self) {
        self.taken.retain(|taken| !taken.end.is_closed());
    }
}

impl Place {
    /// Until the place is wanted by somebody else.
    pub(super) async fn is_wanted(&mut self) {
        drop((&mut self.end).await);
    }
}

/// Whoever has an address of IPv6 has 2^64 of them.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(four) => IpAddr::V4(four),
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 4, of_one: 2, grace: Duration::from_secs(1) };

    fn host(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_gives_way_after_its_grace_and_the_oldest_first() {
        let (mut places, began) = (Places::new(BOUNDS), Instant::now());
        let mut silent = Vec::new();
        for last in 0..4 {
            silent.push(places.take(host(last)).await.unwrap());
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        let mut first = silent.remove(0);
        let giving_way = async {
            first.is_wanted().await;
            drop(first);
        };
        let (place, ()) = tokio::join!(places.take(host(9)), giving_way);
        assert!(place.is_some() && began.elapsed() == BOUNDS.grace, "{:?}", began.elapsed());
        // The others were not asked to go.
        for other in &mut silent {
            assert!(other.end.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        }
        // One that is done makes room at once.
        drop(silent.remove(0));
        let before = Instant::now();
        assert!(places.take(host(8)).await.is_some());
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_a_few_places_and_no_more() {
        let mut places = Places::new(BOUNDS);
        let six = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = places.take(host(1)).await.unwrap();
        let two = places.take(six("::ffff:192.0.2.1")).await.unwrap();
        assert!(places.take(host(1)).await.is_none());
        drop(one);
        assert!(places.take(host(1)).await.is_some_and(|place| {
            drop(place);
            true
        }));
        drop(two);
        let held = [places.take(six("2001:db8::1")).await, places.take(six("2001:db8::2")).await];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(six("2001:db8::3")).await.is_none(), "of one network");
        assert!(places.take(six("2001:db8:0:1::3")).await.is_some());
    }
}
