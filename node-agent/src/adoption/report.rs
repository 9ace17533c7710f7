//! The loop that tells the CA.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{Credentials, Fingerprint, SpiffeId, TrustBundles};
use alcazar_service::Shutdown;
use alcazar_service::process::chain;
use tokio::sync::watch;
use tokio::time::Instant;

use super::clients::{Client, Clients, RECALL};
use super::issuer;
use crate::authority::Session;
use crate::registry::Registry;

/// Tells the CA what this node and its clients enforce.
pub(crate) struct Reporter {
    pub(crate) node: SpiffeId,
    pub(crate) session: watch::Receiver<Option<Arc<dyn Session>>>,
    pub(crate) identity: watch::Receiver<Option<Arc<Credentials>>>,
    pub(crate) bundles: watch::Receiver<Option<Arc<TrustBundles>>>,
    pub(crate) registry: watch::Receiver<Arc<Registry>>,
    pub(crate) clients: Clients,
    /// The reissue that the node's own identity has heard of, and the one that the workloads have.
    pub(crate) rounds: [watch::Receiver<u64>; 2],
    /// Rung when a workload's certificate changes.
    pub(crate) renewed: watch::Receiver<u64>,
    /// An earlier run of this agent had clients, which are not back yet.
    pub(crate) resumed: bool,
}

impl Reporter {
    /// Runs until the shutdown.
    pub(crate) async fn keep(mut self, shutdown: Shutdown) {
        let mut clients = self.clients.changes();
        if self.resumed {
            tokio::select! {
                () = tokio::time::sleep(RECALL) => {}
                () = shutdown.cancelled() => return,
            }
        }
        let mut told: Option<(Arc<dyn Session>, v1::ReportAdoptionRequest, Instant)> = None;
        loop {
            let session = self.session.borrow_and_update().clone();
            let mut retry = EVERY;
            if let (Some(session), Some(report)) = (session, self.report(Instant::now())) {
                let fresh = told
                    .as_ref()
                    .is_some_and(|(to, said, at)| Arc::ptr_eq(to, &session) && *said == report && at.elapsed() < EVERY);
                if !fresh {
                    match session.report(report.clone()).await {
                        Ok(()) => told = Some((session, report, Instant::now())),
                        Err(error) => {
                            tracing::debug!(
                                reason = chain(&error),
                                "the CA does not take what this node reports; it is told again"
                            );
                            retry = RETRY;
                        }
                    }
                }
            }
            // Who has gone is looked for again when it should be back.
            let pause = if self.clients.recalls() { retry.min(LOOK) } else { retry };
            let [node, workloads] = &mut self.rounds;
            let changed = tokio::select! {
                () = tokio::time::sleep(pause) => Ok(()),
                changed = self.session.changed() => changed,
                changed = self.identity.changed() => changed,
                changed = self.bundles.changed() => changed,
                changed = self.registry.changed() => changed,
                changed = self.renewed.changed() => changed,
                changed = clients.changed() => changed,
                changed = node.changed() => changed,
                changed = workloads.changed() => changed,
                () = shutdown.cancelled() => return,
            };
            if changed.is_err() {
                return;
            }
            // What changes together is told together.
            tokio::time::sleep(TOGETHER).await;
        }
    }

    /// What there is to say now; nothing before there is anything to believe.
    fn report(&mut self, now: Instant) -> Option<v1::ReportAdoptionRequest> {
        let bundles = self.bundles.borrow_and_update().clone()?;
        let identity = self.identity.borrow_and_update().clone()?;
        let registry = self.registry.borrow_and_update().clone();
        self.renewed.borrow_and_update();
        let round = self.rounds.iter_mut().map(|round| *round.borrow_and_update()).min().unwrap_or(0);
        let own = bundles.get(self.node.trust_domain())?.sequence();
        let held = registry.iter().map(|served| served.now());
        let held: Vec<_> = held.collect();
        let held = held.iter().filter_map(|held| held.credentials()).chain([&*identity]);
        Some(report(own, round, held, &self.clients.now(now)))
    }
}

/// What is told of these.
pub(super) fn report<'a>(
    own: u64,
    round: u64,
    held: impl Iterator<Item = &'a Credentials>,
    clients: &[Client],
) -> v1::ReportAdoptionRequest {
    let mut sequence = own;
    let (mut leaves, mut behind) = (Vec::new(), Vec::new());
    for credentials in held {
        let svid = credentials.svid();
        let of = |client: &&Client| client.holds.id.as_ref() == Some(svid.id());
        let least = clients.iter().filter(of).filter_map(|client| client.holds.sequence).min();
        leaves.push(v1::HeldLeaf {
            spiffe_id: svid.id().to_string(),
            issuer: bytes(issuer(svid)),
            serial: svid.serial().to_owned(),
            not_after: epoch(svid.validity().not_after()),
            sequence: least.unwrap_or(0),
        });
    }
    let known = leaves.len();
    for client in clients {
        let mut lags = client.refused.is_some();
        if let Some(held) = client.holds.sequence {
            lags |= held < own;
            sequence = sequence.min(held);
        }
        if let Some((serial, issuer)) = &client.holds.leaf
            && !leaves.iter().take(known).any(|leaf| leaf.serial == *serial)
        {
            // It enforces one that the agent has replaced: how long that lives is not known here any more.
            lags = true;
            leaves.push(v1::HeldLeaf {
                spiffe_id: client.holds.id.as_ref().map(ToString::to_string).unwrap_or_default(),
                issuer: bytes(*issuer),
                serial: serial.clone(),
                not_after: i64::MAX,
                sequence: client.holds.sequence.unwrap_or(0),
            });
        }
        if lags {
            let id = client.holds.id.as_ref().map_or_else(|| "a client".to_owned(), ToString::to_string);
            behind.push(match &client.refused {
                Some(reason) => format!("{id}, {}: {reason}", client.caller),
                None => format!("{id}, {}", client.caller),
            });
        }
    }
    leaves.sort_by(|a, b| (&a.spiffe_id, &a.serial).cmp(&(&b.spiffe_id, &b.serial)));
    v1::ReportAdoptionRequest { sequence, round, leaves, behind }
}

fn bytes(issuer: Option<Fingerprint>) -> Vec<u8> {
    issuer.map(|issuer| issuer.as_bytes().to_vec()).unwrap_or_default()
}

fn epoch(at: SystemTime) -> i64 {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

const EVERY: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(3);
const TOGETHER: Duration = Duration::from_millis(30);
