//! Who holds how many of the connections and streams that may be open.
//!
//! When there is no room, whoever holds the most gives up its oldest connection that does nothing. So nobody is kept out by what
//! one other has opened, and nobody loses a stream that is in use.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alcazar_identity::SocketName;
use tokio::sync::oneshot;

use crate::peer::User;

/// What may be open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections in all.
    pub(crate) connections: usize,
    /// Connections of one holder.
    pub(crate) each: usize,
    /// Streams of one holder.
    pub(crate) streams: usize,
}

/// Who has a share of its own: a user or a pod, on the shared socket or on a workload's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) socket: Option<SocketName>,
    pub(crate) user: User,
}

/// The seats of an agent, for all of its sockets.
#[derive(Debug, Clone)]
pub(crate) struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    limits: Limits,
    next: u64,
    /// Each one's connections by their numbers, the oldest first.
    by_holder: BTreeMap<Holder, BTreeMap<u64, Connected>>,
}

#[derive(Debug)]
struct Connected {
    streams: usize,
    /// Whether there was a stream since somebody asked.
    used: bool,
    giving: oneshot::Sender<()>,
}

/// The seat of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Seats,
    holder: Holder,
    number: u64,
}

/// The seat of a stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamSeat(Arc<Seat>);

/// Ready when the seat is another's.
pub(crate) type GivenUp = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Limits {
    /// What this process has descriptors for: a connection takes two, its own and that of the process that made it.
    pub(crate) fn of_this_process() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let descriptors = descriptors.and_then(|all| usize::try_from(all).ok()).unwrap_or(MOST_DESCRIPTORS);
        let connections = (descriptors.min(MOST_DESCRIPTORS).saturating_sub(RESERVED) / 2).max(1);
        // One user may have half of them, so that there is room for another even before the first gives way.
        Self { connections, each: (connections / 2).clamp(1, MOST_EACH), streams: MOST_STREAMS }
    }
}

/// Lets this process open as many files as the system allows it: by default it is a thousand, for the sake of programs that use
/// `select`.
pub fn use_all_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "cannot use more than {current:?} descriptors; that many callers fewer can be served");
    }
}

