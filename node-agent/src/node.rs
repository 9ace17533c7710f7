mod attempt;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{Credentials, SpiffeId, TrustBundles, rfc3339};
use alcazar_mtls::Clock;
use alcazar_service::process::chain;
use alcazar_service::{Part, Shutdown};
use futures::FutureExt;
use tokio::sync::{Notify, watch};

use crate::adoption::Reissue;
use crate::authority::Authority;
use crate::chance;
use crate::clocks::Skew;
use crate::evidence::Sources;
use crate::issued::{Issued, Trust, advance, time_of};
use crate::keys;
use crate::saved::{NodeFile, SavedError, SavedNode};
use crate::schedule::{Failures, next_attempt};
use crate::status::{CertificateStatus, NodeStatus};
use attempt::{AttemptError, WayError};

/// The node's own identity: attested once, renewed for ever.
pub(crate) struct Node {
    pub(crate) id: SpiffeId,
    pub(crate) authority: Arc<dyn Authority>,
    /// What else proves it.
    pub(crate) sources: Sources,
    pub(crate) file: NodeFile,
    pub(crate) saved: SavedNode,
    /// Why that is not on the disk, where it is not.
    pub(crate) unsaved: Option<String>,
    pub(crate) clock: Clock,
    /// Who the node is now; `None` until it has a certificate that is good.
    pub(crate) identity: watch::Sender<Option<Arc<Credentials>>>,
    pub(crate) status: watch::Sender<NodeStatus>,
    /// What the CA says to be believed, as it arrives.
    pub(crate) said: watch::Receiver<Option<Arc<TrustBundles>>>,
    /// What is to be issued anew, and the round of it that has been heard of here.
    pub(crate) reissue: watch::Receiver<Arc<Reissue>>,
    pub(crate) round: watch::Sender<u64>,
    /// What is believed.
    pub(crate) bundles: watch::Sender<Option<Arc<TrustBundles>>>,
    /// Rung when the CA does not take the node's certificate for its other calls.
    pub(crate) doubt: Arc<Notify>,
}

impl Node {
    /// Keeps the node's identity until the shutdown. The part says whether there is one.
    pub(crate) async fn keep(mut self, part: Part, shutdown: Shutdown) {
        let mut failures: Option<Failures> = None;
        if self.holds_a_good_certificate() {
            self.publish("the certificate saved by an earlier run is good");
        }
        let mut due = self.next(None);
        // When the CA wants this node's own certificate to be issued anew.
        let mut wanted = None;
        loop {
            let end = self.stand(&part);
            let early = wanted.filter(|_| failures.is_none());
            let next = due.map(|due| early.map_or(due, |early| due.min(early)));
            self.status
                .send_if_modified(|status| std::mem::replace(&mut status.next_rotation, next) != status.next_rotation);
            tokio::select! {
                () = until(next, &self.clock) => {}
                // What ends by the clock ends then, and not when somebody next asks.
                () = until(end, &self.clock), if end.is_some() => continue,
                () = tokio::time::sleep(SAVE_AGAIN), if self.unsaved.is_some() => {
                    self.save().await;
                    continue;
                }
                // A doubt while attempts fail anyway changes nothing: the back-off stands.
                () = self.doubt.notified(), if failures.is_none() => {}
                said = self.said.changed() => {
                    if said.is_err() {
                        return;
                    }
                    self.believe().await;
                    continue;
                }
                change = self.reissue.changed() => {
                    if change.is_err() {
                        return;
                    }
                    // Nothing is under way here: this loop waits for its own answers.
                    let reissue = self.reissue.borrow_and_update().clone();
                    let concerned = |current: &Issued| reissue.concerns(current.svid());
                    let soon = || (self.clock)() + chance::jitter().of(reissue.spread);
                    wanted = self.saved.current.as_ref().filter(|current| concerned(current)).map(|_| soon());
                    self.round.send_replace(reissue.round);
                    continue;
                }
                () = shutdown.cancelled() => return,
            }
            // The future is dropped only when the process ends: the key that was sent is saved.
            let outcome = tokio::select! {
                outcome = self.attempt(failures.as_ref()) => outcome,
                () = shutdown.cancelled() => return,
            };
            match outcome {
                Ok(how) => {
                    failures = None;
                    wanted = None;
                    // A doubt from before this certificate is about another one.
                    self.doubt.notified().now_or_never();
                    self.publish(&how);
                }
                Err(error) => {
                    failures = Some(Failures::another(failures, (self.clock)()).told(error.later()));
                    self.tell_failure(&error);
                }
            }
            due = self.next(failures.as_ref());
        }
    }

