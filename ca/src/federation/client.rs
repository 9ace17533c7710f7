//! Fetches the bundles of other trust domains, again and again.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_api::spiffe::{BundleDocumentError, ReadBundle, read_bundle};
use alcazar_identity::{BundleError, TrustBundle, TrustBundles, TrustDomain};
use alcazar_mtls::{
    Expected,
    web::{FetchError, Fetched, HttpsUrl, Limits, RootsError, WebClient},
};
use alcazar_service::{Shutdown, metrics::Gauges, process};
use alcazar_store::WatchError;
use thiserror::Error;
use tokio::sync::watch;

use super::{
    config::{KnownBy, Relation},
    foreign::{ForeignBundle, ForeignError, Source},
    schedule,
};
use crate::{ca::Ca, metrics::CaMetrics, records::family, serial::random_bytes};

/// The relations of this CA, and what is believed through them.
pub(crate) struct Federation {
    pub(crate) relations: Vec<Relation>,
    /// The bundles of other trust domains.
    pub(crate) foreign: watch::Sender<Arc<TrustBundles>>,
    /// Where our bundle is served, once it is.
    pub(crate) endpoint: std::sync::OnceLock<std::net::SocketAddr>,
    /// Held from reading the store to believing it, so that what was read first never comes last.
    pub(super) turn: tokio::sync::Mutex<()>,
    polls: Mutex<BTreeMap<TrustDomain, Poll>>,
    age: Gauges<1>,
    failures: Gauges<1>,
}

/// What the last polls of an endpoint came to.
#[derive(Clone, Debug, Default)]
struct Poll {
    etag: Option<String>,
    /// When it last answered with a bundle that could be believed.
    seen: Option<SystemTime>,
    failures: u32,
}

impl Federation {
    pub(crate) fn new(relations: Vec<Relation>, metrics: &CaMetrics) -> Self {
        Self {
            relations,
            foreign: watch::Sender::new(Arc::default()),
            endpoint: std::sync::OnceLock::new(),
            turn: tokio::sync::Mutex::default(),
            polls: Mutex::default(),
            age: metrics.registry.gauges(
                "alcazar_ca_federation_bundle_age_seconds",
                "Seconds since the bundle of another trust domain was last confirmed by its endpoint; -1 where there is none yet",
                ["trust_domain"],
            ),
            failures: metrics.registry.gauges(
                "alcazar_ca_federation_failed_polls",
                "Polls of another trust domain's bundle endpoint that failed since the last that did not",
                ["trust_domain"],
            ),
        }
    }

    fn poll_of(&self, trust_domain: &TrustDomain) -> Poll {
        self.polls.lock().unwrap_or_else(PoisonError::into_inner).get(trust_domain).cloned().unwrap_or_default()
    }

    fn note(&self, trust_domain: &TrustDomain, poll: Poll) {
        self.polls.lock().unwrap_or_else(PoisonError::into_inner).insert(trust_domain.clone(), poll);
    }

    /// What the store says of a bundle's age: of before this process, or by another replica.
    pub(super) fn was_confirmed(&self, trust_domain: &TrustDomain, at: SystemTime) {
        let mut polls = self.polls.lock().unwrap_or_else(PoisonError::into_inner);
        let poll = polls.entry(trust_domain.clone()).or_default();
        poll.seen = poll.seen.max(Some(at));
    }
}

impl Ca {
    /// Where our bundle is served, once it is.
    pub fn bundle_endpoint(&self) -> Option<std::net::SocketAddr> {
        self.0.federation.endpoint.get().copied()
    }

    /// Looks at the endpoint of another trust domain, now; whether its bundle changed. A running CA does it by itself.
    ///
    /// # Errors
    /// When the endpoint cannot be reached or believed, or what it says cannot be. What is held stays.
    pub async fn poll_federated(&self, trust_domain: &TrustDomain) -> Result<bool, FederationError> {
        let relation = self.0.federation.relations.iter().find(|relation| relation.trust_domain == *trust_domain);
        let relation = relation.ok_or_else(|| FederationError::NoRelation(trust_domain.clone()))?;
        let before = self.0.federation.poll_of(trust_domain);
        let outcome = self.poll(relation, before.etag.as_deref()).await;
        let now = (self.0.clock)();
        let poll = match &outcome {
            Ok((etag, _)) => Poll { etag: etag.clone(), seen: Some(now), failures: 0 },
            Err(_) => Poll { failures: before.failures.saturating_add(1), ..before },
        };
        if matches!(outcome, Ok((_, false)))
            && let Err(error) = self.confirm_foreign_bundle(trust_domain).await
        {
            tracing::debug!(%trust_domain, reason = %process::chain(&error), "it was not noted that the bundle of another trust domain is the newest");
        }
        self.0.federation.failures.with([trust_domain.to_string()]).set(i64::from(poll.failures));
        self.0.federation.note(trust_domain, poll);
        outcome.map(|(_, changed)| changed)
    }

