//! What is held for each registration, and what is due: state that is changed by events, each with its time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::Included;
use std::sync::Arc;
use std::time::SystemTime;

use alcazar_identity::{Revocations, TrustBundles, rfc3339};
use alcazar_mtls::{Side, verify_peer};
use alcazar_service::{Readiness, ReadyGuard};
use tokio::sync::watch;

use crate::adoption::Reissue;
use crate::issued::Issued;
use crate::queue::{Queue, Standing};
use crate::registration::Registration;
use crate::registry::{Held, Registry, Served};
use crate::schedule::{Failures, Jitter, Later, after_outage, next_attempt};
use crate::sealed::{self, Restored};
use crate::status::{CertificateStatus, RegistrationStatus};

/// Every workload of this node.
#[derive(Default)]
pub(crate) struct Workloads {
    /// Boxed: in a tree that grows by its end every other place stays free.
    entries: BTreeMap<Arc<str>, Box<Entry>>,
    /// Every entry by its times.
    queue: Queue,
    /// What the CA last said, once it has: newer than what came with a certificate.
    bundles: Option<Arc<TrustBundles>>,
    /// What is revoked, for everybody's handshakes.
    revocations: Arc<Revocations>,
    /// What the CA wants to be issued anew.
    reissue: Arc<Reissue>,
    /// The registrations of which something else is to be kept over a restart than before, by their ids.
    changed: BTreeSet<Arc<str>>,
    /// The registrations of which an answer is under way that may be from before the reissue.
    asked_before: BTreeSet<Arc<str>>,
    /// How often a certificate came that has another issuer than the one before it, or none before it.
    reissued: u64,
    /// Something is to be told that was not told yet.
    news: bool,
}

struct Entry {
    served: Arc<Served>,
    held: watch::Sender<Arc<Held>>,
    issued: Option<Issued>,
    failures: Option<Failures>,
    last_error: Option<String>,
    /// A request for it is under way.
    asked: bool,
    /// When the next certificate is to be asked for; `None`: at once.
    due: Option<SystemTime>,
    /// Held while there is no good certificate.
    unready: Option<ReadyGuard>,
    /// What is told of it, until something of it changes.
    told: Option<Arc<RegistrationStatus>>,
}

/// What a change of the registrations changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) added: usize,
    pub(crate) removed: usize,
}

/// Why no certificate came.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// When the CA wants to be asked again.
    pub(crate) later: Option<Later>,
}

impl Workloads {
    /// The CA's registrations, the whole set: what is new is due at once, what is gone is served no more.
    pub(crate) fn register(&mut self, all: Vec<Registration>, readiness: &Readiness) -> Changed {
        let mut earlier = std::mem::take(&mut self.entries);
        let mut changed = Changed::default();
        for registration in all {
            let known = earlier.remove_entry(registration.id());
            let (id, entry) = match known {
                Some((id, entry)) => (id, Some(*entry)),
                None => (registration.shared_id(), None),
            };
            let mut entry = match entry {
                // What is held for one identity is never shown as another's.
                Some(entry) if entry.served.registration().spiffe_id() == registration.spiffe_id() => {
                    if *entry.served.registration() != registration {
                        self.changed.insert(id.clone());
                    }
                    entry.update(registration)
                }
                _ => {
                    changed.added += 1;
                    self.changed.insert(id.clone());
                    self.asked_before.remove(&id);
                    Entry::new(registration, readiness)
                }
            };
            self.queue.put(&id, entry.changed());
            self.entries.insert(id, Box::new(entry));
        }
        changed.removed = earlier.len();
        for id in earlier.into_keys() {
            self.queue.remove(&id);
            self.asked_before.remove(&id);
            self.changed.insert(id);
        }
        self.news = true;
        changed
    }

    /// What an earlier run held, before the CA has said anything in this one.
    pub(crate) fn restore(&mut self, all: Vec<Restored>, readiness: &Readiness, jitter: impl Fn() -> Jitter) {
        let mut certificates = BTreeMap::new();
        let mut registrations = Vec::new();
        for Restored { registration, issued } in all {
            certificates.extend(issued.map(|issued| (registration.id().to_owned(), issued)));
            registrations.push(registration);
        }
        self.register(registrations, readiness);
        for (id, issued) in certificates {
            let Some((id, entry)) = find(&mut self.entries, &id) else { continue };
            tracing::info!(
                target: "alcazar::rotation",
                spiffe_id = %issued.svid().id(), serial = issued.svid().serial(), registration = %id,
                not_after = rfc3339(issued.svid().validity().not_after()),
                "a workload has its certificate from before the restart"
            );
            entry.due = next_attempt(Some(issued.life()), None, jitter());
            entry.held.send_replace(Arc::new(Held::Certificate(issued.credentials())));
            entry.issued = Some(issued);
            entry.unready = None;
            self.queue.put(id, entry.changed());
        }
        self.changed.clear();
    }

