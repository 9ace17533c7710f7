//! Citadel's contract: every service account of a namespace that asks for it has a Secret with a certificate and its key.
//!
//! ```text
//! namespaces ─┐            ┌─ Keep until half of its life
//! accounts ───┼─▶ World ──▶ reconcile ─┼─ Write: key, certificate, on record, PUT
//! Secrets ────┘   (watches)  (pure)    └─ Remove
//! ```
//!
//! # Invariants
//! - One replica at a time does it, under a lease; it stops before the lease ends.
//! - A Secret without our label is never written and never removed; it is reported.
//! - A certificate is on record before its Secret is written, as anybody's; a private key is wiped once it is written.

mod object;
mod reconcile;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use alcazar_identity::{KeyError, ParseSpiffeIdError, ParseSvidError, SpiffeId, SvidKey, X509Svid};
use alcazar_service::{Shutdown, process};
use alcazar_store::Lease;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, PartialObjectMeta, PostParams, Preconditions},
    runtime::{WatchStreamExt, watcher, watcher::Config},
};
use rcgen::{CertificateParams, KeyPair};
use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

use self::{
    object::Held,
    reconcile::{Account, Action, Trust, Why},
    world::{Change, Place, World},
};
use crate::{
    ca::Ca,
    callers::Plug,
    csr::{Csr, CsrError},
    duration,
    hierarchy::pem,
    refusal::RequestError,
    serial::random_bytes,
};

/// Secrets for service accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SecretsConfig {
    /// The life of their certificates. Default: the longest that the default profile gives, for applications that read their
    /// files once in a while.
    #[serde(deserialize_with = "duration::deserialize_option")]
    pub ttl: Option<Duration>,
}

/// Keeps the Secrets until the end.
pub(crate) async fn run(ca: Ca, config: SecretsConfig, shutdown: Shutdown) {
    let client = match super::client(&ca.config().kubernetes).await {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(reason = %process::chain(&error), "no Secrets are kept for service accounts");
            return;
        }
    };
    let holder = match random_bytes::<8>() {
        Ok(bytes) => format!("{:016x}", u64::from_be_bytes(bytes)),
        Err(error) => {
            tracing::error!(%error, "no Secrets are kept for service accounts");
            return;
        }
    };
    let ttl = config.ttl.unwrap_or(ca.0.profiles.default().max_ttl());
    let mut keeper = Keeper {
        ca,
        client,
        ttl,
        holder,
        lease: None,
        world: World::default(),
        dirty: BTreeSet::new(),
        later: BTreeMap::new(),
        foreign: BTreeSet::new(),
    };
    keeper.run(&shutdown).await;
    if let Some(lease) = keeper.lease.take()
        && let Err(error) = keeper.ca.0.store.release_lease(&lease).await
    {
        tracing::debug!(%error, "the lease of the Secrets was not given back; it ends by itself");
    }
}

struct Keeper {
    ca: Ca,
    client: Client,
    ttl: Duration,
    holder: String,
    lease: Option<Lease>,
    world: World,
    /// To be looked at now.
    dirty: BTreeSet<Place>,
    /// To be looked at then.
    later: BTreeMap<Place, SystemTime>,
    /// Those that were reported as somebody else's.
    foreign: BTreeSet<Place>,
}

/// What became of a look at an account.
enum Done {
    /// Look again then, or when something changes.
    Until(Option<SystemTime>),
    /// Its name is taken by a Secret that is not ours.
    Foreign,
}

