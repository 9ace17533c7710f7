//! Who may ask for a certificate now, who waits, and who is told to come back.
//!
//! ```text
//!  request ─▶ limit of its caller ─▶ queue ─▶ Pass ─▶ check, sign, record ─▶ drop(Pass): the next one's turn
//!                  │ too many          │ full
//!                  └──── Overloaded{retry_after}: RESOURCE_EXHAUSTED with a retry hint ────┘
//! ```
//!
//! The decisions are [`bucket`]'s and [`queue`]'s, which know no clock and no task; this is the shell around them.

mod bucket;
mod limits;
mod queue;
mod retry;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_service::{
    Metrics,
    metrics::{Counters, Gauge},
};
use thiserror::Error;
use tokio::{sync::oneshot, time::Instant};

use crate::ca::Ca;

pub use self::limits::{Limit, Limits};
use self::{
    bucket::Buckets,
    queue::{Entry, Queue, Ticket},
};
pub(crate) use self::{queue::Urgency, retry::with_hint};

/// The way in. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    started: Instant,
    depth: Gauge,
    refusals: Counters<1>,
}

struct State {
    certificates: Option<Buckets>,
    strangers: Option<Buckets>,
    queue: Queue,
    /// Those who wait, to be told that it is their turn.
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
    pace: Pace,
}

impl Admission {
    pub(crate) fn new(limits: &Limits, metrics: &Metrics) -> Self {
        let state = State {
            certificates: limits.certificates.rate().map(Buckets::new),
            strangers: limits.strangers.rate().map(Buckets::new),
            queue: Queue::new(limits.at_a_time, limits.queue),
            waiting: HashMap::new(),
            pace: Pace::default(),
        };
        let shared = Shared {
            state: Mutex::new(state),
            started: Instant::now(),
            depth: metrics.gauge("alcazar_ca_queue_depth", "Requests for certificates that wait for their turn"),
            refusals: metrics.counters(
                "alcazar_ca_overload_refusals",
                "Requests that were told to come back later, by the reason",
                ["reason"],
            ),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Lets a caller in for one certificate, at once or when it is its turn. Its certificate is made while the pass is held.
    ///
    /// # Errors
    /// When the caller has asked for more than its share, or too many wait.
    pub(crate) async fn enter(&self, caller: &str, urgency: Urgency) -> Result<Pass, Overloaded> {
        let (entry, wait) = {
            let mut state = self.shared.state();
            let now = self.shared.started.elapsed();
            if let Some(Err(after)) = state.certificates.as_mut().map(|buckets| buckets.take(caller, 1, now)) {
                return Err(self.shared.refuse(Reason::Caller, after));
            }
            match state.queue.enter(caller, urgency) {
                Entry::Served => return Ok(Pass { shared: Arc::clone(&self.shared) }),
                Entry::Full => {
                    let waiting = state.queue.waiting();
                    let after = state.pace.time_for(waiting);
                    return Err(self.shared.refuse(Reason::Queue, after));
                }
                Entry::Waits(ticket) => {
                    let (turn, wait) = oneshot::channel();
                    state.waiting.insert(ticket, turn);
                    self.shared.show_depth(&state);
                    (ticket, wait)
                }
            }
        };
        let place = Place { shared: &self.shared, caller, urgency, ticket: entry, wait };
        place.turn().await
    }

    /// Whether a stranger at this address may ask: it has proved nothing yet.
    ///
    /// # Errors
    /// When there came too many from there.
    pub(crate) fn stranger(&self, from: Option<IpAddr>) -> Result<(), Overloaded> {
        let mut state = self.shared.state();
        let now = self.shared.started.elapsed();
        let caller = from.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        match state.strangers.as_mut().map(|buckets| buckets.take(&caller, 1, now)) {
            Some(Err(after)) => Err(self.shared.refuse(Reason::Stranger, after)),
            _ => Ok(()),
        }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.state().queue.waiting()
    }

    /// How many were told to come back, by the reason.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.map(|reason| (reason.name(), self.shared.refusals.with([reason.name()]).value())).into_iter()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, reason: Reason, after: Duration) -> Overloaded {
        self.refusals.with([reason.name()]).inc();
        Overloaded { reason, retry_after: after.max(SHORTEST_WAIT) }
    }

    fn show_depth(&self, state: &State) {
        self.depth.set(i64::try_from(state.queue.waiting()).unwrap_or(i64::MAX));
    }

    /// Somebody is done, or went away when it was its turn.
    fn leave(&self) {
        let mut state = self.state();
        let now = self.started.elapsed();
        state.pace.served(now);
        while let Some(ticket) = state.queue.leave() {
            // Who is no longer there gives its turn to the next.
            if state.waiting.remove(&ticket).is_some_and(|turn| turn.send(()).is_ok()) {
                break;
            }
        }
        self.show_depth(&state);
    }
}

/// Held while a certificate is made; dropping it is the next one's turn.
#[must_use = "the turn is over when it is dropped"]
pub(crate) struct Pass {
    shared: Arc<Shared>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

/// A place in the queue, given up when whoever waits goes away.
struct Place<'a> {
    shared: &'a Arc<Shared>,
    caller: &'a str,
    urgency: Urgency,
    ticket: Ticket,
    wait: oneshot::Receiver<()>,
}

impl Place<'_> {
    async fn turn(mut self) -> Result<Pass, Overloaded> {
        // The sender is dropped by nobody but a turn that comes, so there is no other end than one.
        let came = (&mut self.wait).await.is_ok();
        let shared = Arc::clone(self.shared);
        if came { Ok(Pass { shared }) } else { Err(shared.refuse(Reason::Queue, SHORTEST_WAIT)) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if state.waiting.remove(&self.ticket).is_some() {
            state.queue.give_up(self.caller, self.urgency, self.ticket);
            self.shared.show_depth(&state);
            return;
        }
        drop(state);
        // Its turn came, and nobody took it.
        if self.wait.try_recv().is_ok() {
            self.shared.leave();
        }
    }
}

impl Ca {
    /// Lets a caller in for one certificate; `present` is when the certificate ends that is to be replaced, where that is known.
    pub(crate) async fn admit(&self, caller: &str, present: Option<SystemTime>) -> Result<Pass, Overloaded> {
        let urgency = urgency(present, self.0.profile.default_ttl(), (self.0.clock)());
        self.0.admission.enter(caller, urgency).await
    }

