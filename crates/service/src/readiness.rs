use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Which parts of a process are not ready yet.
///
/// A part registers before it starts and holds the guard until it can do its work.
#[derive(Clone)]
pub struct Readiness {
    /// How many guards of each name are held.
    pending: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

impl Readiness {
    /// Nothing registered: ready.
    pub fn new() -> Self {
        Self { pending: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    /// Names a part that is not ready until the guard is dropped.
    pub fn register(&self, part: impl Into<String>) -> ReadyGuard {
        let part = part.into();
        self.pending.send_modify(|pending| *pending.entry(part.clone()).or_default() += 1);
        ReadyGuard { part, readiness: self.clone() }
    }

    /// The parts that are not ready, by name.
    pub fn pending(&self) -> Vec<String> {
        self.pending.borrow().keys().cloned().collect()
    }

    /// Waits until no part is pending.
    pub async fn wait(&self) {
        // The sender lives as long as `self`, so this cannot fail; if it could, waiting would be over too.
        drop(self.pending.subscribe().wait_for(BTreeMap::is_empty).await);
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

/// Held by a part that is not ready; dropping it marks the part ready.
pub struct ReadyGuard {
    part: String,
    readiness: Readiness,
}

impl ReadyGuard {
    /// Marks the part ready.
    pub fn ready(self) {}
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.readiness.pending.send_modify(|pending| {
            if let Some(held) = pending.get_mut(&self.part) {
                *held -= 1;
                if *held == 0 {
                    pending.remove(&self.part);
                }
            }
        });
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
}
