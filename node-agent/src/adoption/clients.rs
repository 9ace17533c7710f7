//! What the clients of the sockets have acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alcazar_api::sds::Outbound;
use alcazar_identity::{Fingerprint, SpiffeId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::Caller;
use crate::sds::{Found, View};

/// Every client that is connected, or was a moment ago. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Clients(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    streams: Mutex<Streams>,
    pub(super) changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    next: u64,
    pub(super) held: BTreeMap<u64, Client>,
}

/// One stream, and what its client enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) caller: Caller,
    pub(crate) holds: Holds,
    /// Who may call others through it.
    pub(crate) through: Through,
    /// Why it did not take what it was sent last.
    pub(crate) refused: Option<String>,
    /// It went, and is forgotten at this moment: until then it may hold what it had.
    pub(super) forgotten: Option<Instant>,
    /// What it took and may not have applied yet, with the moment at which it surely has.
    pub(super) ripening: VecDeque<(Instant, Holds)>,
}

/// Who may call others through a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Through {
    /// It calls by itself.
    Itself,
    /// It is a proxy, perhaps, and does not say.
    Unknown,
    /// It is ours, and says.
    Said(Outbound),
}

impl Client {
    /// Whether its stream is there.
    pub(crate) fn is_connected(&self) -> bool {
        self.forgotten.is_none()
    }

    /// What ripened until now is what it holds.
    fn ripen(&mut self, now: Instant) {
        while let Some((_, holds)) = self.ripening.pop_front_if(|(ripe, _)| *ripe <= now) {
            self.holds = holds;
        }
    }
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
    /// There was nothing under the name.
    pub(crate) nothing: bool,
}

/// The same by the names under which it was asked for: a response need not hold all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named(pub(super) BTreeMap<String, Holds>);

impl Named {
    /// What these names lead to in a view.
    pub(crate) fn of<'n>(names: impl IntoIterator<Item = &'n str>, view: &View) -> Self {
        Self(names.into_iter().map(|name| (name.to_owned(), Holds::of(name, view))).collect())
    }

    /// All of it together.
    pub(crate) fn all(&self) -> Holds {
        self.0.values().fold(Holds::default(), Holds::and)
    }
}

impl Holds {
    fn of(name: &str, view: &View) -> Self {
        match view.find(name) {
            Found::Certificate(credentials) => {
                let svid = credentials.svid();
                let leaf = Some((svid.serial().to_owned(), super::issuer(svid)));
                Self { id: Some(svid.id().clone()), leaf, ..Self::default() }
            }
            // Those of other trust domains have numbers of their own, and no rotation of ours changes them.
            Found::Bundle(bundle, _) if view.is_own(bundle.trust_domain()) => {
                Self { sequence: Some(bundle.sequence()), ..Self::default() }
            }
            Found::Bundles(bundles) => {
                let own = bundles.iter().find(|bundle| view.is_own(bundle.trust_domain()));
                Self { sequence: own.map(|bundle| bundle.sequence()), ..Self::default() }
            }
            found => Self { nothing: found.version().is_none(), ..Self::default() },
        }
    }

    /// Both together: of two bundles the older counts.
    fn and(self, other: &Self) -> Self {
        let sequence = match (self.sequence, other.sequence) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        let (id, leaf) = if other.leaf.is_some() { (&other.id, &other.leaf) } else { (&self.id, &self.leaf) };
        Self { id: id.clone(), sequence, leaf: leaf.clone(), nothing: false }
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
        ClientStream {
            clients: self.clone(),
            number: self.number(),
            caller,
            sent: BTreeMap::new(),
            acknowledged: Named::default(),
            through: Through::Itself,
            refused: None,
        }
    }

    /// Those who count now. Who went is remembered until it is surely back, or surely ended.
    pub(crate) fn now(&self, now: Instant) -> Vec<Client> {
        let mut streams = self.lock();
        streams.held.retain(|_, client| client.forgotten.is_none_or(|forgotten| now < forgotten));
        streams.held.values_mut().for_each(|client| client.ripen(now));
        streams.held.values().cloned().collect()
    }

    /// Whether time alone changes something: somebody who went is remembered, or what somebody took counts later.
    pub(crate) fn recalls(&self) -> bool {
        self.lock().held.values().any(|client| client.forgotten.is_some() || !client.ripening.is_empty())
    }