impl Seats {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Taken { limits, next: 0, by_holder: BTreeMap::new() })))
    }

    /// A seat for a connection, and when it has to be given up; nothing where all that could give way are in use.
    pub(crate) fn take(&self, holder: Holder) -> Option<(Seat, GivenUp)> {
        let mut taken = self.taken();
        if !taken.make_room(&holder) {
            return None;
        }
        let (number, (giving, given)) = (taken.next, oneshot::channel());
        taken.next += 1;
        let connected = Connected { streams: 0, used: false, giving };
        taken.by_holder.entry(holder.clone()).or_default().insert(number, connected);
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

impl Seat {
    /// A seat for a stream of this connection; nothing where its holder has as many as it may.
    pub(crate) fn stream(self: &Arc<Self>) -> Option<StreamSeat> {
        let mut taken = self.seats.taken();
        let most = taken.limits.streams;
        let connections = taken.by_holder.get_mut(&self.holder)?;
        if connections.values().map(|connected| connected.streams).sum::<usize>() >= most {
            return None;
        }
        // A connection that was given up has no streams any more.
        let connected = connections.get_mut(&self.number)?;
        (connected.streams, connected.used) = (connected.streams + 1, true);
        Some(StreamSeat(self.clone()))
    }

    /// Whether there is a stream, or was one since this was last asked.
    pub(crate) fn was_used(&self) -> bool {
        let mut taken = self.seats.taken();
        let connections = taken.by_holder.get_mut(&self.holder);
        let Some(connected) = connections.and_then(|all| all.get_mut(&self.number)) else { return false };
        std::mem::replace(&mut connected.used, false) || connected.streams > 0
    }
}

impl Taken {
    /// Makes room for one more connection of a holder; whether there is.
    fn make_room(&mut self, newcomer: &Holder) -> bool {
        let own = self.by_holder.get(newcomer).map_or(0, BTreeMap::len);
        if own >= self.limits.each && !self.take_from(newcomer) {
            return false;
        }
        if self.by_holder.values().map(BTreeMap::len).sum::<usize>() < self.limits.connections {
            return true;
        }
        // Nobody gives way to one that would then have more than it has itself.
        let mut larger: Vec<_> = self.by_holder.iter().map(|(holder, all)| (all.len(), holder.clone())).collect();
        larger.retain(|(count, holder)| *count > own + 1 || holder == newcomer);
        larger.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        larger.iter().any(|(_, holder)| self.take_from(holder))
    }

    /// Takes the oldest connection that does nothing from a holder; whether it has one.
    fn take_from(&mut self, holder: &Holder) -> bool {
        let Some(connections) = self.by_holder.get_mut(holder) else { return false };
        let silent = connections.iter().find(|(_, connected)| connected.streams == 0).map(|(number, _)| *number);
        let Some(connected) = silent.and_then(|number| connections.remove(&number)) else { return false };
        if connections.is_empty() {
            self.by_holder.remove(holder);
        }
        // Whoever has gone already needs no word.
        connected.giving.send(()).ok();
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        // Another may have it already.
        if let Some(connections) = taken.by_holder.get_mut(&self.holder) {
            connections.remove(&self.number);
            if connections.is_empty() {
                taken.by_holder.remove(&self.holder);
            }
        }
    }
}

impl Drop for StreamSeat {
    fn drop(&mut self) {
        let Self(seat) = self;
        let mut taken = seat.seats.taken();
        let connections = taken.by_holder.get_mut(&seat.holder);
        if let Some(connected) = connections.and_then(|all| all.get_mut(&seat.number)) {
            connected.streams -= 1;
        }
    }
}

/// Descriptors for everything but callers: files, the CA, the log.
const RESERVED: usize = 100;
/// More than this is no node's.
const MOST_DESCRIPTORS: usize = 65_536;
/// Connections of one holder: on a node of Kubernetes nearly everybody is the same user.
const MOST_EACH: usize = 1024;
/// Streams of one holder.
const MOST_STREAMS: usize = 2048;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(uid: u32) -> Holder {
        Holder { socket: None, user: User::Outside(uid) }
    }

    async fn is_given_up(taken: &mut (Seat, GivenUp)) -> bool {
        tokio::time::timeout(Duration::ZERO, &mut taken.1).await.is_ok()
    }

    #[tokio::test]
    async fn the_greediest_gives_up_its_oldest_that_does_nothing() {
        let seats = Seats::new(Limits { connections: 3, each: 3, streams: 9 });
        let busy = seats.take(of(1)).unwrap();
        let (busy, mut busy_given) = (Arc::new(busy.0), busy.1);
        let stream = busy.stream().unwrap();
        let [mut second, mut third] = [seats.take(of(1)).unwrap(), seats.take(of(1)).unwrap()];
        let mut other = seats.take(of(2)).unwrap();
        assert!(is_given_up(&mut second).await, "the oldest is in use");
        assert!(!is_given_up(&mut third).await);
        assert!(tokio::time::timeout(Duration::ZERO, &mut busy_given).await.is_err());
        // Both have about as many: the newcomer's own goes.
        let again = seats.take(of(2)).unwrap();
        assert!(is_given_up(&mut other).await && !is_given_up(&mut third).await);
        // A third user: the first has two.
        let _one = seats.take(of(3)).unwrap();
        assert!(is_given_up(&mut third).await);
        assert!(seats.take(of(4)).is_none(), "each has one");
        drop((stream, busy));
        let _four = seats.take(of(4)).unwrap();
        drop(again);
    }

    #[tokio::test]
    async fn a_user_has_so_many_connections_and_no_more() {
        let seats = Seats::new(Limits { connections: 100, each: 2, streams: 9 });
        let mut first = seats.take(of(1)).unwrap();
        let (second, _given) = seats.take(of(1)).unwrap();
        let second = Arc::new(second);
        let _stream = second.stream().unwrap();
        let (third, _given) = seats.take(of(1)).unwrap();
        assert!(is_given_up(&mut first).await);
        let third = Arc::new(third);
        let _busy = third.stream().unwrap();
        assert!(seats.take(of(1)).is_none(), "all of them are in use");
        let own = Holder { socket: Some("shop.web".parse().unwrap()), user: User::Outside(1) };
        assert!(seats.take(own).is_some(), "the socket of a workload has a share of its own");
        let pod = User::Pod("0f6d2c1e-4b3a-4c5d-8e9f-001122334455".parse().unwrap());
        assert!(seats.take(Holder { socket: None, user: pod }).is_some(), "and so has a pod");
        assert!(seats.take(of(2)).is_some());
    }

    #[test]
    fn streams_are_counted_over_all_connections_of_a_user() {
        let seats = Seats::new(Limits { connections: 9, each: 9, streams: 3 });
        let take = |uid| Arc::new(seats.take(of(uid)).unwrap().0);
        let (one, other, anothers) = (take(1), take(1), take(2));
        let held: Vec<_> = [&one, &one, &other].map(|seat| seat.stream().unwrap()).into();
        assert!(one.stream().is_none() && other.stream().is_none());
        assert!(anothers.stream().is_some());
        drop(held);
        assert!(one.was_used() && !one.was_used());
        let stream = one.stream().unwrap();
        assert!(one.was_used() && one.was_used(), "as long as there is one");
        drop((stream, one, other, anothers));
        assert!(seats.taken().by_holder.is_empty(), "nothing is left of those who are gone");
    }

    #[test]
    fn a_process_has_room_for_more_than_one_user() {
        let limits = Limits::of_this_process();
        assert!(limits.each * 2 <= limits.connections.max(2));
    }
}