    /// The registrations of which something else is to be kept since this was last asked: what, or that nothing is.
    pub(crate) fn take_changed(&mut self) -> Vec<(Arc<str>, Option<sealed::Entry>)> {
        let changed = std::mem::take(&mut self.changed);
        let entry = |id: &Arc<str>| {
            let entry = self.entries.get(id)?;
            Some(sealed::Entry::new(entry.served.registration().as_registered(), entry.issued.as_ref()))
        };
        changed.into_iter().map(|id| (id.clone(), entry(&id))).collect()
    }

    /// Nothing of all this is kept anywhere.
    pub(crate) fn forget_changed(&mut self) {
        self.changed.clear();
    }

    /// All that is registered, for those who serve it.
    pub(crate) fn registry(&self) -> Registry {
        Registry::new(self.entries.values().map(|entry| entry.served.clone()))
    }

    /// Up to `limit` registrations whose time has come, those first whose certificate ends first; they count as asked for
    /// until [`Workloads::issued`] or [`Workloads::failed`] says what came of it. Who has none waits already, but whoever is
    /// about to lose one comes before.
    pub(crate) fn take_due(&mut self, now: SystemTime, limit: usize) -> Vec<Arc<Served>> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(id) = self.queue.take_due(now)
        {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.asked = true;
            taken.push(entry.served.clone());
        }
        taken
    }

    /// When the next request is due; the past when one is overdue, `None` when none ever will be.
    pub(crate) fn next_due(&self) -> Option<SystemTime> {
        self.queue.next_due()
    }

    /// When the first of the certificates held expires.
    pub(crate) fn next_expiry(&self) -> Option<SystemTime> {
        self.queue.next_expiry()
    }

    /// A certificate came. Returns whether it is the first one of its registration.
    pub(crate) fn issued(&mut self, asked: &Arc<Served>, mut issued: Issued, jitter: Jitter) -> bool {
        let Some((id, entry)) = current(&mut self.entries, asked) else { return false };
        issued.revoke(self.revocations.clone());
        if let Some(bundles) = &self.bundles {
            issued.believe(bundles.clone());
        }
        let previous = entry.issued.as_ref().map(|issued| issued.svid().serial().to_owned());
        let due = next_attempt(Some(issued.life()), None, jitter);
        tracing::info!(
            target: "alcazar::rotation",
            spiffe_id = %issued.svid().id(),
            serial = issued.svid().serial(),
            not_after = rfc3339(issued.svid().validity().not_after()),
            previous_serial = previous.as_deref().unwrap_or("none"),
            next_rotation = due.map(rfc3339),
            registration = asked.registration().id(),
            "{}", if previous.is_some() { "rotated a workload's certificate" } else { "a workload has its first certificate" },
        );
        let first = entry.held.borrow().credentials().is_none();
        entry.asked = false;
        let before = self.asked_before.remove(id);
        entry.failures = None;
        entry.last_error = None;
        // Asked for before the reissue was heard of, and issued by the wrong one: once more. What was asked for after it is
        // what the CA gives.
        entry.due = if before && self.reissue.concerns(issued.svid()) { None } else { due };
        entry.held.send_replace(Arc::new(Held::Certificate(issued.credentials())));
        let above = |issued: &Issued| issued.svid().chain().get(1).cloned();
        self.reissued += u64::from(entry.issued.as_ref().and_then(above) != above(&issued));
        entry.issued = Some(issued);
        entry.unready = None;
        self.queue.put(id, entry.changed());
        self.changed.insert(id.clone());
        self.news = true;
        first
    }

    /// No certificate came. What is held stays. Returns whether the reason is another than at the last attempt. A CA that is
    /// busy is no reason.
    pub(crate) fn failed(&mut self, asked: &Arc<Served>, why: &Failure, now: SystemTime, jitter: Jitter) -> bool {
        let Some((id, entry)) = current(&mut self.entries, asked) else { return false };
        let failures = Failures::another(entry.failures, now).told(why.later);
        entry.asked = false;
        self.asked_before.remove(id);
        entry.failures = Some(failures);
        entry.due = next_attempt(entry.issued.as_ref().map(Issued::life), Some(&failures), jitter);
        self.queue.put(id, entry.changed());
        self.news = true;
        if why.later.is_some_and(|later| later.busy) {
            return false;
        }
        let reason = why.reason.as_str();
        let new = entry.last_error.as_deref() != Some(reason);
        entry.last_error = Some(reason.to_owned());
        if entry.issued.is_none() {
            entry.hold_nothing(format!("no certificate could be had yet: {reason}"));
        }
        new
    }

    /// The CA answers again: nobody who failed meanwhile needs to wait any longer than it takes not to ask all at once.
    pub(crate) fn outage_is_over(&mut self, now: SystemTime, jitter: impl Fn() -> Jitter) {
        for (id, entry) in &mut self.entries {
            let Some(failures) = &entry.failures else { continue };
            let first = after_outage(entry.issued.as_ref().map(Issued::life), failures, now, jitter());
            entry.due = entry.due.map(|due| due.min(first));
            self.queue.put(id, entry.changed());
            self.news = true;
        }
    }

    /// Withdraws what has expired: nothing expired is ever served.
    pub(crate) fn expire(&mut self, now: SystemTime, readiness: &Readiness) {
        for id in self.queue.expired(now) {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let Some(issued) = entry.issued.take_if(|issued| issued.life().is_over(now)) else { continue };
            self.changed.insert(id.clone());
            let reason = entry.last_error.as_deref().unwrap_or("no new one came in time");
            let why = format!("the certificate expired at {}: {reason}", rfc3339(issued.life().expires()));
            tracing::error!(
                target: "alcazar::refused",
                spiffe_id = %issued.svid().id(), serial = issued.svid().serial(), reason = why,
                "a workload has no certificate any more"
            );
            entry.hold_nothing(why);
            entry.unready = Some(readiness.register(format!("certificate of {id}")));
            self.queue.put(&id, entry.changed());
            self.news = true;
        }
    }

    /// New trust bundles: everybody's at once. A certificate that leads to none of their roots (the CA was set up
    /// anew) is due at once.
    pub(crate) fn believe(&mut self, bundles: Arc<TrustBundles>, now: SystemTime) {
        for (id, entry) in &mut self.entries {
            let Some(issued) = entry.issued.as_mut().filter(|issued| *issued.bundles() != *bundles) else { continue };
            issued.believe(bundles.clone());
            if verify_peer(issued.svid().chain(), &bundles, Side::Client, now).is_err() {
                entry.due = None;
            }
            entry.held.send_replace(Arc::new(Held::Certificate(issued.credentials())));
            self.queue.put(id, entry.changed());
            self.news = true;
        }
        self.bundles = Some(bundles);
    }

    /// New revocations: everybody's at once. A certificate that is revoked itself is withdrawn; peers refuse it anyhow. Another
    /// is asked for at once, and again at every later change: one of them may say that the identity is reinstated.
    pub(crate) fn revoke(&mut self, revocations: Arc<Revocations>, now: SystemTime, readiness: &Readiness) {
        self.news = true;
        for (id, entry) in &mut self.entries {
            let Some(issued) = entry.issued.as_mut() else {
                entry.due = entry.due.map(|due| due.min(now));
                self.queue.put(id, entry.changed());
                continue;
            };
            issued.revoke(revocations.clone());
            let Some(revoked) = issued.revoked(now) else {
                entry.held.send_replace(Arc::new(Held::Certificate(issued.credentials())));
                continue;
            };
            tracing::error!(
                target: "alcazar::revoked",
                spiffe_id = %issued.svid().id(), serial = issued.svid().serial(), reason = %revoked,
                "a workload's certificate was revoked; it is served no more"
            );
            self.changed.insert(id.clone());
            entry.issued = None;
            entry.due = None;
            entry.hold_nothing(revoked.to_string());
            entry.unready = Some(readiness.register(format!("certificate of {id}")));
            self.queue.put(id, entry.changed());
        }
        self.revocations = revocations;
    }

    /// The CA wants what others have issued to be issued anew: now, spread as it says.
    pub(crate) fn reissue(&mut self, reissue: Arc<Reissue>, now: SystemTime, jitter: impl Fn() -> Jitter) {
        for (id, entry) in &mut self.entries {
            if entry.asked && reissue.round > 0 {
                self.asked_before.insert(id.clone());
            }
            let concerned = entry.issued.as_ref().is_some_and(|issued| reissue.concerns(issued.svid()));
            if concerned && !entry.asked {
                let soon = now + jitter().of(reissue.spread);
                entry.due = entry.due.map(|due| due.min(soon));
                self.queue.put(id, entry.changed());
                self.news = true;
            }
        }
        self.reissue = reissue;
    }

    /// The reissue that no answer from before is under way of.
    pub(crate) fn round(&self) -> u64 {
        if self.asked_before.is_empty() { self.reissue.round } else { 0 }
    }

    /// Counts the certificates that have another issuer than what was held before.
    pub(crate) fn reissued(&self) -> u64 {
        self.reissued
    }

    /// Whether [`Workloads::take_status`] would tell something else than before.
    pub(crate) fn has_news(&self) -> bool {
        self.news
    }

    /// What is held and due, for those who ask. The sockets are not known here.
    pub(crate) fn take_status(&mut self) -> Vec<Arc<RegistrationStatus>> {
        self.news = false;
        self.entries.values_mut().map(|entry| entry.status()).collect()
    }
}

