//! Who is served next: plain data in, plain data out.
//!
//! ```text
//!                  ┌ urgent: who may soon have no certificate ┐ 3 of 4
//!  enter ─ room? ──┤                                            ├──▶ served (so many at a time) ──▶ leave
//!             │    └ the others                                ┘ 1 of 4
//!             ▼         in each lane the callers take turns
//!          refused
//! ```
//!
//! - The urgent go first, and one in four turns is the others' whatever the urgent do: nobody starves.
//! - In a lane the callers take turns, so that who asks for a thousand makes nobody else wait for a thousand. Who claims an
//!   urgency that it has not gains a turn among the urgent, and no more.
//! - The queue has a bound. A part of it is for the urgent alone.

use std::collections::{HashMap, VecDeque};

/// How soon somebody needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// The present certificate ends soon, or has ended.
    Urgent,
    /// There is time.
    Normal,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// What becomes of somebody who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Served at once.
    Served,
    /// Waits.
    Waits(Ticket),
    /// There is no room.
    Full,
}

/// Those who are served, and those who wait.
#[derive(Debug)]
pub(crate) struct Queue {
    at_a_time: usize,
    bound: usize,
    served: usize,
    waiting: usize,
    urgent: Lane,
    normal: Lane,
    /// Turns of the urgent since the others had one.
    urgent_turns: u32,
    next: u64,
}

impl Queue {
    /// A queue that serves so many at a time, and lets so many wait.
    pub(crate) fn new(at_a_time: usize, bound: usize) -> Self {
        let (urgent, normal) = (Lane::default(), Lane::default());
        Self { at_a_time: at_a_time.max(1), bound, served: 0, waiting: 0, urgent, normal, urgent_turns: 0, next: 0 }
    }

    /// Somebody comes.
    pub(crate) fn enter(&mut self, caller: &str, urgency: Urgency) -> Entry {
        if self.waiting == 0 && self.served < self.at_a_time {
            self.served += 1;
            return Entry::Served;
        }
        let room = match urgency {
            Urgency::Urgent => self.bound,
            Urgency::Normal => self.bound - self.bound / 4,
        };
        if self.waiting >= room {
            return Entry::Full;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting += 1;
        self.lane(urgency).push(caller, ticket);
        Entry::Waits(ticket)
    }

    /// Somebody who was served is done; who is served now. That one may have gone: then [`Queue::leave`] is called for it.
    pub(crate) fn leave(&mut self) -> Option<Ticket> {
        self.served = self.served.saturating_sub(1);
        self.serve_next()
    }

    /// Somebody who waits goes away.
    pub(crate) fn give_up(&mut self, caller: &str, urgency: Urgency, ticket: Ticket) {
        if self.lane(urgency).remove(caller, ticket) {
            self.waiting -= 1;
        }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    fn serve_next(&mut self) -> Option<Ticket> {
        if self.served >= self.at_a_time {
            return None;
        }
        let others_turn = self.urgent_turns >= URGENT_TURNS && !self.normal.is_empty();
        let urgent = if others_turn { None } else { self.urgent.pop() };
        self.urgent_turns = if urgent.is_some() { self.urgent_turns + 1 } else { 0 };
        let ticket = match urgent {
            Some(ticket) => ticket,
            None => self.normal.pop()?,
        };
        self.waiting -= 1;
        self.served += 1;
        Some(ticket)
    }

    fn lane(&mut self, urgency: Urgency) -> &mut Lane {
        match urgency {
            Urgency::Urgent => &mut self.urgent,
            Urgency::Normal => &mut self.normal,
        }
    }
}

/// Of four turns, so many are the urgent ones'.
const URGENT_TURNS: u32 = 3;

/// Callers that take turns, each with what it waits for in order. Who has gone away keeps its turn until it comes, or until
/// such turns are many: nobody is looked for among thousands.
#[derive(Debug, Default)]
struct Lane {
    turns: VecDeque<Box<str>>,
    /// For each of the turns what its caller waits for; nothing where it has gone.
    waiting: HashMap<Box<str>, VecDeque<Ticket>>,
    tickets: usize,
    gone: usize,
}

impl Lane {
    fn push(&mut self, caller: &str, ticket: Ticket) {
        self.tickets += 1;
        if let Some(waiting) = self.waiting.get_mut(caller) {
            self.gone -= usize::from(waiting.is_empty());
            waiting.push_back(ticket);
        } else {
            self.turns.push_back(caller.into());
            self.waiting.insert(caller.into(), VecDeque::from([ticket]));
        }
    }

    fn pop(&mut self) -> Option<Ticket> {
        while let Some(caller) = self.turns.pop_front() {
            let Some(waiting) = self.waiting.get_mut(&caller) else { continue };
            let ticket = waiting.pop_front();
            if waiting.is_empty() {
                self.waiting.remove(&caller);
            } else {
                self.turns.push_back(caller);
            }
            match ticket {
                Some(ticket) => {
                    self.tickets -= 1;
                    return Some(ticket);
                }
                None => self.gone -= 1,
            }
        }
        None
    }

    /// Whether it was there.
    fn remove(&mut self, caller: &str, ticket: Ticket) -> bool {
        let Some(waiting) = self.waiting.get_mut(caller) else { return false };
        let Ok(place) = waiting.binary_search(&ticket) else { return false };
        waiting.remove(place);
        self.tickets -= 1;
        if waiting.is_empty() {
            self.gone += 1;
            if self.gone > GONE && self.gone * 2 > self.turns.len() {
                self.waiting.retain(|_, waiting| !waiting.is_empty());
                self.turns.retain(|turn| self.waiting.contains_key(turn));
                self.gone = 0;
            }
        }
        true
    }

    fn is_empty(&self) -> bool {
        self.tickets == 0
    }
}

/// So many turns of those who have gone are always kept.
const GONE: usize = 256;

#[cfg(test)]
mod tests;
