//! What one client has subscribed to of one kind, and what it has been told: the delta xDS protocol as plain data.
//!
//! ```text
//!   Request ──▶ Subscription::take ──▶ Outcome (acknowledged, refused, ...)
//!   View    ──▶ Subscription::next ──▶ Batch to send, or nothing to say, or one is in flight
//! ```
//!
//! Invariants:
//! - One response is in flight at a time; what changes meanwhile is sent once, as it is then.
//! - Only what the client asked for and was not told already is sent.
//! - A refused response is tried again resource by resource, each once: one bad resource keeps no other back, and
//!   the client keeps the last good content of the bad one until it changes.
//!
//! **Source**: the xDS protocol's incremental variant, as Envoy documents it.

use std::collections::{BTreeMap, BTreeSet};

use crate::resource::{Name, Version, View};

/// What a client says about one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) subscribe: Vec<Name>,
    pub(crate) unsubscribe: Vec<Name>,
    /// What it holds from an earlier stream; counts in the first request only.
    pub(crate) initial: BTreeMap<Name, String>,
    pub(crate) answer: Option<Answer>,
}

/// What a client says to a response.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) nonce: String,
    /// Why it refuses; `None` when it does not.
    pub(crate) refusal: Option<String>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered nothing, or a response that is not in flight.
    Subscribed,
    /// It acknowledged the response in flight.
    Acknowledged,
    /// It refused the response in flight, which held these.
    Refused { names: Vec<Name>, reason: String },
}

/// A response to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) nonce: String,
    pub(crate) changed: Vec<Name>,
    pub(crate) removed: Vec<Name>,
}

/// A resource that the client refuses, until it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The content; `None` for its removal.
    pub(crate) version: Option<Version>,
    pub(crate) reason: String,
}

/// One client's subscription to one kind.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    begun: bool,
    wildcard: bool,
    names: BTreeSet<Name>,
    told: BTreeMap<Name, Told>,
    /// To be sent by themselves, since a response with them among others was refused.
    alone: BTreeSet<Name>,
    refused: BTreeMap<Name, Refusal>,
    in_flight: Option<InFlight>,
    /// The first request is answered even when there is nothing to tell: the client then knows that it has all.
    owes_answer: bool,
    sent: u64,
}

/// What a client was told of a name last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Version(Version),
    Gone,
    /// It may have dropped what it was told, or holds what we do not know.
    Unknown,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    held: Vec<(Name, Option<Version>)>,
}

impl Subscription {
    /// Takes what a client says.
    pub(crate) fn take(&mut self, request: Request) -> Outcome {
        let outcome = match request.answer {
            Some(answer) => self.answer(answer),
            None => Outcome::Subscribed,
        };
        let is_first = !std::mem::replace(&mut self.begun, true);
        if is_first {
            self.owes_answer = true;
            // A client of the old days asks for everything by naming nothing.
            self.wildcard = request.subscribe.is_empty();
        }
        for name in request.subscribe {
            self.subscribe(name);
        }
        for name in request.unsubscribe {
            self.unsubscribe(&name);
        }
        if is_first {
            for (name, version) in request.initial {
                if self.covers(&name) {
                    let told = version.parse().map_or(Told::Unknown, Told::Version);
                    self.told.insert(name, told);
                }
            }
        }
        outcome
    }

    /// What to send now, if anything.
    pub(crate) fn next(&mut self, view: View<'_>) -> Option<Batch> {
        if self.in_flight.is_some() || !self.begun {
            return None;
        }
        let mut due = self.due(view);
        // Those that must go alone wait until the others are through.
        if due.iter().any(|(name, _)| !self.alone.contains(name)) {
            due.retain(|(name, _)| !self.alone.contains(name));
        } else {
            due.truncate(1);
        }
        due.truncate(within_limit(&due, view));
        if due.is_empty() && !self.owes_answer {
            return None;
        }
        self.owes_answer = false;
        self.sent += 1;
        let mut batch = Batch { nonce: self.sent.to_string(), ..Batch::default() };
        for (name, version) in &due {
            self.refused.remove(name);
            match version {
                Some(version) => {
                    self.told.insert(name.clone(), Told::Version(*version));
                    batch.changed.push(name.clone());
                }
                None => {
                    self.told.insert(name.clone(), Told::Gone);
                    batch.removed.push(name.clone());
                }
            }
        }
        self.in_flight = Some(InFlight { nonce: batch.nonce.clone(), held: due });
        Some(batch)
    }

