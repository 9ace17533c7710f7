//! The CA as a value: opened from its files, asked in process or over the wire.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{Credentials, SpiffeId, TrustDomain};
use alcazar_service::{Metrics, clock::Clock, files::private_directory};
use alcazar_store::{Expected, Store};
use thiserror::Error;
use tokio::{sync::watch, task};

use crate::{
    admission::Admission,
    authority::AuthorityInfo,
    callers::{Callers, CallersError},
    config::{Config, ConfigError, RegistrationError},
    federation::{Federation, ForeignError},
    hierarchy::{Hierarchy, HierarchyError, HierarchyFiles},
    jwt_authority::JwtKeys,
    keys::KeyStore,
    ledger::{Entry, Filter, Ledger, LedgerError, OpenLedgerError, Recorded},
    metrics::CaMetrics,
    profile::{DnsName, Profile, Profiles},
    records::{RecordError, Records, Registration, RegistrationId, TokenRecord, family},
    revocation::Barred,
    run::ADMIN_SOCKET,
    serial::NoRandomness,
    serving::ServingError,
    status::{Facts, Troubles},
    storage::{self, OpenStoreError},
    token::JoinToken,
};

/// A certificate authority. Cheap to clone; clones are the same CA.
#[derive(Clone)]
pub struct Ca(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) profile: Profile,
    pub(crate) profiles: Profiles,
    pub(crate) dns_names: Vec<DnsName>,
    pub(crate) clock: Clock,
    pub(crate) callers: Callers,
    pub(crate) metrics: CaMetrics,
    pub(crate) admission: Admission,
    /// What went wrong of late.
    pub(crate) troubles: Troubles,
    /// What further parts tell the operator.
    pub(crate) facts: Facts,
    pub(crate) started_at: SystemTime,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) records: Records,
    /// Everything that was issued.
    pub(crate) ledger: Arc<Ledger>,
    /// Every key of the CA. Its calls block.
    pub(crate) keys: Arc<dyn KeyStore>,
    pub(crate) files: HierarchyFiles,
    pub(crate) hierarchy: watch::Sender<Arc<Hierarchy>>,
    /// Held by whoever changes the hierarchy.
    pub(crate) hierarchy_turn: tokio::sync::Mutex<()>,
    pub(crate) hierarchy_trouble: watch::Sender<Option<String>>,
    /// What the plugged-in files looked like when they were opened.
    pub(crate) hierarchy_stamp: crate::cacerts::Stamp,
    pub(crate) serving: watch::Sender<Arc<Credentials>>,
    pub(crate) revoking: crate::revocation::Revoking,
    /// The keys for JWT-SVIDs that are here.
    pub(crate) jwt: JwtKeys,
    /// Other trust domains.
    pub(crate) federation: Federation,
    pub(crate) rotations: crate::rotation::Rotations,
}

/// What a person compares: the certificates that everything stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprints {
    /// The root.
    pub root: AuthorityInfo,
    /// The intermediate that signs.
    pub intermediate: AuthorityInfo,
}

impl Ca {
    /// Opens the CA in its data folder, making root and intermediate where there have never been any.
    ///
    /// # Errors
    /// When another process has it open, or what is on the disk is not what was left there. The error says what to do.
    pub async fn open(config: Config, clock: Clock) -> Result<Self, OpenError> {
        Self::open_with(config, clock, Metrics::new()).await
    }

    /// The same, and `observe` is told of each step of each group of the ledger's appends.
    ///
    /// # Errors
    /// As [`Ca::open`].
    pub async fn open_observed(
        config: Config,
        clock: Clock,
        observe: alcazar_ledger::Observe,
    ) -> Result<Self, OpenError> {
        Self::open_all(config, clock, Metrics::new(), Some(observe)).await
    }

    /// The same, counting on these metrics, which may be served already while it opens.
    ///
    /// # Errors
    /// As [`Ca::open`].
    pub async fn open_with(config: Config, clock: Clock, metrics: Metrics) -> Result<Self, OpenError> {
        Self::open_all(config, clock, metrics, None).await
    }

