//! The loop that gets certificates for workloads: in batches, a few at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_api::ca::v1::issue_workload_result::Outcome;
use alcazar_identity::{Revocations, SvidKey, TrustBundles};
use alcazar_mtls::Clock;
use alcazar_service::process::chain;
use alcazar_service::{Readiness, ReadyGuard, Shutdown};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use crate::adoption::Reissue;
use crate::authority::{CallError, Session, later};
use crate::chance;
use crate::issued::{Issued, ReplyError, Trust};
use crate::keys::{self, MakeKeyError};
use crate::narrowing::Narrowing;
use crate::node::until;
use crate::registered::Registered;
use crate::registration::Registration;
use crate::registry::{Registry, Served};
use crate::schedule::Later;
use crate::sealed::{Restored, Sealed};
use crate::status::{NarrowingStatus, RegistrationStatus};
use crate::workloads::{Failure, Workloads};

/// Gets and renews the certificates of this node's workloads.
pub(crate) struct Renewal {
    pub(crate) clock: Clock,
    pub(crate) readiness: Readiness,
    pub(crate) session: watch::Receiver<Option<Arc<dyn Session>>>,
    pub(crate) registrations: watch::Receiver<Option<Arc<Registered>>>,
    /// What the agent's own file leaves of them; `None`: it has none.
    pub(crate) narrowing: watch::Receiver<Option<Arc<Narrowing>>>,
    pub(crate) narrowed: watch::Sender<Option<NarrowingStatus>>,
    pub(crate) bundles: watch::Receiver<Option<Arc<TrustBundles>>>,
    pub(crate) revocations: watch::Receiver<Arc<Revocations>>,
    /// What is served.
    pub(crate) registry: watch::Sender<Arc<Registry>>,
    /// What is to be issued anew, and the round of it that no request from before is under way of.
    pub(crate) reissue: watch::Receiver<Arc<Reissue>>,
    pub(crate) round: watch::Sender<u64>,
    /// Rung when a certificate has another issuer than the one before it.
    pub(crate) renewed: watch::Sender<u64>,
    pub(crate) status: watch::Sender<Vec<Arc<RegistrationStatus>>>,
    /// What survives a restart, where that is asked for, and what did.
    pub(crate) sealed: Option<Sealed>,
    pub(crate) restored: Vec<Restored>,
    /// What was registered last, whatever is left of it here: from before the restart, until the CA has spoken.
    pub(crate) before: Vec<Registration>,
    /// What is registered, whatever is left of it here.
    pub(crate) known: BTreeSet<Arc<str>>,
}