    /// The number of a stream that begins.
    pub(super) fn number(&self) -> u64 {
        let mut streams = self.lock();
        streams.next += 1;
        streams.next
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Streams> {
        // Nothing in between can panic half-way.
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, number: u64, client: Client) {
        let mut streams = self.lock();
        // It is back: what it held before counts no more. A process that holds several streams has taken over all of them
        // when each has been acknowledged, so only what this one replaces goes.
        let replaced = |other: &Client| {
            other.forgotten.is_some()
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
    /// What was sent under each name and not applied yet.
    sent: BTreeMap<String, Sent>,
    acknowledged: Named,
    through: Through,
    refused: Option<String>,
}

#[derive(Debug)]
struct Sent {
    holds: Holds,
    /// Of which response it was a part; zero where that was refused: what the client says later of another means nothing for it.
    response: u64,
}

impl ClientStream {
    /// A client that others may call through, and says this of it.
    pub(crate) fn says(&mut self, outbound: Option<Outbound>) {
        self.through = outbound.map_or(Through::Unknown, Through::Said);
    }

    /// The response of this number, counted from one, has been sent, with this.
    pub(crate) fn sent(&mut self, response: u64, named: Named) {
        // Of a name that never led to anything there is nothing to be behind with, whatever the client says of the answer.
        let counts = named.0.into_iter().filter(|(name, holds)| {
            !holds.nothing || self.acknowledged.0.contains_key(name) || self.sent.contains_key(name)
        });
        let counts: Vec<_> = counts.map(|(name, holds)| (name, Sent { holds, response })).collect();
        self.sent.extend(counts);
        // Until it answers it holds nothing for sure; what it had before is what counts.
        self.tell();
    }

    /// The client has applied this response.
    pub(crate) fn acknowledged(&mut self, response: u64) {
        let applied = self.sent.extract_if(.., |_, sent| response > 0 && sent.response == response);
        self.acknowledged.0.extend(applied.map(|(name, sent)| (name, sent.holds)));
        if self.sent.is_empty() {
            self.refused = None;
        }
        self.tell();
    }

    /// The client could not apply it.
    pub(crate) fn refused(&mut self, response: u64, reason: &str) {
        let mut refused = self.sent.values_mut().filter(|sent| sent.response == response).peekable();
        if refused.peek().is_some() {
            refused.for_each(|sent| sent.response = 0);
            self.refused = Some(reason.to_owned());
        }
        self.tell();
    }

    /// Nothing is to be sent: what there is now under a name is, in content, what the client has.
    pub(crate) fn current(&mut self, named: Named) {
        let mut changed = false;
        for (name, holds) in named.0 {
            // Also of one that was never sent here: the client came back with it, and said so.
            if !self.sent.contains_key(&name) && !holds.nothing && self.acknowledged.0.get(&name) != Some(&holds) {
                self.acknowledged.0.insert(name, holds);
                changed = true;
            }
        }
        if changed {
            self.tell();
        }
    }

    /// The client wants these names alone from now on.
    pub(crate) fn keep<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) {
        let names: std::collections::BTreeSet<&str> = names.into_iter().collect();
        self.sent.retain(|name, _| names.contains(name.as_str()));
        self.acknowledged.0.retain(|name, _| names.contains(name.as_str()));
    }

    fn tell(&self) {
        self.clients.put(self.number, self.client(self.refused.clone(), None));
    }

    fn client(&self, refused: Option<String>, forgotten: Option<Instant>) -> Client {
        let (caller, holds, through) = (self.caller.clone(), self.holds(), self.through.clone());
        Client { caller, holds, through, refused, forgotten, ripening: VecDeque::new() }
    }

    /// What is surely enforced: of a name of which nothing was acknowledged, nothing is known.
    fn holds(&self) -> Holds {
        let unknown = self.sent.iter().filter(|(name, _)| !self.acknowledged.0.contains_key(*name));
        let unknown = unknown.map(|(_, sent)| Holds { sequence: sent.holds.sequence.map(|_| 0), ..sent.holds.clone() });
        unknown.fold(self.acknowledged.all(), |holds, more| holds.and(&more))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let gone = self.client(None, Some(Instant::now() + RECALL));
        if gone.holds == Holds::default() {
            return;
        }
        self.clients.put(self.number, gone);
    }
}

/// Our own clients try again after five seconds at the latest; Envoy's pause between two tries grows to thirty.
pub(crate) const RECALL: Duration = Duration::from_secs(45);