    /// When to ask for the next certificate.
    fn next(&self, failures: Option<&Failures>) -> Option<SystemTime> {
        next_attempt(self.saved.current.as_ref().map(Issued::life), failures, chance::jitter())
    }

    /// Says how the node stands, and takes back what is over; returns when what it holds will be.
    fn stand(&self, part: &Part) -> Option<SystemTime> {
        let current = self.saved.current.as_ref();
        if !self.holds_a_good_certificate() {
            self.withdraw();
            let now = rfc3339((self.clock)());
            part.not_ready(match current.map(|current| current.life().expires()) {
                None => "it has not been attested yet".to_owned(),
                Some(end) => format!("its certificate is good until {}; this machine's clock says {now}", rfc3339(end)),
            });
            return None;
        }
        if self.identity.borrow().is_none() {
            self.publish("its certificate is good by this machine's clock again");
        }
        match (&self.unsaved, &self.status.borrow().clock_error) {
            (Some(reason), _) => part.degraded(format!("it is not on the disk: {reason}")),
            (None, Some(skew)) => part.degraded(skew.as_str()),
            (None, None) => part.ready(),
        }
        current.map(|current| current.life().expires())
    }

    fn holds_a_good_certificate(&self) -> bool {
        let now = (self.clock)();
        self.saved.current.as_ref().is_some_and(|c| !c.life().is_over(now) && c.svid().validity().contains(now))
    }

    /// A request with the next key, which is on disk before the request leaves. Only where the certificate is near its end
    /// and the disk takes nothing, the key goes with what is in memory: a node without an identity is worse.
    async fn request(&mut self) -> Result<Vec<u8>, WayError> {
        let key = match &self.saved.next_key {
            Some(key) => key.clone(),
            None => {
                let key = keys::generate()?;
                let next = SavedNode { next_key: Some(key.clone()), current: self.saved.current.clone() };
                let saved = self.file.save(&next).await;
                let life = self.saved.current.as_ref().map(Issued::life);
                let pressing = life.is_some_and(|life| life.is_near_its_end((self.clock)()));
                match saved {
                    Err(error) if !pressing => return Err(error.into()),
                    saved => self.note_saved(saved),
                }
                self.saved = next;
                key
            }
        };
        Ok(keys::request(&key)?)
    }

    /// `goes_on`: of a lineage that the CA knows, and so never with an older bundle than before.
    async fn take(&mut self, reply: &v1::IssuedSvid, trust: Trust, goes_on: bool) -> Result<(), WayError> {
        let Some(key) = self.saved.next_key.clone() else { return Err(WayError::Key) };
        let now = (self.clock)();
        // Before the verdict: a wrong clock is often the reason why a certificate does not verify.
        self.compare_clocks(reply, now);
        let mut issued = Issued::accept(reply, key, &self.id, trust, now)?;
        if let (true, Some(current)) = (goes_on, &self.saved.current) {
            issued.believe(Arc::new(advance(current.bundles(), issued.bundles())));
        }
        self.saved = SavedNode { current: Some(issued), next_key: None };
        self.save().await;
        Ok(())
    }

    /// Takes the bundles that the CA has said, and keeps them for a restart.
    async fn believe(&mut self) {
        let said = self.said.borrow_and_update().clone();
        let (Some(said), Some(current)) = (said, &mut self.saved.current) else { return };
        let believed = advance(current.bundles(), &said);
        if believed == *current.bundles() {
            return;
        }
        current.believe(Arc::new(believed));
        tracing::info!(spiffe_id = %self.id, "the trust bundles changed");
        self.save().await;
        self.hand_out();
    }

    async fn save(&mut self) {
        let saved = self.file.save(&self.saved).await;
        self.note_saved(saved);
    }

