//! Who holds how many of the connections that may be open.
//!
//! When all seats are taken, whoever holds the most gives up its oldest for the newcomer. So nobody is kept out by the
//! connections of one other, and one that has a single connection never loses it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The seats of one kind of holders.
#[derive(Debug, Clone)]
pub(super) struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    limit: usize,
    total: usize,
    next: u64,
    /// Each one's seats by their numbers, the oldest first.
    by_holder: HashMap<Arc<str>, BTreeMap<u64, oneshot::Sender<()>>>,
    /// How many each has.
    counts: BTreeSet<(usize, Arc<str>)>,
}

/// What a newcomer costs when all seats are taken.
#[derive(Debug, PartialEq, Eq)]
enum Cost {
    /// The oldest seat of whoever holds the most.
    OfTheLargest,
    /// Its own oldest.
    ItsOwn,
    /// It is sent away: nobody has more than one.
    Itself,
}

fn cost(own: usize, most: usize) -> Cost {
    if most > own + 1 {
        Cost::OfTheLargest
    } else if own > 0 {
        Cost::ItsOwn
    } else {
        Cost::Itself
    }
}

/// A seat, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    holder: Arc<str>,
    number: u64,
}

/// Ready when the seat is another's.
pub(super) type GivenUp = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl Seats {
    pub(super) fn new(limit: usize) -> Self {
        let (by_holder, counts) = (HashMap::new(), BTreeSet::new());
        Self(Arc::new(Mutex::new(Taken { limit, total: 0, next: 0, by_holder, counts })))
    }

    /// A seat, and when it has to be given up; nothing where there is none to be had.
    pub(super) fn take(&self, holder: &str) -> Option<(Seat, GivenUp)> {
        let mut taken = self.taken();
        if taken.total >= taken.limit && !taken.make_room(holder) {
            return None;
        }
        let (number, (giving, given)) = (taken.next, oneshot::channel());
        taken.next += 1;
        let holder: Arc<str> = holder.into();
        taken.change(&holder, |seats| drop(seats.insert(number, giving)));
        let given_up = Box::pin(async move {
            if given.await.is_err() {
                // The seat itself is gone.
                std::future::pending::<()>().await;
            }
        });
        Some((Seat { seats: self.clone(), holder, number }, given_up))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Takes a seat from somebody for the newcomer; whether it may have it.
    fn make_room(&mut self, newcomer: &str) -> bool {
        let own = self.by_holder.get_key_value(newcomer).map(|(holder, seats)| (holder.clone(), seats.len()));
        let Some((most, largest)) = self.counts.last().cloned() else { return false };
        let loser = match (cost(own.as_ref().map_or(0, |(_, own)| *own), most), own) {
            (Cost::OfTheLargest, _) => largest,
            (Cost::ItsOwn, Some((own, _))) => own,
            (Cost::ItsOwn | Cost::Itself, _) => return false,
        };
        self.change(&loser, |seats| {
            // Whoever has gone already needs no word.
            seats.pop_first().map(|(_, giving)| giving.send(()));
        });
        true
    }

    fn change(&mut self, holder: &Arc<str>, change: impl FnOnce(&mut BTreeMap<u64, oneshot::Sender<()>>)) {
        let seats = self.by_holder.entry(holder.clone()).or_default();
        let before = seats.len();
        change(seats);
        let after = seats.len();
        if after == 0 {
            self.by_holder.remove(holder);
        }
        self.total = self.total + after - before;
        self.counts.remove(&(before, holder.clone()));
        if after > 0 {
            self.counts.insert((after, holder.clone()));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        // Another may have it already.
        taken.change(&self.holder, |seats| drop(seats.remove(&self.number)));
    }
}

/// Whose a connection is before anybody has proved anything: an address's, or the network's of IPv6 that one host has all of.
pub(super) fn origin(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn is_given_up(given_up: &mut GivenUp) -> bool {
        tokio::time::timeout(Duration::ZERO, given_up).await.is_ok()
    }

    #[tokio::test]
    async fn who_holds_the_most_gives_way_and_who_holds_one_never_does() {
        let seats = Seats::new(3);
        let (mut first, mut second, mut third) =
            (seats.take("a").unwrap(), seats.take("a").unwrap(), seats.take("a").unwrap());
        // The oldest goes for another.
        let mut other = seats.take("b").unwrap();
        assert!(is_given_up(&mut first.1).await && !is_given_up(&mut second.1).await);
        // Both have about as many: the newcomer's own goes.
        let mut again = seats.take("b").unwrap();
        assert!(is_given_up(&mut other.1).await && !is_given_up(&mut second.1).await);
        let mut one = seats.take("c").unwrap();
        assert!(is_given_up(&mut second.1).await);
        // Each has one.
        assert!(seats.take("d").is_none());
        for given_up in [&mut third.1, &mut again.1, &mut one.1] {
            assert!(!is_given_up(given_up).await);
        }
        // Those that were given up count no more, and free nothing a second time.
        drop((first, second, other));
        assert!(seats.take("d").is_none());
        drop(third);
        let _fourth = seats.take("d").unwrap();
        assert!(seats.take("e").is_none());
    }

    #[test]
    fn nothing_is_left_of_those_who_are_gone() {
        let seats = Seats::new(100);
        let held: Vec<_> = (0..50).map(|number| seats.take(&format!("{}", number % 7)).unwrap()).collect();
        assert_eq!(seats.taken().total, 50);
        drop(held);
        let taken = seats.taken();
        assert!(taken.total == 0 && taken.by_holder.is_empty() && taken.counts.is_empty());
    }

    #[test]
    fn a_host_is_an_address_or_a_network() {
        for (ip, expected) in
            [("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::")]
        {
            assert_eq!(origin(ip.parse().unwrap()).to_string(), expected);
        }
    }
}