impl Renewal {
    /// Runs until the shutdown. The guard is held until the CA has said what is registered.
    pub(crate) async fn keep(mut self, ready: ReadyGuard, shutdown: Shutdown) {
        let mut ready = Some(ready);
        let mut workloads = Workloads::default();
        self.restore(&mut workloads, &mut ready);
        let mut asking: FuturesUnordered<BoxFuture<'static, Answered>> = FuturesUnordered::new();
        let mut quiet_until = Instant::now();
        loop {
            workloads.expire((self.clock)(), &self.readiness);
            self.keep_sealed(&mut workloads);
            let session = self.session.borrow().clone();
            while let (Some(session), true) = (&session, asking.len() < CONCURRENT) {
                let batch = workloads.take_due((self.clock)(), BATCH);
                if batch.is_empty() {
                    break;
                }
                asking.push(Box::pin(ask(session.clone(), batch)));
            }
            if workloads.has_news() && quiet_until <= Instant::now() {
                let status = workloads.take_status();
                quiet_until = Instant::now() + QUIET.saturating_mul(u32::try_from(status.len()).unwrap_or(u32::MAX));
                self.status.send_replace(status);
            }
            let round = workloads.round();
            self.round.send_if_modified(|held| std::mem::replace(held, round) != round);
            let can_ask = session.is_some() && asking.len() < CONCURRENT;
            let due = if can_ask { workloads.next_due() } else { None };
            let event = [due, workloads.next_expiry()].into_iter().flatten().min();
            tokio::select! {
                () = until(event, &self.clock), if event.is_some() => {}
                () = sleep_until(quiet_until), if workloads.has_news() => {}
                Some(answered) = asking.next() => {
                    self.take(answered, &mut workloads);
                    let reissued = workloads.reissued();
                    self.renewed.send_if_modified(|held| std::mem::replace(held, reissued) != reissued);
                }
                change = self.reissue.changed() => {
                    if change.is_err() {
                        return;
                    }
                    let reissue = self.reissue.borrow_and_update().clone();
                    workloads.reissue(reissue, (self.clock)(), chance::jitter);
                }
                change = self.session.changed() => if change.is_err() { return },
                change = self.registrations.changed() => {
                    if change.is_err() {
                        return;
                    }
                    self.register(&mut workloads);
                    // The CA has just spoken: whoever waited for an outage to end need not wait longer.
                    workloads.outage_is_over((self.clock)(), chance::jitter);
                    drop(ready.take());
                }
                change = self.narrowing.changed() => {
                    if change.is_err() {
                        return;
                    }
                    self.register(&mut workloads);
                }
                change = self.bundles.changed() => {
                    if change.is_err() {
                        return;
                    }
                    if let Some(bundles) = self.bundles.borrow_and_update().clone() {
                        workloads.believe(bundles, (self.clock)());
                    }
                }
                change = self.revocations.changed() => {
                    if change.is_err() {
                        return;
                    }
                    let revocations = self.revocations.borrow_and_update().clone();
                    workloads.revoke(revocations, (self.clock)(), &self.readiness);
                }
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// What an earlier run has left serves until the CA has another word.
    fn restore(&mut self, workloads: &mut Workloads, ready: &mut Option<ReadyGuard>) {
        let revocations = self.revocations.borrow_and_update().clone();
        workloads.revoke(revocations, (self.clock)(), &self.readiness);
        if self.restored.is_empty() {
            return;
        }
        let restored = std::mem::take(&mut self.restored);
        self.before = restored.iter().map(|restored| restored.registration.clone()).collect();
        self.known = self.before.iter().map(Registration::shared_id).collect();
        let narrowing = self.narrowing.borrow_and_update().clone();
        let narrowed = restored.into_iter().filter_map(|restored| match &narrowing {
            Some(narrowing) => {
                narrowing.narrow(restored.registration).map(|registration| Restored { registration, ..restored })
            }
            None => Some(restored),
        });
        workloads.restore(narrowed.collect(), &self.readiness, chance::jitter);
        self.registry.send_replace(Arc::new(workloads.registry()));
        drop(ready.take());
    }

    fn keep_sealed(&self, workloads: &mut Workloads) {
        let Some(sealed) = &self.sealed else { return workloads.forget_changed() };
        for (id, entry) in workloads.take_changed() {
            match entry {
                Some(entry) => sealed.put(&entry),
                // What is only withheld stays, for when it is not any more.
                None if self.known.contains(&id) => {}
                None => sealed.remove(&id),
            }
        }
    }

    fn register(&mut self, workloads: &mut Workloads) {
        let said = self.registrations.borrow_and_update().clone();
        let mut understood: Vec<_> = match &said {
            Some(said) => said.iter().cloned().collect(),
            None => self.before.clone(),
        };
        let pods_unknown = said.as_ref().is_some_and(|said| said.pods_unknown);
        if pods_unknown {
            // The CA has not heard of the cluster yet: what it said of pods before is its last word.
            let of_pods = self.before.iter().filter(|earlier| earlier.is_of_pods());
            understood.extend(of_pods.map(Registration::as_registered));
        }
        if let (Some(sealed), true) = (&self.sealed, said.is_some()) {
            sealed.only(understood.iter());
        }
        self.known = understood.iter().map(Registration::shared_id).collect();
        self.before.clone_from(&understood);
        let understood = self.narrow(understood);
        let count = understood.len();
        let changed = workloads.register(understood, &self.readiness);
        tracing::debug!(count, ?changed, "the registrations of this node");
        self.registry.send_replace(Arc::new(workloads.registry().with_word(said.is_some() && !pods_unknown)));
    }

    /// Leaves out what the agent's own file does not speak of: it is not even asked for.
    fn narrow(&mut self, registrations: Vec<Registration>) -> Vec<Registration> {
        let Some(narrowing) = self.narrowing.borrow_and_update().clone() else { return registrations };
        let unknown = narrowing.strangers(registrations.iter());
        let (mut left, mut withheld) = (Vec::new(), Vec::new());
        for registration in registrations {
            let id = registration.id().to_owned();
            match narrowing.narrow(registration) {
                Some(registration) => left.push(registration),
                None => withheld.push(id),
            }
        }
        self.narrowed.send_if_modified(|status| {
            let Some(status) = status else { return false };
            let different = (&status.withheld, &status.unknown) != (&withheld, &unknown);
            if different {
                tracing::info!(?withheld, ?unknown, "the narrowing file leaves registrations out");
                (status.withheld, status.unknown) = (withheld, unknown);
            }
            different
        });
        left
    }

    fn take(&self, answered: Answered, workloads: &mut Workloads) {
        let now = (self.clock)();
        let mut first = false;
        let Answered { batch, outcome } = answered;
        match outcome {
            Ok(mut answers) => {
                for served in &batch {
                    let answer = answers.remove(served.registration().id()).unwrap_or(Err(IssueError::NoAnswer));
                    match answer.and_then(|(reply, key)| accept(&reply, key, served, now)) {
                        Ok(issued) => first |= workloads.issued(served, issued, chance::jitter()),
                        Err(error) => {
                            let why = Failure { reason: chain(&error), later: error.later() };
                            // Each reason once, and not at every retry.
                            if workloads.failed(served, &why, now, chance::jitter()) {
                                let (spiffe_id, reason) = (served.registration().spiffe_id(), &why.reason);
                                tracing::warn!(target: "alcazar::refused", %spiffe_id, reason, "no new certificate for a workload; what it has stays in use");
                            }
                        }
                    }
                }
            }
            Err(error) => {
                let why = Failure { reason: chain(&error), later: error.later() };
                let failed = |served| workloads.failed(served, &why, now, chance::jitter());
                let new = batch.iter().map(failed).filter(|new| *new).count();
                if new > 0 {
                    tracing::warn!(target: "alcazar::refused", workloads = new, reason = why.reason, "no new certificates for workloads; what they have stays in use");
                }
            }
        }
        if first {
            // Whoever makes sockets looks again; for all others it is the same registry.
            self.registry.send_modify(|_| {});
        }
    }
}

/// The answer for each registration, by its id, and the key that it was asked for with.
type Answers = BTreeMap<String, Result<(v1::IssuedSvid, SvidKey), IssueError>>;

/// What is sent, and the keys that stay, by the ids of their registrations.
type Requests = (Vec<v1::IssueWorkload>, BTreeMap<String, SvidKey>);

/// What came of one request.
struct Answered {
    batch: Vec<Arc<Served>>,
    outcome: Result<Answers, BatchError>,
}

async fn ask(session: Arc<dyn Session>, batch: Vec<Arc<Served>>) -> Answered {
    let outcome = ask_for(&session, &batch).await;
    Answered { batch, outcome }
}

async fn ask_for(session: &Arc<dyn Session>, batch: &[Arc<Served>]) -> Result<Answers, BatchError> {
    let of = |served: &Arc<Served>| {
        // Who has little time left goes first where many wait.
        let held = served.now();
        let present = held.credentials().map(|credentials| credentials.svid().validity().not_after());
        let present = present.and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
        let present = present.map_or(0, |end| i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
        (served.registration().id().to_owned(), present)
    };
    let wanted: Vec<_> = batch.iter().map(of).collect();
    // A batch of keys takes milliseconds, in which nobody would be served by this thread.
    let (items, mut keys) = tokio::task::spawn_blocking(|| requests(wanted)).await??;
    let mut answers = BTreeMap::new();
    for result in session.issue(items).await? {
        // An answer to what was not asked has no key, and counts for nothing.
        if let Some(key) = keys.remove(&result.registration_id) {
            let answer = match result.outcome {
                Some(Outcome::Svid(svid)) => Ok((svid, key)),
                Some(Outcome::Refusal(refusal)) => Err(IssueError::refused(refusal)),
                None => Err(IssueError::NoAnswer),
            };
            answers.insert(result.registration_id, answer);
        }
    }
    Ok(answers)
}

/// A key and a request for each registration, by its id and the end of what is held for it.
fn requests(wanted: Vec<(String, i64)>) -> Result<Requests, MakeKeyError> {
    let mut keys = BTreeMap::new();
    let mut items = Vec::with_capacity(wanted.len());
    for (registration_id, present_not_after) in wanted {
        let (key, csr) = keys::generate_with_request()?;
        items.push(v1::IssueWorkload { registration_id: registration_id.clone(), csr, present_not_after });
        keys.insert(registration_id, key);
    }
    Ok((items, keys))
}

fn accept(reply: &v1::IssuedSvid, key: SvidKey, served: &Served, now: SystemTime) -> Result<Issued, IssueError> {
    Ok(Issued::accept(reply, key, served.registration().spiffe_id(), Trust::Established, now)?)
}

#[derive(Debug, thiserror::Error)]
enum IssueError {
    #[error("the CA refused: {message}")]
    Refused { message: String, later: Option<Later> },
    #[error("the CA gave no answer for it")]
    NoAnswer,
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

impl IssueError {
    fn refused(refusal: v1::Refusal) -> Self {
        let said = Some(refusal.retry_after_ms).filter(|said| *said > 0).map(Duration::from_millis);
        Self::Refused { message: refusal.message, later: later(Code::from_i32(refusal.code), said) }
    }

    fn later(&self) -> Option<Later> {
        match self {
            Self::Refused { later, .. } => *later,
            Self::NoAnswer | Self::Reply(_) => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum BatchError {
    #[error(transparent)]
    Key(#[from] MakeKeyError),
    #[error("the thread that makes keys broke")]
    Thread(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl BatchError {
    fn later(&self) -> Option<Later> {
        match self {
            Self::Call(error) => error.later(),
            Self::Key(_) | Self::Thread(_) => None,
        }
    }
}

/// Certificates asked for in one request.
const BATCH: usize = 64;
/// How long the next status waits, for each registration: with ten thousand of them two a second are told, and telling costs
/// less than what is told.
const QUIET: Duration = Duration::from_micros(50);
/// Requests under way at a time: enough to keep the CA busy, not enough to hurt it.
const CONCURRENT: usize = 4;