    async fn poll(&self, relation: &Relation, etag: Option<&str>) -> Result<(Option<String>, bool), FederationError> {
        let client = self.web_client(relation).await?;
        let held = self.0.federation.foreign.borrow().get(&relation.trust_domain).is_some();
        // What we do not hold cannot be unchanged.
        let etag = etag.filter(|_| held);
        let document = match fetch(&client, &relation.url, etag).await? {
            Fetched::New(document) => document,
            Fetched::Unchanged => return Ok((etag.map(str::to_owned), false)),
        };
        let read = read_bundle(relation.trust_domain.clone(), &document.bytes)?;
        for ignored in &read.ignored {
            tracing::warn!(trust_domain = %relation.trust_domain, place = ignored.place, reason = ignored.reason, "a key in the bundle of another trust domain is not used");
        }
        let changed = self.set_foreign_bundle(read, Source::Endpoint(relation.url.to_string())).await?;
        Ok((document.etag, changed))
    }

    async fn web_client(&self, relation: &Relation) -> Result<WebClient, FederationError> {
        let clock = Arc::clone(&self.0.clock);
        let client = match &relation.known_by {
            KnownBy::Web { roots_file: None } => {
                // The system's roots are files too.
                let loading = tokio::task::spawn_blocking(move || WebClient::system(clock));
                loading.await.map_err(|_panic| FederationError::Interrupted)??
            }
            KnownBy::Web { roots_file: Some(file) } => WebClient::with_roots(&read_file(file).await?, clock)?,
            KnownBy::Spiffe { id, bundle_file } => {
                let bundle = match (self.trust_bundles().get(id.trust_domain()), bundle_file) {
                    (Some(held), _) => held.clone(),
                    (None, Some(file)) => bundle_from_file(id.trust_domain(), file).await?,
                    (None, None) => return Err(FederationError::NoBundle(id.trust_domain().clone())),
                };
                WebClient::spiffe(bundle.into(), Expected::id(id.clone()), clock).with_revocations(self.revocations())
            }
        };
        Ok(client.with_limits(LIMITS))
    }

    /// When a bundle was last said to be the newest.
    pub(crate) fn confirmed(&self, held: &ForeignBundle) -> SystemTime {
        let seen = self.0.federation.poll_of(held.bundle.trust_domain()).seen;
        seen.map_or(held.confirmed, |seen| seen.max(held.confirmed))
    }

    /// Looks at one endpoint as often as its owner suggests, until the end.
    pub(crate) async fn follow_relation(self, relation: Relation, shutdown: Shutdown) {
        let trust_domain = &relation.trust_domain;
        loop {
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.poll_federated(trust_domain) => outcome,
            };
            let (hint, age, failures) = self.age_of(trust_domain);
            self.0
                .federation
                .age
                .with([trust_domain.to_string()])
                .set(age.map_or(-1, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX)));
            if let Err(error) = &outcome {
                let (reason, url) = (process::chain(error), relation.url.to_string());
                match age {
                    None => {
                        tracing::error!(%trust_domain, url, reason, failures, "the bundle of another trust domain cannot be fetched; its workloads are not believed")
                    }
                    Some(age) if schedule::is_stale(hint, age) => {
                        tracing::error!(%trust_domain, url, reason, failures, age = age.as_secs(), "the bundle of another trust domain is stale; the last one goes on, and changes of its roots are missed");
                    }
                    Some(_) => {
                        tracing::warn!(%trust_domain, url, reason, failures, "the bundle of another trust domain cannot be fetched; the last one goes on")
                    }
                }
            }
            let wait = schedule::wait(hint, failures, chance());
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// The refresh hint, the time since the endpoint last confirmed what is held, and how often it failed since.
    fn age_of(&self, trust_domain: &TrustDomain) -> (Option<Duration>, Option<Duration>, u32) {
        let poll = self.0.federation.poll_of(trust_domain);
        let foreign = self.0.federation.foreign.borrow().clone();
        let Some(held) = foreign.get(trust_domain) else { return (None, None, poll.failures) };
        let now = (self.0.clock)();
        let age = poll.seen.map(|seen| now.duration_since(seen).unwrap_or_default());
        (held.refresh_hint(), age, poll.failures)
    }

