//! What the clients of the sockets have acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alcazar_identity::{Fingerprint, SpiffeId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::sds::{Found, View};
use crate::selector::Caller;

/// Every client that is connected, or was a moment ago. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    streams: Mutex<Streams>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    held: BTreeMap<u64, Client>,
}

/// One stream, and what its client enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) caller: Caller,
    pub(crate) holds: Holds,
    /// Why it did not take what it was sent last.
    pub(crate) refused: Option<String>,
    /// When it went: it may hold for a while yet what it had then.
    gone: Option<Instant>,
}

/// What a client has been given, or has acknowledged. `None`: it never asked for one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holds {
    /// Whose identity it has.
    pub(crate) id: Option<SpiffeId>,
    /// The sequence of its own trust domain's bundle.
    pub(crate) sequence: Option<u64>,
    /// The serial and the issuer of its certificate.
    pub(crate) leaf: Option<(String, Option<Fingerprint>)>,
}

impl Holds {
    /// What these names lead to in a view.
    pub(crate) fn of<'n>(names: impl IntoIterator<Item = &'n str>, view: &View) -> Self {
        let mut holds = Self::default();
        for name in names {
            match view.find(name) {
                Found::Certificate(credentials) => {
                    let svid = credentials.svid();
                    holds.id = Some(svid.id().clone());
                    holds.leaf = Some((svid.serial().to_owned(), super::issuer(svid)));
                }
                Found::Bundle(bundle) => {
                    // Of several the oldest counts.
                    let sequence = bundle.sequence();
                    holds.sequence = Some(holds.sequence.map_or(sequence, |held| held.min(sequence)));
                }
                _ => {}
            }
        }
        holds
    }
}

impl Clients {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { streams: Mutex::default(), changed: watch::Sender::new(0) }))
    }

    /// Counts changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// A stream that begins; nothing is acknowledged on it yet.
    pub(crate) fn enter(&self, caller: Caller) -> ClientStream {
        let mut streams = self.lock();
        let number = streams.next;
        streams.next += 1;
        ClientStream { clients: self.clone(), number, caller, sent: None, acknowledged: None, refused: None }
    }

    /// Those who count now. Who went is remembered until it is surely back, or surely ended.
    pub(crate) fn now(&self, now: Instant) -> Vec<Client> {
        let mut streams = self.lock();
        streams.held.retain(|_, client| client.gone.is_none_or(|gone| now.duration_since(gone) < RECALL));
        streams.held.values().cloned().collect()
    }

    /// Whether somebody who went is remembered: then there is something to look at again without any change.
    pub(crate) fn recalls(&self) -> bool {
        self.lock().held.values().any(|client| client.gone.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Nothing in between can panic half-way.
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, number: u64, client: Client) {
        let mut streams = self.lock();
        // It is back: what it held before counts no more. A process that holds several streams has taken over all of them
        // when each has been acknowledged, so only what this one replaces goes.
        let replaced = |other: &Client| {
            other.gone.is_some()
                && other.caller == client.caller
                && (other.holds.sequence.is_none() || client.holds.sequence.is_some())
                && (other.holds.leaf.is_none() || client.holds.leaf.is_some())
        };
        streams.held.retain(|_, other| !replaced(other));
        let changed = streams.held.get(&number) != Some(&client);
        streams.held.insert(number, client);
        drop(streams);
        if changed {
            self.0.changed.send_modify(|count| *count += 1);
        }
    }
}

/// One SDS stream, as it acknowledges.
#[derive(Debug)]
pub(crate) struct ClientStream {
    clients: Clients,
    number: u64,
    caller: Caller,
    /// What was sent and not answered.
    sent: Option<Holds>,
    acknowledged: Option<Holds>,
    refused: Option<String>,
}

impl ClientStream {
    /// A response with this has been sent.
    pub(crate) fn sent(&mut self, holds: Holds) {
        self.sent = Some(holds);
        // Until it answers it holds nothing for sure; what it had before is what counts.
        self.tell();
    }

    /// The client has applied the last response.
    pub(crate) fn acknowledged(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.acknowledged = Some(sent);
        }
        self.refused = None;
        self.tell();
    }

    /// The client could not apply it.
    pub(crate) fn refused(&mut self, reason: &str) {
        self.refused = Some(reason.to_owned());
        self.tell();
    }

    /// Nothing is to be sent: what there is now is, in content, what the client has.
    pub(crate) fn current(&mut self, holds: Holds) {
        if self.sent.is_none() && self.acknowledged.is_some() && self.acknowledged.as_ref() != Some(&holds) {
            self.acknowledged = Some(holds);
            self.tell();
        }
    }

    fn tell(&self) {
        let client =
            Client { caller: self.caller.clone(), holds: self.holds(), refused: self.refused.clone(), gone: None };
        self.clients.put(self.number, client);
    }

    /// What is surely enforced: of a client that has acknowledged nothing, nothing is known.
    fn holds(&self) -> Holds {
        match (&self.acknowledged, &self.sent) {
            (Some(holds), _) => holds.clone(),
            (None, Some(sent)) => Holds { sequence: sent.sequence.map(|_| 0), ..sent.clone() },
            (None, None) => Holds::default(),
        }
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let gone =
            Client { caller: self.caller.clone(), holds: self.holds(), refused: None, gone: Some(Instant::now()) };
        if gone.holds == Holds::default() {
            return;
        }
        self.clients.put(self.number, gone);
    }
}

/// Clients try again after five seconds at the latest.
pub(crate) const RECALL: Duration = Duration::from_secs(15);