    async fn open_all(
        config: Config,
        clock: Clock,
        metrics: Metrics,
        observe: Option<alcazar_ledger::Observe>,
    ) -> Result<Self, OpenError> {
        let checked = config.checked()?;
        let callers = Callers::open(&config, &clock, &metrics).await?;
        let data_dir = config.data_dir.clone();
        let keys = config.key_store();
        let files = HierarchyFiles::new(&config, keys.clone());
        let opened = task::spawn_blocking(move || {
            let failed = |source| OpenError::DataDir { path: data_dir.clone(), source };
            if is_foreign(&data_dir).map_err(failed)? {
                return Err(OpenError::ForeignDir(data_dir));
            }
            private_directory(&data_dir).map_err(failed)
        });
        opened.await.map_err(|_panic| OpenError::Interrupted)??;
        let store = storage::open(&config, config.data_dir.join("store")).await?;
        let records = Records::new(store.clone());
        // Before they are read: what changes in between is noticed.
        let stamp = files.plugged.stamp();
        let hierarchy = crate::hierarchy::open(&records, &files, &config.trust_domain, clock()).await?;
        let now = clock();
        let (standing, domain) = (hierarchy.clone(), config.trust_domain.clone());
        let (dns, profile) = (checked.dns_names.clone(), checked.profile.clone());
        let serving = task::spawn_blocking(move || crate::serving::issue(&standing, &domain, &dns, &profile, now));
        let serving = serving.await.map_err(|_ending| OpenError::Interrupted)??;
        let ledger = Ledger::open(&config.data_dir.join("ledger"), &records, &metrics, observe).await?;
        ledger.record(&Entry::Certificate { issued: &serving.issued, caller: "ca" }).await?;
        let admission = Admission::new(&config.limits, &metrics);
        let metrics = CaMetrics::new(metrics);
        let inner = Inner {
            profile: checked.profile,
            profiles: checked.profiles,
            dns_names: checked.dns_names,
            clock,
            troubles: Troubles::default(),
            facts: Facts::default(),
            started_at: now,
            admission,
            callers,
            federation: Federation::new(checked.relations, &metrics, now),
            metrics,
            store,
            records,
            ledger: Arc::new(ledger),
            keys,
            files,
            hierarchy: watch::Sender::new(Arc::new(hierarchy)),
            hierarchy_turn: tokio::sync::Mutex::default(),
            hierarchy_trouble: watch::Sender::default(),
            hierarchy_stamp: stamp,
            serving: watch::Sender::new(Arc::new(serving.credentials)),
            revoking: crate::revocation::Revoking::new(),
            jwt: JwtKeys::default(),
            rotations: crate::rotation::Rotations::default(),
            config,
        };
        let ca = Self(Arc::new(inner));
        ca.measure_at_scrapes();
        ca.refresh_revocations().await?;
        ca.reconcile(checked.registrations).await?;
        ca.open_federation().await?;
        Ok(ca)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.config.trust_domain
    }

    /// How it was set up.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// What it counts, to be served at `/metrics`.
    pub fn metrics(&self) -> Metrics {
        self.0.metrics.registry.clone()
    }

    /// Where its keys are. Its calls block.
    pub fn keys(&self) -> &Arc<dyn KeyStore> {
        &self.0.keys
    }

    /// The identity that its serving certificate has.
    pub fn id(&self) -> SpiffeId {
        self.0.serving.borrow().svid().id().clone()
    }

    /// What it serves with at this moment.
    pub fn serving_credentials(&self) -> Arc<Credentials> {
        self.0.serving.borrow().clone()
    }

    /// Root and intermediate, for people to compare.
    pub fn fingerprints(&self) -> Fingerprints {
        let hierarchy = self.hierarchy();
        Fingerprints { root: hierarchy.root().clone(), intermediate: hierarchy.intermediate().info().clone() }
    }

