//! The loop: what has changed, whose turn it is by the lease, and what became of each account.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use alcazar_service::{
    Part, Shutdown,
    metrics::{Counters, Gauge},
    process,
};
use alcazar_store::Lease;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::{
    Api, Client,
    api::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher, watcher::Config},
};

use super::{
    acts::{Done, MARGIN},
    object,
    pace::Pace,
    reconcile::Trust,
    world::{Change, Place, World},
};
use crate::{ca::Ca, hierarchy::pem};

pub(super) struct Keeper {
    pub(super) ca: Ca,
    pub(super) client: Client,
    pub(super) ttl: Duration,
    /// How its Secrets are told from those of another CA.
    pub(super) ours: String,
    holder: String,
    lease: Option<Lease>,
    pub(super) world: World,
    pub(super) pace: Pace,
    /// Rises when a Secret is to be in accord with something else: what is written then is nobody's doing but ours.
    pub(super) generation: u64,
    /// To be looked at now.
    dirty: BTreeSet<Place>,
    /// To be looked at then.
    later: BTreeMap<Place, SystemTime>,
    /// Those that were reported as somebody else's.
    foreign: BTreeSet<Place>,
    /// What is wrong with each watch.
    broken: [Option<String>; WATCHES],
    pub(super) written: Counters<1>,
    failing: Gauge,
}

impl Keeper {
    pub(super) fn new(ca: Ca, client: Client, ttl: Duration, holder: String) -> Self {
        let config = ca.config();
        let registry = &ca.0.metrics.registry;
        Self {
            ours: object::mark(&config.trust_domain, &config.cluster),
            written: registry.counters(
                "alcazar_ca_secrets_written",
                "Secrets of service accounts that were written, by the reason",
                ["why"],
            ),
            failing: registry.gauge(
                "alcazar_ca_secrets_failing",
                "Secrets of service accounts that this replica should keep up and cannot",
            ),
            ca,
            client,
            ttl,
            holder,
            lease: None,
            world: World::default(),
            pace: Pace::default(),
            generation: 0,
            dirty: BTreeSet::new(),
            later: BTreeMap::new(),
            foreign: BTreeSet::new(),
            broken: [const { None }; WATCHES],
        }
    }

