//! What nobody needs any more: join tokens that are over, and nodes that have been gone for long.

use std::time::{Duration, SystemTime};

use alcazar_identity::SpiffeId;
use alcazar_service::process;
use alcazar_store::{LeaseError, Revision};

use crate::{
    ca::Ca,
    patience::Patience,
    records::{RecordError, TokenRecord, family, prefix, read},
};

/// What is over by the clock. It goes when it has been so at each look for an hour.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    tokens: Patience<(String, u64)>,
    nodes: Patience<(Box<str>, u64)>,
    /// Nodes without a lineage of which there is still what they said.
    silent: Patience<String>,
}

impl Ca {
    /// Removes tokens that expired long ago, and what is kept of nodes whose last certificate ended long ago. A running CA does
    /// it by itself, now and then.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn forget_old_records(&self) -> Result<(), RecordError> {
        let now = (self.0.clock)();
        self.forget_tokens(now).await?;
        self.forget_nodes(now).await
    }

    async fn forget_tokens(&self, now: SystemTime) -> Result<(), RecordError> {
        let mut over = Vec::new();
        for entry in self.0.records.store().list(&prefix(family::TOKENS)?).await?.entries {
            let token = read::<TokenRecord>(&entry)?;
            if token.record.expires.checked_add(KEEP_TOKENS).is_some_and(|end| now > end) {
                over.push((entry.key().name().to_owned(), token.revision.get()));
            }
        }
        for (name, revision) in self.0.leaving.tokens.over(over, now) {
            self.forget(family::TOKENS, &name, Revision::new(revision)).await?;
        }
        Ok(())
    }

    /// Of several replicas the one that has the lease does.
    async fn forget_nodes(&self, now: SystemTime) -> Result<(), RecordError> {
        let Some(end) = now.checked_sub(self.0.config.nodes.forget_after) else { return Ok(()) };
        let over = self.0.records.lineages_over(end);
        // Everybody looks, so that whoever has the lease has looked for long enough.
        let over = over.into_iter().map(|(name, revision)| (name, revision.get()));
        let gone = self.0.leaving.nodes.over(over, now);
        let holder = self.replica().as_str();
        let lease = match self.0.store.acquire_lease(LEASE, holder, LEASE_TTL, now).await {
            Ok(lease) => lease,
            Err(LeaseError::Store(error)) => return Err(error.into()),
            Err(_) => return Ok(()),
        };
        for (name, revision) in gone {
            // The store is to hear of what it renewed first.
            if self.0.renewals.of(&name).is_some() {
                continue;
            }
            if self.forget(family::NODES, &name, Revision::new(revision)).await? {
                tracing::info!(
                    node = &*name,
                    "the last certificate of a node ended long ago, and it is forgotten; it joins anew if it comes back"
                );
            }
        }
        self.forget_what_they_said(end, now).await?;
        match self.0.store.release_lease(&lease).await {
            Err(LeaseError::Store(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Forgets what nodes have said that have no lineage.
    async fn forget_what_they_said(&self, end: SystemTime, now: SystemTime) -> Result<(), RecordError> {
        let said = self.0.records.adopted().await?;
        let unknown = |name: &str| self.0.records.known_lineage(name).is_none();
        let old = said.into_iter().filter(|(name, said)| said.heard < end && unknown(name)).map(|(name, _)| name);
        for name in self.0.leaving.silent.over(old, now) {
            let node: SpiffeId = match format!("spiffe://{name}").parse() {
                Ok(node) => node,
                Err(error) => {
                    tracing::warn!(name, reason = %process::chain(&error), "what somebody said who is no node stays on record");
                    continue;
                }
            };
            if self.0.records.lineage(node.principal()).await?.is_none() {
                self.0.records.forget_adopted(&node).await?;
            }
        }
        Ok(())
    }

    /// Whether it was still what was to be forgotten.
    async fn forget(&self, family: &str, name: &str, at: Revision) -> Result<bool, RecordError> {
        match self.0.records.delete(family, name, at).await {
            Err(error) if error.is_conflict() => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }
}

/// Expired tokens are remembered for a while, so that the log can say what happened to one.
const KEEP_TOKENS: Duration = Duration::from_secs(3600);
const LEASE: &str = "forgetting";
const LEASE_TTL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use alcazar_store::Expected;

    use super::*;
    use crate::{
        config::Config,
        csr::KeyHash,
        records::{Leaf, Lineage},
        rotation::Adopted,
    };

    const NOON: u64 = 1_800_000_000;
    const DAY: u64 = 24 * 3600;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[tokio::test]
    async fn a_node_that_is_gone_for_a_month_is_forgotten_and_a_wrong_clock_forgets_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let hands = Arc::new(AtomicU64::new(NOON));
        let clock = {
            let hands = hands.clone();
            Arc::new(move || at(hands.load(Ordering::SeqCst)))
        };
        let ca = Ca::open(Config::new(folder.path()), clock).await.unwrap();
        let records = &ca.0.records;
        let node = |name: &str| -> SpiffeId { format!("spiffe://cluster.local/node/local/{name}").parse().unwrap() };
        for (name, end) in [("gone", NOON + 3600), ("there", NOON + 40 * DAY)] {
            let leaf = Leaf { not_after: at(end), ..Leaf::sample(1, KeyHash::of(name.as_bytes())) };
            let lineage = Lineage::begin(leaf, Revision::new(1));
            records.put(family::NODES, node(name).principal(), Expected::Absent, &lineage).await.unwrap();
        }
        // Of one there is no lineage any more.
        for name in ["gone", "there", "orphan"] {
            let said = Adopted { heard: at(NOON), sequence: 1, round: 0, leaves: BTreeMap::new(), behind: Vec::new() };
            records.put_adopted(&node(name), &said).await.unwrap();
        }
        ca.create_join_token(&node("late"), None).await.unwrap();
        let left = async || {
            let nodes = records.store().list(&prefix(family::NODES).unwrap()).await.unwrap().entries.len();
            let tokens = records.store().list(&prefix(family::TOKENS).unwrap()).await.unwrap().entries.len();
            (nodes, records.adopted().await.unwrap().len(), tokens)
        };
        let look = async |second| {
            hands.store(second, Ordering::SeqCst);
            ca.forget_old_records().await.unwrap();
            left().await
        };
        let later = NOON + 31 * DAY;
        assert_eq!(look(later).await, (2, 3, 1), "nothing goes at the first look");
        // The clock was wrong: all is as it was, and the hour begins anew.
        assert_eq!(look(NOON).await, (2, 3, 1));
        assert_eq!(look(later).await, (2, 3, 1));
        assert_eq!(look(later + 3599).await, (2, 3, 1));
        // The node first, and what it said when it has been without a lineage for an hour.
        assert_eq!(look(later + 3600).await, (1, 2, 0));
        assert_eq!(look(later + 7200).await, (1, 1, 0));
        assert!(records.known_lineage(node("there").principal()).is_some());
        assert!(records.known_lineage(node("gone").principal()).is_none());
        ca.close().await;
    }
}
