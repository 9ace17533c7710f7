//! Who may ask for a certificate now, who waits, and who is told to come back.
//!
//! ```text
//!  who has proved nothing ─▶ share of its address ─▶ turn to be looked at ─▶ proved: the share is given back
//!                                                                                │
//!  who is known ─────────▶ limit of its caller ─▶ queue ─▶ Pass ─▶ sign, record ─▶ drop(Pass): the next one's turn
//!                                │ too many         │ full
//!                                └──── Overloaded{retry_after}: RESOURCE_EXHAUSTED with a retry hint ────┘
//! ```
//!
//! - Whoever is yet to be looked at holds no place of those who are known: an issuer or an API server that is slow holds up
//!   whom it is asked about, and no renewal.
//! - The decisions are [`bucket`]'s and [`queue`]'s, which know no clock and no task; [`gate`] is the shell around the queue.

mod bucket;
mod gate;
mod limits;
mod lines;
mod queue;
mod retry;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_service::{Metrics, metrics::Counters};
use thiserror::Error;
use tokio::time::Instant;

use crate::ca::Ca;

pub use self::limits::{Limit, Limits};
use self::{
    bucket::{Buckets, Rate},
    gate::{Gate, SHORTEST_WAIT},
    lines::Lines,
};
pub(crate) use self::{gate::Pass, lines::Line, queue::Urgency, retry::with_hint};

/// The way in. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    started: Instant,
    issuing: Arc<Gate>,
    /// Those about whom the store is asked, and those about whom others are.
    ours: Arc<Gate>,
    others: Arc<Gate>,
    refusals: Counters<1>,
}

struct State {
    certificates: Option<Buckets>,
    strangers: Option<Buckets>,
    calls: Option<Buckets>,
    reports: Option<Buckets>,
    /// Refusals that are worth a line.
    lines: Lines,
}

/// Who is asked about somebody that has yet to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Our own store.
    Store,
    /// The API server of a cluster: as slow as it is.
    Cluster,
}

/// What nodes call for besides certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// To follow something.
    Watch,
    /// To say what it has adopted, which is put on record.
    Report,
}

