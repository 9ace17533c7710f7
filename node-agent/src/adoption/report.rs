//! The loop that tells the CA.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{CertificateDer, Credentials, Fingerprint, SpiffeId, TrustBundles, X509Svid};
use alcazar_service::Shutdown;
use alcazar_service::process::chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::clients::{Client, Clients, RECALL};
use super::pace::Pace;
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
    /// Rung when a workload has a certificate of another issuer than before.
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
        let mut told: Option<(Arc<dyn Session>, Summary, Instant)> = None;
        let mut pace = Pace::new(Instant::now());
        loop {
            let session = self.session.borrow_and_update().clone();
            let (mut pause, mut lags) = (EVERY, false);
            if let (Some(session), Some(report)) = (session, self.report(Instant::now())) {
                pace.made(Instant::now());
                let summary = Summary::of(&report);
                lags = !summary.behind.is_empty();
                let fresh = told.as_ref().is_some_and(|(to, said, at)| {
                    Arc::ptr_eq(to, &session) && *said == summary && at.elapsed() < EVERY
                });
                if !fresh {
                    match session.report(report).await {
                        Ok(()) => told = Some((session, summary, Instant::now())),
                        Err(error) => {
                            tracing::debug!(
                                reason = chain(&error),
                                "the CA does not take what this node reports; it is told again"
                            );
                            pause = RETRY;
                        }
                    }
                }
            }
            // Who lags has gone, perhaps, and counts no more when it should be back.
            if lags && self.clients.recalls() {
                pause = pause.min(LOOK);
            }
            tokio::select! {
                alive = self.wait(&mut clients, &pace, pause, lags) => if !alive { return },
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Waits until there may be something to tell; whether there are still those who change it.
    async fn wait(&mut self, clients: &mut watch::Receiver<u64>, pace: &Pace, pause: Duration, lags: bool) -> bool {
        let mut at = Instant::now() + pause;
        loop {
            let [node, workloads] = &mut self.rounds;
            // What clients take when nobody lags is what they should: the CA waits for nothing of it.
            let (changed, urgent) = tokio::select! {
                () = sleep_until(at) => return true,
                changed = self.session.changed() => (changed, true),
                changed = self.identity.changed() => (changed, true),
                changed = self.bundles.changed() => (changed, true),
                changed = self.registry.changed() => (changed, true),
                changed = self.renewed.changed() => (changed, true),
                changed = clients.changed() => (changed, lags),
                changed = node.changed() => (changed, true),
                changed = workloads.changed() => (changed, true),
            };
            if changed.is_err() {
                return false;
            }
            // What changes together is told together.
            at = at.min(pace.next(urgent).max(Instant::now() + TOGETHER));
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

/// What the CA keeps of a report: of leaves, how many there are of each issuer. Another leaf of the same issuer is no news.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    sequence: u64,
    round: u64,
    leaves: BTreeMap<Vec<u8>, usize>,
    behind: Vec<String>,
}

impl Summary {
    fn of(report: &v1::ReportAdoptionRequest) -> Self {
        let mut leaves = BTreeMap::new();
        for leaf in &report.leaves {
            match leaves.get_mut(&leaf.issuer) {
                Some(count) => *count += 1,
                None => drop(leaves.insert(leaf.issuer.clone(), 1)),
            }
        }
        Self { sequence: report.sequence, round: report.round, leaves, behind: report.behind.clone() }
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
    let mut least = BTreeMap::<_, u64>::new();
    for client in clients {
        if let (Some(id), Some(held)) = (&client.holds.id, client.holds.sequence) {
            least.entry(id).and_modify(|least| *least = held.min(*least)).or_insert(held);
        }
    }
    let mut issuers = Issuers::default();
    let mut serials = HashSet::new();
    for credentials in held {
        let svid = credentials.svid();
        leaves.push(v1::HeldLeaf {
            spiffe_id: svid.id().to_string(),
            issuer: bytes(issuers.of(svid)),
            serial: svid.serial().to_owned(),
            not_after: epoch(svid.validity().not_after()),
            sequence: least.get(svid.id()).copied().unwrap_or(0),
        });
        serials.insert(svid.serial());
    }
    for client in clients {
        let mut lags = client.refused.is_some();
        if let Some(held) = client.holds.sequence {
            lags |= held < own;
            sequence = sequence.min(held);
        }
        if let Some((serial, issuer)) = &client.holds.leaf
            && !serials.contains(serial.as_str())
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

/// The fingerprints of issuers, of which there are few.
#[derive(Default)]
struct Issuers<'a>(Vec<(&'a CertificateDer<'static>, Fingerprint)>);

impl<'a> Issuers<'a> {
    fn of(&mut self, svid: &'a X509Svid) -> Option<Fingerprint> {
        let issuer = svid.chain().get(1)?;
        if let Some((_, known)) = self.0.iter().find(|(known, _)| *known == issuer) {
            return Some(*known);
        }
        let fingerprint = Fingerprint::of(issuer);
        self.0.push((issuer, fingerprint));
        Some(fingerprint)
    }
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
