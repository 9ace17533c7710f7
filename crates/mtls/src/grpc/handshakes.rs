//! Handshakes that run, and whose they are.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::IpAddr;
use std::task::{Context, Poll};

use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

/// Handshakes, each of an address. They end with this.
#[derive(Debug)]
pub(super) struct Handshakes<T> {
    running: JoinSet<T>,
    /// When which handshake of whom began, the oldest first.
    begun: VecDeque<Begun>,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    whose: IpAddr,
    handle: AbortHandle,
}

impl<T> Default for Handshakes<T> {
    fn default() -> Self {
        Self { running: JoinSet::new(), begun: VecDeque::new() }
    }
}

impl<T: Send + 'static> Handshakes<T> {
    pub(super) fn begin(&mut self, whose: IpAddr, handshake: impl Future<Output = T> + Send + 'static) {
        self.forget_finished();
        let handle = self.running.spawn(handshake);
        self.begun.push_back(Begun { at: Instant::now(), whose, handle });
    }

    /// The next one that is over.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, JoinError>>> {
        self.running.poll_join_next(cx)
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// When the oldest began.
    pub(super) fn oldest(&mut self) -> Option<Instant> {
        self.forget_finished();
        self.begun.front().map(|begun| begun.at)
    }

    pub(super) fn end_the_oldest(&mut self) {
        self.forget_finished();
        if let Some(begun) = self.begun.pop_front() {
            tracing::debug!("ended a handshake that had its time while others waited");
            begun.handle.abort();
        }
    }

    /// Ends the oldest of whoever has the most, for one who has less.
    pub(super) fn make_room(&mut self, newcomer: IpAddr) -> bool {
        self.begun.retain(|begun| !begun.handle.is_finished());
        let mut counts = HashMap::<IpAddr, usize>::new();
        self.begun.iter().for_each(|begun| *counts.entry(begun.whose).or_default() += 1);
        let own = counts.get(&newcomer).copied().unwrap_or_default();
        let Some((&largest, &most)) = counts.iter().max_by_key(|(_, count)| **count) else { return false };
        if most <= own + 1 {
            return false;
        }
        let oldest = self.begun.iter().position(|begun| begun.whose == largest);
        if let Some(begun) = oldest.and_then(|oldest| self.begun.remove(oldest)) {
            tracing::debug!(of = %begun.whose, "ended a handshake of the address that has the most");
            begun.handle.abort();
        }
        true
    }

    /// Those that are over need no place in the order; handshakes end about as they began.
    fn forget_finished(&mut self) {
        while self.begun.front().is_some_and(|begun| begun.handle.is_finished()) {
            self.begun.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_the_most_makes_room_for_who_has_less() {
        let [one, two, three] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut handshakes = Handshakes::<()>::default();
        for whose in [one, one, two, one] {
            handshakes.begin(whose, std::future::pending());
        }
        assert!(!handshakes.make_room(one));
        // One has three, two has one.
        assert!(handshakes.make_room(two));
        let first = std::future::poll_fn(|cx| handshakes.poll_next(cx)).await.unwrap();
        assert!(first.unwrap_err().is_cancelled());
        assert_eq!(handshakes.begun.iter().map(|begun| begun.whose).collect::<Vec<_>>(), [one, two, one]);
        assert!(!handshakes.make_room(two));
        assert!(handshakes.make_room(three));
        assert!(!handshakes.make_room(three));
    }
}
