//! While the store is away: what this replica does without it, and what it tells it afterwards.
//!
//! ```text
//!   a node renews ─▶ sign ─▶ ledger ─▶ store: compare-and-swap
//!                                        │ away
//!                                        ▼
//!                            Renewals: one fsynced file a node ─▶ reply
//!                                        │ the store answers
//!                                        ▼
//!                            settle: written │ dropped │ the lineage is ended: two holders
//!
//!   certificates and tokens of those who never report ─▶ Owed: one fsynced file ─▶ noted before this replica speaks again
//! ```
//!
//! # Invariants
//! - Nobody has a renewal of which neither the store nor this replica's disk knows.
//! - Only what this replica holds to be the latest of its lineage is renewed, and only while the store is away, or has not yet
//!   been told of what was renewed then.
//! - The store's word wins over what is pending.

mod checked;
mod notes;
mod renewals;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use alcazar_service::{Shutdown, process};
use alcazar_store::Expected;
use futures::{StreamExt, stream};
use thiserror::Error;

pub(crate) use self::{
    notes::{FILE as NOTES, Owed, OwedError},
    renewals::{FOLDER as RENEWALS, KeepRenewalError, Renewals},
};
use crate::{
    ca::Ca,
    records::{Dropped, Lineage, Pending, RecordError, Settlement, family},
};

impl Ca {
    /// Tells the store of what was renewed without it, whenever it answers, until the end.
    pub(crate) async fn settle_renewals(self, shutdown: Shutdown) {
        loop {
            let left = self.settle_all().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.0.renewals.more(), if !left => {}
                () = tokio::time::sleep(AGAIN), if left => {}
            }
        }
    }

    /// Whether something is left.
    async fn settle_all(&self) -> bool {
        let (left, away) = (AtomicBool::default(), AtomicBool::default());
        // Each is of a node of its own. What is begun goes to its end: it may be in the store already.
        let settling = stream::iter(self.0.renewals.all()).for_each_concurrent(AT_A_TIME, |pending| {
            let (left, away) = (&left, &away);
            async move {
                if away.load(Ordering::Relaxed) {
                    return;
                }
                match self.settle(&pending).await {
                    Ok(true) => {}
                    Ok(false) => left.store(true, Ordering::Relaxed),
                    Err(SettleError::Records(error)) if error.is_away() => away.store(true, Ordering::Relaxed),
                    Err(error) => {
                        left.store(true, Ordering::Relaxed);
                        tracing::error!(node = %pending.node, reason = %process::chain(&error), "the store cannot be told of a renewal; it is tried again");
                    }
                }
            }
        });
        settling.await;
        left.into_inner() || away.into_inner()
    }

    /// Settles what is pending of one node, as far as the store lets it; whether nothing is left of it.
    async fn settle(&self, pending: &Arc<Pending>) -> Result<bool, SettleError> {
        let (records, name) = (&self.0.records, pending.node.principal());
        let found = records.get::<Lineage>(family::NODES, name).await?;
        let mut pending = pending.clone();
        match pending.settle(found.as_ref(), (self.0.clock)()) {
            Settlement::Done => {}
            Settlement::Write { over, lineage } => {
                // What goes out now may arrive though nobody says so.
                let trying = Arc::new(pending.trying());
                if trying != pending {
                    if !self.0.renewals.keep(Some(pending), (*trying).clone()).await? {
                        return Ok(false);
                    }
                    pending = trying;
                }
                match records.put(family::NODES, name, Expected::At(over), &*lineage).await {
                    // Looked at again.
                    Err(error) if error.is_conflict() => return Ok(false),
                    outcome => outcome?,
                };
                tracing::info!(node = %pending.node, serial = pending.lineage.latest.serial, "the store has heard of a renewal that was made while it was away");
            }
            Settlement::Drop(why) => self.dropped(&pending, why),
            Settlement::End { at, other } => {
                match records.delete(family::NODES, name, at).await {
                    Err(error) if error.is_conflict() => return Ok(false),
                    outcome => outcome?,
                }
                self.0.metrics.forked_lineages.inc();
                let (here, node) = (&pending.lineage.latest.serial, &pending.node);
                tracing::error!(target: "alcazar::refused", %node, here, elsewhere = other, "two holders of one certificate have each renewed it while the store was away: the node's key was stolen. Its lineage is ended, and neither renews any more; look at the node, then have it attest again with a new join token. Both certificates are good until they end: revoke them by their serials");
                records.forget_adopted(node).await?;
            }
        }
        self.0.renewals.settled(pending).await?;
        Ok(true)
    }

    fn dropped(&self, pending: &Pending, why: Dropped) {
        let (node, serial) = (&pending.node, &pending.lineage.latest.serial);
        match why {
            Dropped::Gone => {
                tracing::warn!(%node, serial, "a renewal that was made while the store was away counts no more: the node has been revoked, forgotten or ended since");
            }
            Dropped::Anew => {
                tracing::info!(%node, serial, "a renewal that was made while the store was away counts no more: the node has attested anew");
            }
            Dropped::WentOn => {
                tracing::info!(%node, serial, "a renewal that was made while the store was away was never used: the node went on at another replica");
            }
            Dropped::Over => {
                self.0.metrics.forked_lineages.inc();
                tracing::error!(target: "alcazar::refused", %node, here = serial, "a certificate was renewed here while the store was away, and by another holder at another replica; the one from here has ended. If nobody set the node up twice, its key was stolen: have it attest again with a new join token");
            }
        }
    }
}

/// Why the store was not told of a renewal.
#[derive(Debug, Error)]
enum SettleError {
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error(transparent)]
    Keep(#[from] KeepRenewalError),
}

/// After an outage there may be thousands; those who ask for something now ask the same store.
const AT_A_TIME: usize = 16;
/// A store that is away answers at once that it is.
const AGAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use alcazar_identity::SpiffeId;
    use alcazar_service::clock;
    use alcazar_store::Revision;

    use super::*;
    use crate::{config::Config, csr::KeyHash, records::Leaf};

    fn leaf(serial: u32) -> Leaf {
        Leaf::sample(serial, KeyHash::of(&serial.to_be_bytes()))
    }

    #[tokio::test]
    async fn many_are_settled_together_and_each_as_its_own_node_has_come() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(Config::new(folder.path()), clock::system()).await.unwrap();
        let nodes: Vec<SpiffeId> =
            (0..100).map(|n| format!("spiffe://cluster.local/node/local/n{n}").parse().unwrap()).collect();
        for (n, node) in (0..).zip(&nodes) {
            let lineage = Lineage::begin(leaf(1), Revision::new(1));
            // Every tenth has been forgotten meanwhile.
            let revision = match n % 10 {
                0 => Revision::new(1),
                _ => ca.0.records.put(family::NODES, node.principal(), Expected::Absent, &lineage).await.unwrap(),
            };
            let base = crate::records::Stored { record: lineage, revision };
            let next = base.record.next(leaf(n + 2), &base.record.latest.mark());
            let pending = Pending::begin(node.clone(), &base, next, true, SystemTime::UNIX_EPOCH);
            assert!(ca.0.renewals.keep(None, pending).await.unwrap());
        }
        assert!(!ca.settle_all().await, "nothing is left");
        assert!(ca.0.renewals.all().is_empty());
        for (n, node) in (0..).zip(&nodes) {
            let found = ca.0.records.get::<Lineage>(family::NODES, node.principal()).await.unwrap();
            let latest = found.map(|found| found.record.latest.print);
            assert_eq!(latest, (n % 10 != 0).then(|| leaf(n + 2).print), "{node}");
        }
        ca.close().await;
    }
}