    /// Makes a token that admits `node` once, within `ttl` (10 minutes where `None`); the token and its end.
    ///
    /// # Errors
    /// When it is not the identity of a node of this cluster, or the store does not answer.
    pub async fn create_join_token(
        &self,
        node: &SpiffeId,
        ttl: Option<Duration>,
    ) -> Result<(JoinToken, SystemTime), AdminError> {
        use alcazar_identity::SpiffeIdKind::Node;
        if !matches!(node.kind(), Node { .. }) || node.trust_domain() != self.trust_domain() {
            return Err(AdminError::NotANode(node.clone()));
        }
        self.own_node(node)?;
        self.permits(node)?;
        let ttl = ttl.unwrap_or(TOKEN_TTL);
        if ttl > TOKEN_MAX_TTL {
            return Err(AdminError::TokenTtl(ttl));
        }
        let token = JoinToken::random(self.hierarchy().root().fingerprint)?;
        let expires = crate::issue::whole_seconds((self.0.clock)() + ttl);
        let record = TokenRecord { node: node.clone(), expires, consumed: None };
        self.0.records.put(family::TOKENS, token.hash().as_str(), Expected::Absent, &record).await?;
        tracing::info!(node = %node, expires = %alcazar_identity::rfc3339(expires), "made a join token");
        Ok((token, expires))
    }