impl Admission {
    pub(crate) fn new(limits: &Limits, metrics: &Metrics) -> Self {
        let state = State {
            certificates: limits.certificates.rate().map(Buckets::new),
            strangers: limits.strangers.rate().map(Buckets::new),
            calls: Rate::per_minute(CALLS_A_MINUTE, CALLS_AT_ONCE).map(Buckets::new),
            reports: Rate::per_minute(REPORTS_A_MINUTE, REPORTS_AT_ONCE).map(Buckets::new),
            lines: Lines::new(),
        };
        let depth = metrics.gauge("alcazar_ca_queue_depth", "Requests for certificates that wait for their turn");
        let shared = Shared {
            state: Mutex::new(state),
            started: Instant::now(),
            issuing: Gate::new(limits.at_a_time, limits.queue, Some(depth)),
            ours: Gate::new(LOOKED_AT, TO_BE_LOOKED_AT, None),
            others: Gate::new(LOOKED_AT, TO_BE_LOOKED_AT, None),
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
        let now = self.shared.started.elapsed();
        let taken = self.shared.state().certificates.as_mut().map(|buckets| buckets.take(caller, 1, now));
        if let Some(Err(after)) = taken {
            return Err(self.shared.refuse(Reason::Caller, after));
        }
        self.shared.issuing.enter(caller, urgency).await.map_err(|after| {
            // Who is told to come back has had nothing.
            if let Some(buckets) = &mut self.shared.state().certificates {
                buckets.give_back(caller, 1);
            }
            self.shared.refuse(Reason::Queue, after)
        })
    }

    /// A stranger at this address comes: it has proved nothing yet. Its share is taken, until it proves who it is.
    ///
    /// # Errors
    /// When there came too many from there.
    pub(crate) fn stranger(&self, from: Option<IpAddr>) -> Result<Stranger, Overloaded> {
        let (now, origin) = (self.shared.started.elapsed(), origin(from));
        let taken = self.shared.state().strangers.as_mut().map(|buckets| buckets.take(&origin, 1, now));
        match taken {
            Some(Err(after)) => Err(self.shared.refuse(Reason::Stranger, after)),
            _ => Ok(Stranger { shared: Arc::clone(&self.shared), origin }),
        }
    }

    /// A known node calls for something other than a certificate.
    ///
    /// # Errors
    /// When it has done so too often: each call costs something, and some a write.
    pub(crate) fn call(&self, node: &str, call: Call) -> Result<(), Overloaded> {
        let now = self.shared.started.elapsed();
        let taken = {
            let mut state = self.shared.state();
            let buckets = match call {
                Call::Watch => &mut state.calls,
                Call::Report => &mut state.reports,
            };
            buckets.as_mut().map(|buckets| buckets.take(node, 1, now))
        };
        match taken {
            Some(Err(after)) => Err(self.shared.refuse(Reason::Calls, after)),
            _ => Ok(()),
        }
    }

    /// What the log is to say of a refusal of this caller.
    pub(crate) fn line(&self, who: &str) -> Line {
        let now = self.shared.started.elapsed();
        self.shared.state().lines.refused(who, now)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.issuing.waiting()
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
}

/// Somebody who has yet to prove who it is, with a share of what may come from its address.
#[must_use = "the share is gone when nothing is proved"]
pub(crate) struct Stranger {
    shared: Arc<Shared>,
    origin: Box<str>,
}

impl Stranger {
    /// Waits for its turn to be looked at. Held while somebody is asked about it.
    ///
    /// # Errors
    /// When too many wait.
    pub(crate) async fn turn(&self, asked: Asked) -> Result<Pass, Overloaded> {
        let gate = match asked {
            Asked::Store => &self.shared.ours,
            Asked::Cluster => &self.shared.others,
        };
        // The addresses take turns.
        let turn = gate.enter(&self.origin, Urgency::Normal).await;
        turn.map_err(|after| self.shared.refuse(Reason::Proofs, after))
    }

    /// It is known now: what counts from here on are its own limits.
    pub(crate) fn proved(self) {
        if let Some(buckets) = &mut self.shared.state().strangers {
            buckets.give_back(&self.origin, 1);
        }
    }
}

/// Whose share it is: an address, or the network of IPv6 that one host has all of.
pub(crate) fn origin(from: Option<IpAddr>) -> Box<str> {
    match from.map(|ip| ip.to_canonical()) {
        None => "unknown".into(),
        Some(IpAddr::V4(ip)) => ip.to_string().into(),
        Some(IpAddr::V6(ip)) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64").into()
        }
    }
}

impl Ca {
    /// Lets a caller in for one certificate; `present` is when the certificate ends that is to be replaced, where that is known.
    pub(crate) async fn admit(&self, caller: &str, present: Option<SystemTime>) -> Result<Pass, Overloaded> {
        let urgency = urgency(present, self.0.profile.default_ttl(), (self.0.clock)());
        self.0.admission.enter(caller, urgency).await
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
    Calls,
    Stranger,
    Proofs,
    Queue,
}

impl Reason {
    const ALL: [Self; 5] = [Self::Caller, Self::Calls, Self::Stranger, Self::Proofs, Self::Queue];

    fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Calls => "calls",
            Self::Stranger => "stranger",
            Self::Proofs => "proofs",
            Self::Queue => "queue",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Caller => "the caller has asked for more certificates than it may (limits.certificates)",
            Self::Calls => "the node calls more often than any has to",
            Self::Stranger => "more requests came from this address than may without a proof (limits.strangers)",
            Self::Proofs => "too many wait already to prove who they are",
            Self::Queue => "too many requests wait already (limits.queue)",
        }
    }
}

/// So many are looked at together, and so many more may wait for it.
const LOOKED_AT: usize = 64;
const TO_BE_LOOKED_AT: usize = 4096;
/// Far more than a node needs that is started again and again.
const CALLS_A_MINUTE: u32 = 600;
const CALLS_AT_ONCE: u32 = 2_000;
const REPORTS_A_MINUTE: u32 = 60;
const REPORTS_AT_ONCE: u32 = 120;
const SOON: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests;