/// The entry that a request was made for, unless it has gone or become another's meanwhile.
fn current<'e>(
    entries: &'e mut BTreeMap<Arc<str>, Box<Entry>>,
    asked: &Served,
) -> Option<(&'e Arc<str>, &'e mut Entry)> {
    let (id, entry) = find(entries, asked.registration().id())?;
    let same = entry.served.registration().spiffe_id() == asked.registration().spiffe_id();
    (same && entry.asked).then_some((id, entry))
}

/// An entry, and its key.
fn find<'e>(entries: &'e mut BTreeMap<Arc<str>, Box<Entry>>, id: &str) -> Option<(&'e Arc<str>, &'e mut Entry)> {
    entries.range_mut::<str, _>((Included(id), Included(id))).next().map(|(id, entry)| (id, &mut **entry))
}

impl Entry {
    fn new(registration: Registration, readiness: &Readiness) -> Self {
        let unready = readiness.register(format!("certificate of {}", registration.id()));
        let (held, follow) = watch::channel(Arc::new(Held::Nothing("no certificate has come yet".to_owned())));
        Self {
            served: Arc::new(Served::new(registration, follow)),
            held,
            issued: None,
            failures: None,
            last_error: None,
            asked: false,
            due: None,
            unready: Some(unready),
            told: None,
        }
    }