    /// Until the end; then the lease is given back.
    pub(super) async fn run(mut self, part: Part, shutdown: &Shutdown) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep(&part) => {}
        }
        if let Some(lease) = self.lease.take()
            && let Err(error) = self.ca.0.store.release_lease(&lease).await
        {
            tracing::debug!(%error, "the lease of the Secrets was not given back; it ends by itself");
        }
    }

    async fn keep(&mut self, part: &Part) {
        let mut changes = std::pin::pin!(changes(&self.client));
        let mut hierarchy = self.ca.0.hierarchy.subscribe();
        let mut revocations = self.ca.follow_revocations();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((watch, change)) = changes.next() => self.take(watch, change),
                Ok(()) = hierarchy.changed() => {
                    self.generation += 1;
                    self.dirty.extend(self.world.everybody());
                }
                // Who was revoked may be reinstated.
                Ok(()) = revocations.changed() => self.dirty.extend(self.pace.refused().cloned()),
                _ = tick.tick() => {}
            }
            self.keep_lease().await;
            self.work().await;
            self.tell(part);
        }
    }

    fn take(&mut self, watch: usize, change: Result<Change, watcher::Error>) {
        let broken = self.broken.get_mut(watch);
        match change {
            Ok(change) => {
                broken.into_iter().for_each(|broken| *broken = None);
                self.dirty.extend(self.world.take(change));
            }
            Err(error) => {
                let reason = process::chain(&error);
                if broken.as_ref().is_none_or(|broken| broken.is_none()) {
                    tracing::warn!(
                        reason,
                        "a watch for the Secrets of service accounts broke off; it goes on by itself"
                    );
                }
                broken.into_iter().for_each(|broken| *broken = Some(reason.clone()));
            }
        }
    }

    /// How it goes, for `/readyz` and the metrics.
    fn tell(&self, part: &Part) {
        let failing = self.pace.failing().count();
        self.failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
        if let Some(reason) = self.broken.iter().flatten().next() {
            return part.degraded(format!("changes of the cluster are not seen: {reason}"));
        }
        match self.pace.failing().next() {
            Some(((namespace, account), why)) => part.degraded(format!(
                "{failing} Secrets are not kept up; that of the service account {namespace}/{account}: {why}"
            )),
            None => part.ready(),
        }
    }

    /// Takes the lease, or keeps it.
    async fn keep_lease(&mut self) {
        let (store, now) = (&self.ca.0.store, (self.ca.0.clock)());
        let fresh = |lease: &Lease| lease.holds(now + LEASE * 2 / 3);
        let outcome = match &self.lease {
            Some(lease) if fresh(lease) => return,
            Some(lease) => store.renew_lease(lease, LEASE, now).await,
            None if !self.world.is_whole() => return,
            None => store.acquire_lease(LEASE_NAME, &self.holder, LEASE, now).await,
        };
        match outcome {
            Ok(lease) => {
                if self.lease.is_none() {
                    tracing::info!(target: "alcazar::supervise", "this replica keeps the Secrets of service accounts");
                    self.dirty = self.world.everybody();
                }
                self.lease = Some(lease);
            }
            Err(alcazar_store::LeaseError::Held { .. }) => self.give_up_lease(),
            Err(alcazar_store::LeaseError::Lost { .. }) => {
                tracing::warn!("another replica keeps the Secrets of service accounts now");
                self.give_up_lease();
            }
            Err(error) => tracing::warn!(reason = %process::chain(&error), "the lease of the Secrets was not renewed"),
        }
    }

    /// What fails is another replica's to tell.
    fn give_up_lease(&mut self) {
        self.lease = None;
        self.pace = Pace::default();
    }

    /// Whether something that is begun now ends under the lease.
    pub(super) fn has_time(&self) -> bool {
        let now = (self.ca.0.clock)();
        self.lease.as_ref().is_some_and(|lease| lease.holds(now + MARGIN))
    }

    /// Looks at a few accounts at once, so that a start with thousands of them leaves the CA its breath.
    async fn work(&mut self) {
        let now = (self.ca.0.clock)();
        if !self.has_time() || !self.world.is_whole() {
            return;
        }
        self.pace.forget(now);
        let due: Vec<_> = self.later.iter().filter(|(_, then)| **then <= now).map(|(place, _)| place.clone()).collect();
        self.dirty.extend(due);
        let batch: Vec<_> = std::iter::from_fn(|| self.dirty.pop_first()).take(BATCH).collect();
        let trust = self.trust();
        let this = &*self;
        let done: Vec<_> = stream::iter(batch)
            .map(|place| async {
                let done = this.look(&place, &trust).await;
                (place, done)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let now = (self.ca.0.clock)();
        for (place, outcome) in done {
            self.later.remove(&place);
            if !matches!(outcome, Ok(Done::Foreign(_))) {
                self.foreign.remove(&place);
            }
            match outcome {
                Ok(Done::Until(then)) => {
                    self.pace.fine(&place);
                    self.later.extend(then.map(|then| (place, then)));
                }
                Ok(Done::Wrote) => {
                    self.pace.fine(&place);
                    self.pace.wrote(&place, self.generation, now);
                }
                Ok(Done::Waits(then)) => drop(self.later.insert(place, then)),
                Ok(Done::NotNow) => drop(self.dirty.insert(place)),
                Ok(Done::Foreign(why)) => {
                    self.pace.fine(&place);
                    if self.foreign.insert(place.clone()) {
                        let (namespace, secret) = (&place.0, object::name(&place.1));
                        tracing::warn!(
                            namespace,
                            secret,
                            why,
                            "the Secret of a service account is somebody else's and stays as it is; hand it over, or remove it"
                        );
                    }
                    self.later.insert(place, now + RETRY_FOREIGN);
                }
                Err(error) => {
                    let why = process::chain(&error);
                    let (then, is_new) = self.pace.failed(&place, why.clone(), error.is_lasting(), now);
                    if is_new {
                        tracing::warn!(
                            namespace = place.0,
                            account = place.1,
                            reason = why,
                            "the Secret of a service account was not kept up; it is tried again"
                        );
                    }
                    self.later.insert(place, then);
                }
            }
        }
    }

    fn trust(&self) -> Trust {
        let hierarchy = self.ca.hierarchy();
        let roots = hierarchy.roots().iter().map(|root| pem(&root.certificate)).collect();
        Trust { upper: hierarchy.upper().to_vec(), roots }
    }
}

/// Changes of the cluster, and by which watch they came.
fn changes(client: &Client) -> impl Stream<Item = (usize, Result<Change, watcher::Error>)> + use<> {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let accounts: Api<PartialObjectMeta<ServiceAccount>> = Api::all(client.clone());
    let secrets: Api<Secret> = Api::all(client.clone());
    let ours = Config::default().labels(&format!("{}={}", object::OWNED.0, object::OWNED.1));
    stream::select_all([
        watcher(namespaces, Config::default()).default_backoff().map(|e| (0, e.map(Change::Namespace))).boxed(),
        watcher(accounts, Config::default()).default_backoff().map(|e| (1, e.map(Change::Account))).boxed(),
        watcher(secrets, ours).default_backoff().map(|e| (2, e.map(Change::Secret))).boxed(),
    ])
}

const WATCHES: usize = 3;
const LEASE_NAME: &str = "kubernetes-secrets";
const LEASE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_secs(1);
const RETRY_FOREIGN: Duration = Duration::from_secs(60);
/// Between two looks at what has changed.
const BATCH: usize = 64;
const AT_ONCE: usize = 8;