impl Keeper {
    async fn run(&mut self, shutdown: &Shutdown) {
        let mut changes = std::pin::pin!(changes(&self.client));
        let mut hierarchy = self.ca.0.hierarchy.subscribe();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(change) = changes.next() => match change {
                    Ok(change) => self.dirty.extend(self.world.take(change)),
                    Err(error) => tracing::warn!(%error, "a watch for the Secrets of service accounts broke off; it goes on by itself"),
                },
                Ok(()) = hierarchy.changed() => self.dirty.extend(self.world.everybody()),
                _ = tick.tick() => {}
            }
            self.keep_lease().await;
            self.work().await;
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
            Err(alcazar_store::LeaseError::Held { .. }) => self.lease = None,
            Err(alcazar_store::LeaseError::Lost { .. }) => {
                tracing::warn!("another replica keeps the Secrets of service accounts now");
                self.lease = None;
            }
            Err(error) => tracing::warn!(reason = %process::chain(&error), "the lease of the Secrets was not renewed"),
        }
    }

    /// Looks at a few accounts at once, so that a start with thousands of them leaves the CA its breath.
    async fn work(&mut self) {
        let now = (self.ca.0.clock)();
        if !self.lease.as_ref().is_some_and(|lease| lease.holds(now + LEASE / 3)) || !self.world.is_whole() {
            return;
        }
        let due: Vec<_> = self.later.iter().filter(|(_, then)| **then <= now).map(|(place, _)| place.clone()).collect();
        self.dirty.extend(due);
        let batch: Vec<_> = std::iter::from_fn(|| self.dirty.pop_first()).take(BATCH).collect();
        let trust = self.trust();
        let this = &*self;
        let done: Vec<_> = stream::iter(batch)
            .map(|place| async {
                let done = this.look(&place, &trust, now).await;
                (place, done)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (place, outcome) in done {
            self.later.remove(&place);
            match outcome {
                Ok(Done::Until(then)) => {
                    self.foreign.remove(&place);
                    self.later.extend(then.map(|then| (place, then)));
                }
                Ok(Done::Foreign) => {
                    if self.foreign.insert(place.clone()) {
                        tracing::warn!(
                            namespace = place.0,
                            secret = object::name(&place.1),
                            "the Secret of a service account is somebody else's (no label {}={}) and stays as it is; label it to hand it over, or remove it",
                            object::OWNED.0,
                            object::OWNED.1
                        );
                    }
                    self.later.insert(place, now + RETRY_FOREIGN);
                }
                Err(error) => {
                    tracing::warn!(namespace = place.0, account = place.1, reason = %process::chain(&error), "the Secret of a service account was not kept up; it is tried again");
                    self.later.insert(place, now + RETRY);
                }
            }
        }
    }

    fn trust(&self) -> Trust {
        let hierarchy = self.ca.hierarchy();
        let roots = hierarchy.roots().iter().map(|root| pem(&root.certificate)).collect();
        Trust { upper: hierarchy.upper().to_vec(), roots }
    }

    async fn look(&self, place: &Place, trust: &Trust, now: SystemTime) -> Result<Done, KeepSecretError> {
        let (account, held) = (self.world.account(place), self.world.secret(place));
        if held.is_some_and(|held| !held.is_typed) {
            return Ok(Done::Foreign);
        }
        let id = SpiffeId::workload(self.ca.trust_domain(), &place.0, &place.1)?;
        match (reconcile::reconcile(account, &id, held, self.world.opted_in(place), trust, now), account) {
            (Action::Keep(until), _) => Ok(Done::Until(Some(until))),
            (Action::Write(why), Some(account)) => self.write(account, &id, held, why).await,
            (Action::Remove, _) => self.remove(place, held).await,
            (Action::Nothing | Action::Write(_), _) => Ok(Done::Until(None)),
        }
    }

    async fn write(
        &self,
        account: &Account,
        id: &SpiffeId,
        held: Option<&Held>,
        why: Why,
    ) -> Result<Done, KeepSecretError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &account.namespace);
        let name = object::name(&account.name);
        if held.is_none() && secrets.get_metadata_opt(&name).await?.is_some_and(|found| !is_ours(&found.metadata)) {
            return Ok(Done::Foreign);
        }
        let key = KeyPair::generate()?;
        let request = CertificateParams::default().serialize_request(&key)?;
        let csr = Csr::from_der(request.der())?;
        let caller = format!("secret {}/{name}", account.namespace);
        let reply = self.ca.issue_for(&caller, Plug::Secrets, id, &csr, self.ttl).await.map_err(Box::new)?;
        let pkcs8 = Zeroizing::new(key.serialize_der());
        let svid = X509Svid::new(reply.chain, SvidKey::from_pkcs8(pkcs8.to_vec())?)?;
        // The roots of the same moment as the certificate.
        let roots: String = reply.hierarchy.roots().iter().map(|root| pem(&root.certificate)).collect();
        let mut secret = object::write(account, &svid, &roots, held);
        let parameters = PostParams::default();
        let written = match held {
            Some(_) => secrets.replace(&name, &parameters, &secret).await,
            None => secrets.create(&parameters, &secret).await,
        };
        object::wipe(&mut secret);
        let mut written = written?;
        object::wipe(&mut written);
        tracing::info!(target: "alcazar::rotation", spiffe_id = %id, namespace = account.namespace, secret = name, serial = svid.serial(), %why, "wrote the Secret of a service account");
        // What was written comes back by the watch, and is looked at then.
        Ok(Done::Until(None))
    }

    async fn remove(&self, place: &Place, held: Option<&Held>) -> Result<Done, KeepSecretError> {
        let Some(held) = held else { return Ok(Done::Until(None)) };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &place.0);
        let only_this = Preconditions { uid: Some(held.uid.clone()), resource_version: Some(held.version.clone()) };
        let parameters = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        let name = object::name(&place.1);
        match secrets.delete(&name, &parameters).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            outcome => drop(outcome?),
        }
        tracing::info!(target: "alcazar::rotation", namespace = place.0, secret = name, "removed the Secret of a service account that has none any more");
        Ok(Done::Until(None))
    }
}

fn changes(client: &Client) -> impl Stream<Item = Result<Change, watcher::Error>> + use<> {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let accounts: Api<PartialObjectMeta<ServiceAccount>> = Api::all(client.clone());
    let secrets: Api<Secret> = Api::all(client.clone());
    let ours = Config::default().labels(&format!("{}={}", object::OWNED.0, object::OWNED.1));
    stream::select_all([
        watcher(namespaces, Config::default()).default_backoff().map(|e| e.map(Change::Namespace)).boxed(),
        watcher(accounts, Config::default()).default_backoff().map(|e| e.map(Change::Account)).boxed(),
        watcher(secrets, ours).default_backoff().map(|e| e.map(Change::Secret)).boxed(),
    ])
}

fn is_ours(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.get(object::OWNED.0).is_some_and(|by| by == object::OWNED.1))
}

/// Why an account's Secret is not as it should be.
#[derive(Debug, Error)]
enum KeepSecretError {
    #[error("the account's name cannot stand in a SPIFFE ID")]
    Id(#[from] ParseSpiffeIdError),
    #[error("cannot make a key")]
    Generate(#[from] rcgen::Error),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("no certificate was issued")]
    Issue(#[from] Box<RequestError>),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("what was issued is not an SVID")]
    Svid(#[from] ParseSvidError),
    #[error("the Kubernetes API refused")]
    Api(#[from] kube::Error),
}

const LEASE_NAME: &str = "kubernetes-secrets";
const LEASE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);
const RETRY_FOREIGN: Duration = Duration::from_secs(60);
/// Between two looks at what has changed.
const BATCH: usize = 64;
const AT_ONCE: usize = 8;