    /// Adds a registration, or replaces the one of the same name.
    ///
    /// # Errors
    /// When it is of another trust domain or for a node of another cluster, its life is too long, or the store does not answer.
    pub async fn put_registration(&self, registration: Registration) -> Result<(), AdminError> {
        if registration.spiffe_id().trust_domain() != self.trust_domain() {
            return Err(AdminError::Foreign(registration.spiffe_id().clone()));
        }
        self.own_node(registration.node())?;
        crate::config::check_registration(&registration, &self.0.profiles)?;
        loop {
            let name = registration.id().as_str();
            let found = self.0.records.get::<Registration>(family::REGISTRATIONS, name).await?;
            let expected = match found {
                Some(stored) if stored.record == registration => return Ok(()),
                Some(stored) => Expected::At(stored.revision),
                None => Expected::Absent,
            };
            match self.0.records.put(family::REGISTRATIONS, name, expected, &registration).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome.map(drop)?),
            }
        }
    }

    /// Removes a registration; whether there was one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delete_registration(&self, id: &RegistrationId) -> Result<bool, AdminError> {
        loop {
            let Some(found) = self.0.records.get::<Registration>(family::REGISTRATIONS, id.as_str()).await? else {
                return Ok(false);
            };
            match self.0.records.delete(family::REGISTRATIONS, id.as_str(), found.revision).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome.map(|()| true)?),
            }
        }
    }

    /// Every registration.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn registrations(&self) -> Result<Vec<Registration>, AdminError> {
        let (stored, _) = self.0.records.list::<Registration>(family::REGISTRATIONS).await?;
        Ok(stored.into_iter().map(|stored| stored.record).collect())
    }

    /// The newest `limit` things on record, of one identity where it is given.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn issued(&self, id: Option<&SpiffeId>, limit: usize) -> Result<Vec<Recorded>, LedgerError> {
        self.recorded(Filter { identity: id.cloned(), ..Filter::default() }, limit).await
    }

    /// The newest `limit` things on record that are looked for.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn recorded(&self, filter: Filter, limit: usize) -> Result<Vec<Recorded>, LedgerError> {
        self.0.ledger.list(filter, limit).await
    }

    /// What has this serial number, in lower-case hexadecimal, or is the token of this id.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn find_serial(&self, serial: &str) -> Result<Option<Recorded>, LedgerError> {
        self.0.ledger.find_serial(serial).await
    }

    /// Everything on record that names the identity and is not over at `now`, the newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn live_of_identity(&self, id: &SpiffeId, now: SystemTime) -> Result<Vec<Recorded>, LedgerError> {
        self.0.ledger.live_of_identity(id, now).await
    }

    /// Keeps the ledger's head, and closes ledger and store: another process may open them when this returns.
    pub async fn close(&self) {
        if let Err(error) = self.keep_head().await {
            tracing::warn!(reason = %alcazar_service::process::chain(&error), "the ledger's last head was not kept");
        }
        self.0.ledger.close().await;
        self.0.store.close().await;
    }

    fn own_node(&self, node: &SpiffeId) -> Result<(), AdminError> {
        let config = &self.0.config;
        if config.has_node(node) {
            return Ok(());
        }
        Err(AdminError::OtherCluster { node: node.clone(), cluster: config.cluster.clone() })
    }

    pub(crate) fn hierarchy(&self) -> Arc<Hierarchy> {
        self.0.hierarchy.borrow().clone()
    }

    /// Makes the configured registrations those that the store has from a configuration.
    async fn reconcile(&self, configured: Vec<Registration>) -> Result<(), OpenError> {
        let failed = |error: AdminError| OpenError::Registrations(Box::new(error));
        for old in self.registrations().await.map_err(failed)? {
            if old.is_configured() && !configured.iter().any(|new| new.id() == old.id()) {
                self.delete_registration(old.id()).await.map_err(failed)?;
            }
        }
        for registration in configured {
            self.put_registration(registration).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Whether a folder is in use for something else. A CA that was killed in its first start has left a store at most.
fn is_foreign(data_dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut stranger = false;
    for entry in entries {
        let name = entry?.file_name();
        match name.to_str() {
            Some("hierarchy" | crate::hierarchy::INSTALLED | ADMIN_SOCKET) => return Ok(false),
            // The last is on every fresh file system of the ext family.
            Some("store" | "ledger" | "hierarchy.new" | "lost+found") => {}
            _ => stranger = true,
        }
    }
    Ok(stranger)
}

/// Why a CA did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// What is held of other trust domains cannot be read.
    #[error("the bundles of other trust domains cannot be used")]
    Federation(#[from] ForeignError),
    /// The configuration makes no sense.
    #[error("the CA's configuration makes no sense")]
    Config(#[from] ConfigError),
    /// Who may ask cannot be told from the configuration.
    #[error("the CA cannot tell who may ask it")]
    Callers(#[from] CallersError),
    /// The data folder cannot be used.
    #[error("cannot use the data folder {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the disk said.
        source: std::io::Error,
    },
    /// The data folder is somebody else's: its permissions are not ours to change.
    #[error(
        "{} has something else in it and nothing of a CA; name a folder of the CA's own as dataDir (one that is missing is made)",
        .0.display()
    )]
    ForeignDir(PathBuf),
    /// The store did not open.
    #[error("the CA's store did not open")]
    Store(#[from] OpenStoreError),
    /// The hierarchy did not open.
    #[error("the CA's certificates did not open")]
    Hierarchy(#[from] HierarchyError),
    /// The records cannot be read.
    #[error("the CA's records cannot be used")]
    Records(#[from] RecordError),
    /// The ledger did not open.
    #[error("the CA's ledger did not open")]
    OpenLedger(#[from] OpenLedgerError),
    /// The ledger did not take what is to be on record.
    #[error("the CA's ledger cannot be used")]
    Ledger(#[from] LedgerError),
    /// No serving certificate.
    #[error("the CA has no certificate to serve with")]
    Serving(#[from] ServingError),
    /// The revocations on record cannot be put in force.
    #[error("the revocations on record cannot be put in force")]
    Revocations(#[from] crate::revocation::RefreshError),
    /// The configured registrations were not put into the store.
    #[error("the configured registrations cannot be used")]
    Registrations(#[source] Box<AdminError>),
    /// The process is ending.
    #[error("opening was interrupted")]
    Interrupted,
}

/// Why an act of administration failed.
#[derive(Debug, Error)]
pub enum AdminError {
    /// A token is for nodes of this trust domain.
    #[error("{0} is not the identity of a node of this trust domain (spiffe://<trust domain>/node/<cluster>/<node>)")]
    NotANode(SpiffeId),
    /// A node of another cluster.
    #[error("{node} is not a node of the cluster {cluster}; the CA of its own cluster vouches for it")]
    OtherCluster {
        /// The node.
        node: SpiffeId,
        /// The CA's cluster.
        cluster: String,
    },
    /// A revoked node.
    #[error(transparent)]
    Revoked(#[from] Barred),
    /// Another trust domain.
    #[error("{0} is of another trust domain")]
    Foreign(SpiffeId),
    /// A token lives shortly.
    #[error("a join token may live for {TOKEN_MAX_TTL:?}, not for {0:?}")]
    TokenTtl(Duration),
    /// Its profile does not allow it.
    #[error("the registration does not keep to its profile")]
    Profile(#[from] RegistrationError),
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

const TOKEN_TTL: Duration = Duration::from_secs(600);
const TOKEN_MAX_TTL: Duration = Duration::from_secs(24 * 3600);