    /// What is held is good, and used although the disk does not have it: but a restart would bring back what is there.
    fn note_saved(&mut self, saved: Result<(), SavedError>) {
        let reason = saved.err().map(|error| chain(&error));
        match (&self.unsaved, &reason) {
            (None, Some(reason)) => tracing::error!(
                spiffe_id = %self.id, reason,
                "this node's identity is in memory alone: make room on its disk, and do not restart the agent before it has said that it is saved; otherwise the node comes back with an old certificate, which looks like a stolen one to the CA, and has to attest anew"
            ),
            (Some(_), None) => tracing::info!(spiffe_id = %self.id, "this node's identity is saved again"),
            _ => {}
        }
        self.status
            .send_if_modified(|status| std::mem::replace(&mut status.disk_error, reason.clone()) != status.disk_error);
        self.unsaved = reason;
    }

    fn compare_clocks(&self, reply: &v1::IssuedSvid, received: SystemTime) {
        // What is given out once more was issued a while ago; a CA of an earlier version says no more than that.
        let answered = if reply.answered_at == 0 { reply.issued_at } else { reply.answered_at };
        let skew = time_of(answered).and_then(|ca| Skew::between(ca, received)).map(|skew| skew.to_string());
        if let Some(skew) = &skew {
            tracing::warn!(spiffe_id = %self.id, "{skew}");
        }
        self.status.send_if_modified(|status| std::mem::replace(&mut status.clock_error, skew.clone()) != skew);
    }

    fn publish(&self, how: &str) {
        let Some(current) = &self.saved.current else { return };
        let svid = current.svid();
        tracing::info!(
            spiffe_id = %self.id, serial = svid.serial(), not_after = rfc3339(svid.validity().not_after()), how,
            "this node has its identity"
        );
        self.status.send_modify(|status| {
            status.certificate = Some(CertificateStatus::of(svid));
            status.proved_by = Some(how.to_owned());
            status.last_error = None;
        });
        self.hand_out();
    }

    fn hand_out(&self) {
        let Some(current) = &self.saved.current else { return };
        self.bundles.send_replace(Some(Arc::new(current.bundles().clone())));
        self.identity.send_replace(Some(current.credentials()));
    }

    /// An expired certificate opens no connection.
    fn withdraw(&self) {
        self.status.send_if_modified(|status| status.certificate.take().is_some());
        if self.identity.send_if_modified(|identity| identity.take().is_some()) {
            tracing::error!(spiffe_id = %self.id, "this node's certificate is good no more; what its workloads hold is served on, and the node attests anew");
        }
    }

    fn tell_failure(&self, error: &AttemptError) {
        let reason = chain(error);
        if error.later().is_some_and(|later| later.busy) {
            tracing::debug!(spiffe_id = %self.id, reason, "the CA is busy; this node asks again when it is told to");
            return;
        }
        let new =
            self.status.send_if_modified(|status| status.last_error.replace(reason.clone()) != Some(reason.clone()));
        let left = self.saved.current.as_ref().map(|current| current.life().remaining((self.clock)()));
        match left.filter(|left| !left.is_zero()) {
            // Each new reason once, and not at every retry of a long outage.
            Some(left) if new => tracing::warn!(
                target: "alcazar::refused", spiffe_id = %self.id, reason, good_for = ?Duration::from_secs(left.as_secs()),
                "this node's certificate could not be renewed; the one it has stays in use"
            ),
            None if new => tracing::error!(
                target: "alcazar::refused", spiffe_id = %self.id, reason,
                "this node has no identity; it goes on trying"
            ),
            _ => tracing::debug!(spiffe_id = %self.id, reason, "still no new certificate for this node"),
        }
    }
}

/// Waits until a moment of the day; none is now.
pub(crate) async fn until(due: Option<SystemTime>, clock: &Clock) {
    let Some(due) = due else { return };
    loop {
        let left = due.duration_since(clock()).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        // In steps: the clock may be set, and a machine may be suspended, while a timer sleeps.
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How often what the disk did not take is written again.
const SAVE_AGAIN: Duration = Duration::from_secs(10);
