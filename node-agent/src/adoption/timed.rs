//! Clients that acknowledge nothing: what they took counts by time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::clients::{Client, Clients, Holds, RECALL, Through};
use crate::caller::Caller;

/// One stream whose client cannot acknowledge, because its protocol has no way to. What it has taken counts as held [`GRACE`]
/// later; whether it is still connected then does not matter.
///
/// What it takes first counts at once: there is nothing older that it could have from this stream. What the same process had
/// from an earlier stream is remembered for as long as it takes to apply what it has now.
#[derive(Debug)]
pub(crate) struct TimedStream {
    clients: Clients,
    number: u64,
    caller: Caller,
}

impl TimedStream {
    /// A stream that begins.
    pub(crate) fn enter(clients: &Clients, caller: Caller) -> Self {
        Self { clients: clients.clone(), number: clients.number(), caller }
    }

    /// The client has been given this, and has taken it from us.
    pub(crate) fn took(&mut self, holds: Holds, now: Instant) {
        let mut streams = self.clients.lock();
        let ripe = now + GRACE;
        // A process that is back applies what it has got here, like everything else. What it had is the same, or goes by then.
        let is_back = |other: &Client| other.caller == self.caller && other.forgotten.is_some();
        streams.held.retain(|_, other| !(is_back(other) && other.ripening.is_empty() && other.holds == holds));
        let before = streams.held.values_mut().filter(|other| other.caller == self.caller);
        for forgotten in before.filter_map(|other| other.forgotten.as_mut()) {
            *forgotten = ripe.min(*forgotten);
        }
        let (caller, first) = (&self.caller, !streams.held.contains_key(&self.number));
        let client = streams.held.entry(self.number).or_insert_with(|| Client {
            caller: caller.clone(),
            holds: holds.clone(),
            through: Through::Itself,
            refused: None,
            forgotten: None,
            ripening: VecDeque::new(),
        });
        let latest = client.ripening.back().map_or(&client.holds, |(_, latest)| latest);
        let new = *latest != holds;
        if new {
            if client.ripening.len() >= MAX_RIPENING {
                client.ripening.pop_back();
            }
            client.ripening.push_back((ripe, holds));
        }
        drop(streams);
        if new || first {
            self.clients.0.changed.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for TimedStream {
    fn drop(&mut self) {
        let mut streams = self.clients.lock();
        if let Some(client) = streams.held.get_mut(&self.number) {
            client.forgotten = Some(Instant::now() + RECALL);
        }
        drop(streams);
        self.clients.0.changed.send_modify(|count| *count += 1);
    }
}

/// A client applies what it reads within milliseconds; a machine that is busy, or a garbage collector, may take seconds.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Of changes that come faster than this many in the grace, those in between are passed over: they count with a later one.
const MAX_RIPENING: usize = 16;
