//! Who may be in a handshake at a time: when all places are taken, the oldest that has said nothing makes room.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Places for connections that have not proved who they are.
pub(super) struct Slots {
    places: Arc<Semaphore>,
    /// Oldest first; those that have spoken or gone are no longer there to be told.
    silent: VecDeque<Weak<Notify>>,
}

/// One place; free again when it is dropped.
pub(super) struct Slot {
    _place: OwnedSemaphorePermit,
    silent: Option<Arc<Notify>>,
}

impl Slots {
    pub(super) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), silent: VecDeque::new() }
    }

    /// A place for a connection that has said nothing yet. There is always one, sooner or later.
    pub(super) async fn take(&mut self) -> Option<Slot> {
        let place = match self.places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                self.end_oldest();
                self.places.clone().acquire_owned().await.ok()?
            }
        };
        while self.silent.front().is_some_and(|oldest| oldest.strong_count() == 0) {
            self.silent.pop_front();
        }
        let silent = Arc::new(Notify::new());
        self.silent.push_back(Arc::downgrade(&silent));
        Some(Slot { _place: place, silent: Some(silent) })
    }

    fn end_oldest(&mut self) {
        while let Some(oldest) = self.silent.pop_front() {
            if let Some(oldest) = oldest.upgrade() {
                return oldest.notify_one();
            }
        }
    }
}

impl Slot {
    /// It has spoken: nobody takes its place any more.
    pub(super) fn spoke(&mut self) {
        self.silent = None;
    }

    /// Completes when another needs the place.
    pub(super) async fn wanted(&self) {
        match &self.silent {
            Some(silent) => silent.notified().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn is_wanted(slot: &Slot) -> bool {
        slot.wanted().now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_oldest_silent_one_makes_room_and_nobody_who_spoke() {
        let mut slots = Slots::new(3);
        let mut spoke = slots.take().await.unwrap();
        let silent = slots.take().await.unwrap();
        let younger = slots.take().await.unwrap();
        spoke.spoke();
        assert!(!is_wanted(&silent));

        let next = slots.take();
        let make_room = async {
            silent.wanted().await;
            drop(silent);
        };
        let (next, ()) = tokio::join!(next, make_room);
        assert!(!is_wanted(&spoke) && !is_wanted(&younger) && !is_wanted(&next.unwrap()));
    }

    #[tokio::test]
    async fn where_all_have_spoken_the_next_one_waits() {
        let mut slots = Slots::new(1);
        let mut only = slots.take().await.unwrap();
        only.spoke();
        assert!(slots.take().now_or_never().is_none());
        drop(only);
        assert!(slots.take().await.is_some());
    }
}