    /// Takes over what other replicas, and the operator, write; until the end.
    pub(crate) async fn follow_foreign_bundles(self, shutdown: Shutdown) {
        loop {
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.follow_the_store() => outcome,
            };
            match outcome {
                Ok(WatchError::Closed) => return,
                Ok(WatchError::Lagged) => continue,
                Err(error) => {
                    tracing::error!(reason = %process::chain(&error), "the bundles of other trust domains cannot be read; the ones in memory go on");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow_the_store(&self) -> Result<WatchError, ForeignError> {
        let prefix = crate::records::prefix(family::FEDERATION)?;
        let store = self.0.records.store();
        let listed = store.list(&prefix).await.map_err(crate::records::RecordError::from)?;
        let mut changes = store.watch(&prefix, listed.revision).await.map_err(crate::records::RecordError::from)?;
        loop {
            self.believe_foreign_bundles().await?;
            if let Err(ended) = changes.next().await {
                return Ok(ended);
            }
        }
    }
}

/// Fetches, and follows a few redirects by the same rules of TLS. Where they lead is forgotten.
///
/// **Source**: SPIFFE Federation §5.2.1.4, §5.2.2.4.
async fn fetch(client: &WebClient, url: &HttpsUrl, etag: Option<&str>) -> Result<Fetched, FederationError> {
    let mut at = url.clone();
    for _ in 0..=REDIRECTS {
        match client.fetch_newer(&at, etag).await {
            Err(FetchError::Redirect { url, to }) => match url.join(&to) {
                Ok(next) => at = next,
                Err(_not_https) => return Err(FetchError::Redirect { url, to }.into()),
            },
            outcome => return Ok(outcome?),
        }
    }
    Err(FederationError::Redirects { url: Box::new(url.clone()), at: Box::new(at) })
}

async fn read_file(path: &Path) -> Result<Vec<u8>, FederationError> {
    tokio::fs::read(path).await.map_err(|source| FederationError::File { path: path.into(), source })
}

async fn bundle_from_file(trust_domain: &TrustDomain, path: &Path) -> Result<TrustBundle, FederationError> {
    let bytes = read_file(path).await?;
    Ok(read_any(trust_domain, &bytes)?.bundle)
}

/// Reads a bundle document, or roots in PEM.
pub(crate) fn read_any(trust_domain: &TrustDomain, bytes: &[u8]) -> Result<ReadBundle, FederationError> {
    if bytes.trim_ascii_start().starts_with(b"{") {
        return Ok(read_bundle(trust_domain.clone(), bytes)?);
    }
    let bundle = TrustBundle::from_pem(trust_domain.clone(), 0, bytes)?;
    Ok(ReadBundle { bundle, numbered: false, ignored: Vec::new() })
}

/// A number from 0 to 1 to spread polls by; without randomness, the middle.
fn chance() -> f64 {
    random_bytes::<2>().map_or(0.5, |bytes| f64::from(u16::from_be_bytes(bytes)) / f64::from(u16::MAX))
}

/// Why the bundle of another trust domain was not fetched.
#[derive(Debug, Error)]
pub enum FederationError {
    /// It is not configured.
    #[error("there is no relation with {0} in ca.yaml")]
    NoRelation(TrustDomain),
    /// Nothing to know the endpoint by.
    #[error(
        "there is no bundle of {0} yet to know its endpoint by; name one as bundleFile, or give it: alcazar bundle set --trust-domain {0} --file FILE"
    )]
    NoBundle(TrustDomain),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The roots to know the endpoint by.
    #[error("the roots for its endpoint cannot be used")]
    Roots(#[from] RootsError),
    /// The roots in the bundle file.
    #[error("the bundle file holds no bundle")]
    Pem(#[from] BundleError),
    /// It was not fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is always somewhere else.
    #[error("{url} redirects more than {REDIRECTS} times, the last time to {at}; configure the final URL")]
    Redirects {
        /// What was to be fetched.
        url: Box<HttpsUrl>,
        /// Where the last answer led.
        at: Box<HttpsUrl>,
    },
    /// What came is not a bundle.
    #[error(transparent)]
    Document(#[from] BundleDocumentError),
    /// What came is not believed.
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    /// The process ends.
    #[error("fetching was interrupted")]
    Interrupted,
}

/// A bundle of more than this could not be kept anyhow.
const LIMITS: Limits = Limits { bytes: 256 << 10, deadline: Duration::from_secs(15) };
const REDIRECTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(5);