    /// Lets somebody in who has yet to prove who it is.
    pub(crate) async fn admit_stranger(&self, from: Option<IpAddr>) -> Result<Pass, Overloaded> {
        self.0.admission.stranger(from)?;
        let caller = from.map_or_else(|| "a stranger".to_owned(), |ip| format!("a stranger at {ip}"));
        self.0.admission.enter(&caller, Urgency::Normal).await
    }
}

/// How urgent a renewal is: the present certificate has a quarter of its life left or less, has ended, or ends within the next
/// minutes.
pub(crate) fn urgency(not_after: Option<SystemTime>, life: Duration, now: SystemTime) -> Urgency {
    let left = not_after.map(|end| end.duration_since(now).unwrap_or_default());
    match left {
        Some(left) if left <= life / 4 || left <= SOON => Urgency::Urgent,
        _ => Urgency::Normal,
    }
}

/// Too much was asked for; come back later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{}; it may come back in {retry_after:?}", reason.words())]
pub(crate) struct Overloaded {
    pub(crate) reason: Reason,
    pub(crate) retry_after: Duration,
}

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Caller,
    Stranger,
    Queue,
}

impl Reason {
    const ALL: [Self; 3] = [Self::Caller, Self::Stranger, Self::Queue];

    fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Stranger => "stranger",
            Self::Queue => "queue",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Caller => "the caller has asked for more certificates than it may (limits.certificates)",
            Self::Stranger => "more requests came from this address than may without a proof (limits.strangers)",
            Self::Queue => "too many requests wait already (limits.queue)",
        }
    }
}

/// How fast certificates are made, for the hint of when to come back.
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
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests;
