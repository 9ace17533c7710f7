use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

/// How the parts of a process are.
///
/// A part that only has to start holds a [`ReadyGuard`] until it can do its work. One that can fall ill later holds a
/// [`Part`], and says how it is.
#[derive(Clone)]
pub struct Readiness {
    parts: Arc<watch::Sender<Parts>>,
}

#[derive(Default)]
struct Parts {
    known: BTreeMap<u64, (String, Health)>,
    next: u64,
}

/// How a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does its work.
    Ready,
    /// It does its work, but somebody should look.
    Degraded(String),
    /// It does not do its work.
    NotReady(String),
}

impl Readiness {
    /// Nothing registered: ready.
    pub fn new() -> Self {
        Self { parts: Arc::new(watch::Sender::new(Parts::default())) }
    }

    /// Names a part that is not ready until the guard is dropped.
    pub fn register(&self, part: impl Into<String>) -> ReadyGuard {
        let part = self.part(part);
        part.set(Health::NotReady("it has not started yet".into()));
        ReadyGuard { _part: part }
    }

    /// Names a part that says how it is, from now until it is dropped; ready at first.
    pub fn part(&self, name: impl Into<String>) -> Part {
        let mut id = 0;
        self.parts.send_modify(|parts| {
            id = parts.next;
            parts.next += 1;
            parts.known.insert(id, (name.into(), Health::Ready));
        });
        Part { id, readiness: self.clone() }
    }

    /// The parts that are not ready, by name.
    pub fn pending(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.parts.borrow().not_ready().cloned().collect();
        names.into_iter().collect()
    }

    /// How each part is, by name.
    pub fn parts(&self) -> Vec<(String, Health)> {
        let mut parts: Vec<_> = self.parts.borrow().known.values().cloned().collect();
        // Stable: of one name, the earlier comes first.
        parts.sort_by(|(one, _), (other, _)| one.cmp(other));
        parts
    }

    /// Waits until every part is ready.
    pub async fn wait(&self) {
        // The sender lives as long as `self`, so this cannot fail; if it could, waiting would be over too.
        drop(self.parts.subscribe().wait_for(|parts| parts.not_ready().next().is_none()).await);
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Parts {
    fn not_ready(&self) -> impl Iterator<Item = &String> {
        self.known.values().filter(|(_, health)| matches!(health, Health::NotReady(_))).map(|(name, _)| name)
    }
}

/// Held by a part that is not ready; dropping it marks the part ready.
pub struct ReadyGuard {
    _part: Part,
}

impl ReadyGuard {
    /// Marks the part ready.
    pub fn ready(self) {}
}

/// Held by a part that says how it is; dropping it ends the part, and nobody waits for it any more.
pub struct Part {
    id: u64,
    readiness: Readiness,
}

impl Part {
    /// How it is now. Telling the same again wakes nobody.
    pub fn set(&self, health: Health) {
        self.readiness.parts.send_if_modified(|parts| match parts.known.get_mut(&self.id) {
            Some((_, known)) if *known != health => {
                *known = health;
                true
            }
            _ => false,
        });
    }

    /// It does its work.
    pub fn ready(&self) {
        self.set(Health::Ready);
    }

    /// It does its work, but somebody should look.
    pub fn degraded(&self, reason: impl Into<String>) {
        self.set(Health::Degraded(reason.into()));
    }

    /// It does not do its work.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Health::NotReady(reason.into()));
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.readiness.parts.send_modify(|parts| drop(parts.known.remove(&self.id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_ready_when_every_part_is() {
        let readiness = Readiness::new();
        let (a, b, c) = (readiness.register("ca"), readiness.register("proxy"), readiness.register("proxy"));
        a.ready();
        drop(b);
        assert_eq!(readiness.pending(), ["proxy"]);
        let waiting = readiness.clone();
        let ((), ()) = tokio::join!(waiting.wait(), async { c.ready() });
        assert!(readiness.pending().is_empty());
    }

    #[tokio::test]
    async fn a_part_can_fall_ill_and_recover() {
        let readiness = Readiness::new();
        let signer = readiness.part("signer");
        let known = |health| assert_eq!(readiness.parts(), [("signer".to_owned(), health)]);
        known(Health::Ready);
        signer.degraded("slow");
        known(Health::Degraded("slow".into()));
        assert!(readiness.pending().is_empty());
        signer.not_ready("the token is gone");
        assert_eq!(readiness.pending(), ["signer"]);
        signer.ready();
        assert!(readiness.pending().is_empty());
        signer.not_ready("the token is gone");
        drop(signer);
        assert!(readiness.parts().is_empty());
    }
}