    /// Whether the client has answered all there is to tell it.
    pub(crate) fn is_settled(&self, view: View<'_>) -> bool {
        self.in_flight.is_none() && !self.owes_answer && self.due(view).is_empty()
    }

    /// What the client refuses.
    pub(crate) fn refused(&self) -> &BTreeMap<Name, Refusal> {
        &self.refused
    }

    /// How many resources the client has been given.
    pub(crate) fn held(&self) -> usize {
        self.told.values().filter(|told| matches!(told, Told::Version(_))).count()
    }

    /// How many names the client has us remember.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    fn covers(&self, name: &Name) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// What the client should be told, and was not: each with its version, or none where it is gone.
    fn due(&self, view: View<'_>) -> Vec<(Name, Option<Version>)> {
        let all = view.iter().filter(|_| self.wildcard).map(|(name, _)| name);
        let candidates: BTreeSet<&Name> = all.chain(&self.names).chain(self.told.keys()).collect();
        let mut due = Vec::new();
        for name in candidates {
            let now = view.get(name).map(|resource| resource.version);
            let is_due = match (self.told.get(name), now) {
                (Some(Told::Version(told)), Some(now)) => *told != now,
                (Some(Told::Gone), None) => false,
                // Of a name that nobody asked for by itself, and that is not there, there is nothing to say.
                (None, None) => self.names.contains(name),
                _ => true,
            };
            if is_due {
                due.push((name.clone(), now));
            }
        }
        due
    }

    fn answer(&mut self, answer: Answer) -> Outcome {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.nonce == answer.nonce) else {
            return Outcome::Subscribed;
        };
        let Some(reason) = answer.refusal else {
            for (name, version) in &in_flight.held {
                self.alone.remove(name);
                // What is gone and was not asked for by name need not be remembered.
                if version.is_none() && !self.names.contains(name) && self.told.get(name) == Some(&Told::Gone) {
                    self.told.remove(name);
                }
            }
            return Outcome::Acknowledged;
        };
        match in_flight.held.as_slice() {
            [(name, version)] => {
                // It may have unsubscribed meanwhile.
                if self.told.contains_key(name) {
                    self.refused.insert(name.clone(), Refusal { version: *version, reason: reason.clone() });
                }
            }
            several => {
                for (name, _) in several {
                    if let Some(told) = self.told.get_mut(name) {
                        *told = Told::Unknown;
                        self.alone.insert(name.clone());
                    }
                }
            }
        }
        Outcome::Refused { names: in_flight.held.into_iter().map(|(name, _)| name).collect(), reason }
    }

    fn subscribe(&mut self, name: Name) {
        if &*name == WILDCARD {
            self.wildcard = true;
            // What is on its way may be kept after all, so it must be told again, or be told that it is gone.
            for (name, _) in self.in_flight.iter().flat_map(|in_flight| &in_flight.held) {
                self.told.entry(name.clone()).or_insert(Told::Unknown);
            }
            return;
        }
        // It may have dropped what it had: it is told again.
        if let Some(told) = self.told.get_mut(&name) {
            *told = Told::Unknown;
        }
        self.names.insert(name);
    }

    fn unsubscribe(&mut self, name: &Name) {
        if &**name == WILDCARD {
            self.wildcard = false;
            let names = &self.names;
            self.told.retain(|name, _| names.contains(name));
            self.refused.retain(|name, _| names.contains(name));
            self.alone.retain(|name| names.contains(name));
            return;
        }
        if !self.names.remove(name) {
            return;
        }
        if self.wildcard {
            // It cannot know whether it still has the resource by the wildcard: it is told again.
            if let Some(told) = self.told.get_mut(name) {
                *told = Told::Unknown;
            }
        } else {
            self.told.remove(name);
            self.refused.remove(name);
            self.alone.remove(name);
        }
    }
}

/// How many of these fit into one response: at least one. The others follow when it is answered.
fn within_limit(due: &[(Name, Option<Version>)], view: View<'_>) -> usize {
    let mut bytes = 0;
    let fits = |(name, _): &&(Name, Option<Version>)| {
        bytes += name.len() + view.get(name).map_or(0, |resource| resource.body.len());
        bytes <= RESPONSE_BYTES
    };
    due.iter().take_while(fits).count().max(1)
}

/// Well below the 4 MiB that gRPC clients take by default.
const RESPONSE_BYTES: usize = 1024 * 1024;
/// Everything there is.
const WILDCARD: &str = "*";

#[cfg(test)]
mod tests;