    /// How it stands, now that something of it is different: what was told of it counts no more.
    fn changed(&mut self) -> Standing {
        self.told = None;
        Standing {
            due: self.due,
            expires: self.issued.as_ref().map(|issued| issued.life().expires()),
            asked: self.asked,
        }
    }

    fn status(&mut self) -> Arc<RegistrationStatus> {
        let registration = self.served.registration();
        let told = self.told.get_or_insert_with(|| {
            Arc::new(RegistrationStatus {
                id: registration.id().to_owned(),
                spiffe_id: registration.spiffe_id().clone(),
                certificate: self.issued.as_ref().map(|issued| CertificateStatus::of(issued.svid())),
                next_rotation: self.due,
                last_error: self.last_error.clone(),
                socket: None,
            })
        });
        told.clone()
    }

    /// The same identity, perhaps with other selectors or another life.
    fn update(mut self, registration: Registration) -> Self {
        let held = self.served.registration();
        if *held == registration {
            return self;
        }
        if held.ttl() != registration.ttl() {
            self.due = None;
        }
        self.served = Arc::new(Served::new(registration, self.held.subscribe()));
        self
    }

    fn hold_nothing(&mut self, why: String) {
        self.held.send_replace(Arc::new(Held::Nothing(why)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::issued::Trust;
    use crate::keys;
    use crate::testing::ca::{Ca, node};

    #[test]
    fn who_ends_first_is_asked_for_first() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (mut ca, readiness) = (Ca::new(noon), Readiness::new());
        let minutes =
            [("a", Some(50)), ("b", Some(20)), ("c", None), ("d", Some(30)), ("e", Some(10)), ("f", Some(40))];
        for (id, _) in minutes {
            ca.register(id, id, &["uid:1"]);
        }
        let mut workloads = Workloads::default();
        let read = |wire: &_| Registration::read(wire, &node()).unwrap();
        workloads.register(ca.registrations.iter().map(read).collect(), &readiness);
        for served in workloads.take_due(noon, 10) {
            let id = served.registration().id();
            let Some((_, Some(life))) = minutes.iter().find(|(name, _)| *name == id) else {
                let why = Failure { reason: "no".into(), later: None };
                assert!(workloads.failed(&served, &why, noon, Jitter::new(0)));
                continue;
            };
            let key = keys::generate().unwrap();
            let (csr, spiffe_id) = (keys::request(&key).unwrap(), served.registration().spiffe_id());
            let reply = ca.issue_one(&csr, spiffe_id.as_str(), Duration::from_secs(life * 60), noon);
            let issued = Issued::accept(&reply, key, spiffe_id, Trust::Established, noon).unwrap();
            assert!(workloads.issued(&served, issued, Jitter::new(0)));
        }
        let mut take = |minute: u64, limit| {
            let taken = workloads.take_due(noon + Duration::from_secs(60 * minute), limit);
            taken.iter().map(|served| served.registration().id().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(take(8, 1), "c", "it has none, and nobody else loses one within a minute");
        assert_eq!(take(25, 2), "e b", "what has ended comes before what ends");
        assert_eq!(take(25, 2), "d f");
    }
}
