//! A queue with its tasks: who waits is woken when it is its turn, and who goes away gives its turn on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use alcazar_service::metrics::Gauge;
use tokio::{sync::oneshot, time::Instant};

use super::queue::{Entry, Queue, Ticket, Urgency};

/// So many at a time, and the others in turns.
pub(super) struct Gate {
    state: Mutex<State>,
    started: Instant,
    depth: Option<Gauge>,
}

struct State {
    queue: Queue,
    /// Those who wait, to be told that it is their turn.
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
    pace: Pace,
}

impl Gate {
    pub(super) fn new(at_a_time: usize, bound: usize, depth: Option<Gauge>) -> Arc<Self> {
        let state = State { queue: Queue::new(at_a_time, bound), waiting: HashMap::new(), pace: Pace::default() };
        Arc::new(Self { state: Mutex::new(state), started: Instant::now(), depth })
    }

    /// Lets a caller in, at once or when it is its turn.
    ///
    /// # Errors
    /// When too many wait: how long it should stay away.
    pub(super) async fn enter(self: &Arc<Self>, caller: &str, urgency: Urgency) -> Result<Pass, Duration> {
        let (ticket, wait) = {
            let mut state = self.state();
            match state.queue.enter(caller, urgency) {
                Entry::Served => return Ok(Pass { gate: Arc::clone(self) }),
                Entry::Full => {
                    let waiting = state.queue.waiting();
                    return Err(state.pace.time_for(waiting));
                }
                Entry::Waits(ticket) => {
                    let (turn, wait) = oneshot::channel();
                    state.waiting.insert(ticket, turn);
                    self.show_depth(&state);
                    (ticket, wait)
                }
            }
        };
        Place { gate: self, caller, urgency, ticket, wait }.turn().await
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.state().queue.waiting()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_depth(&self, state: &State) {
        if let Some(depth) = &self.depth {
            depth.set(i64::try_from(state.queue.waiting()).unwrap_or(i64::MAX));
        }
    }

    /// Somebody is done, or went away when it was its turn.
    fn leave(&self) {
        let mut state = self.state();
        state.pace.served(self.started.elapsed());
        while let Some(ticket) = state.queue.leave() {
            // Who is no longer there gives its turn to the next.
            if state.waiting.remove(&ticket).is_some_and(|turn| turn.send(()).is_ok()) {
                break;
            }
        }
        self.show_depth(&state);
    }
}

/// Held while it is its holder's turn; dropping it is the next one's.
#[must_use = "the turn is over when it is dropped"]
pub(crate) struct Pass {
    gate: Arc<Gate>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

/// A place in the queue, given up when whoever waits goes away.
struct Place<'a> {
    gate: &'a Arc<Gate>,
    caller: &'a str,
    urgency: Urgency,
    ticket: Ticket,
    wait: oneshot::Receiver<()>,
}

impl Place<'_> {
    async fn turn(mut self) -> Result<Pass, Duration> {
        // The sender is dropped by nobody but a turn that comes, so there is no other end than one.
        let came = (&mut self.wait).await.is_ok();
        let gate = Arc::clone(self.gate);
        if came { Ok(Pass { gate }) } else { Err(SHORTEST_WAIT) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if state.waiting.remove(&self.ticket).is_some() {
            state.queue.give_up(self.caller, self.urgency, self.ticket);
            self.gate.show_depth(&state);
            return;
        }
        drop(state);
        // Its turn came, and nobody took it.
        if self.wait.try_recv().is_ok() {
            self.gate.leave();
        }
    }
}

/// How fast turns pass, for the hint of when to come back.
#[derive(Debug, Default)]
struct Pace {
    since: Duration,
    count: u32,
    /// Between two of them, as of late.
    each: Duration,
    /// Those who are told to come back are told different times, lest they come back together.
    told: u32,
}

impl Pace {
    fn served(&mut self, now: Duration) {
        self.count += 1;
        if self.count == PACE_OF {
            self.each = now.saturating_sub(self.since) / PACE_OF;
            (self.since, self.count) = (now, 0);
        }
    }

    fn time_for(&mut self, waiting: usize) -> Duration {
        self.told = self.told.wrapping_add(1);
        let all = self.each.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
        let wait = all.clamp(SHORTEST_WAIT, LONGEST_WAIT);
        wait + wait * (self.told % 16) / 16
    }
}

const PACE_OF: u32 = 128;
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
