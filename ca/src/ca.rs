//! The CA as a value: opened from its files, asked in process or over the wire.

mod administration;
mod error;

use std::{fs, io, path::Path, sync::Arc, time::SystemTime};

use alcazar_identity::{Credentials, SpiffeId, TrustDomain};
use alcazar_ledger::Hooks;
use alcazar_service::{Metrics, clock::Clock, files::private_directory};
use alcazar_store::Store;
use tokio::{sync::watch, task};

pub use self::error::{AdminError, OpenError};
use crate::{
    admission::Admission,
    authority::AuthorityInfo,
    callers::Callers,
    config::Config,
    federation::{self, Federation},
    forgetting::Leaving,
    hierarchy::{Hierarchy, HierarchyFiles, HierarchyPatience},
    horizon::Point,
    jwt_authority::JwtKeys,
    keys::KeyStore,
    ledger::{Entry, Ledger, Standing},
    metrics::CaMetrics,
    outage::{self, Owed, Renewals},
    profile::{DnsName, Profile, Profiles},
    records::Records,
    replicas::{DataFolder, Phase, Presences},
    reserve::{self, Reserve},
    rotation::Unreported,
    run::ADMIN_SOCKET,
    signing::Signing,
    status::Troubles,
    storage,
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
    pub(crate) started_at: SystemTime,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) records: Records,
    /// Everything that was issued.
    pub(crate) ledger: Arc<Ledger>,
    /// Every key of the CA. Its calls block.
    pub(crate) keys: Arc<dyn KeyStore>,
    /// What those sign that are outside of this process.
    pub(crate) signing: Signing,
    pub(crate) files: HierarchyFiles,
    pub(crate) hierarchy: watch::Sender<Arc<Hierarchy>>,
    /// Held by whoever changes the hierarchy.
    pub(crate) hierarchy_turn: tokio::sync::Mutex<()>,
    pub(crate) hierarchy_patience: HierarchyPatience,
    pub(crate) hierarchy_trouble: watch::Sender<Option<String>>,
    /// What the plugged-in files looked like when they were opened.
    pub(crate) hierarchy_stamp: crate::cacerts::Stamp,
    pub(crate) serving: watch::Sender<Arc<Credentials>>,
    /// That of the node of whose leaf the least is left.
    pub(crate) oldest_leaf: watch::Sender<Option<Point>>,
    pub(crate) revoking: crate::revocation::Revoking,
    /// The keys for JWT-SVIDs that are here.
    pub(crate) jwt: JwtKeys,
    /// What nodes were given that the store has not heard of.
    pub(crate) renewals: Renewals,
    /// What was issued to those who never report that the store has not heard of.
    pub(crate) owed: Owed,
    /// What is over by the clock, and not forgotten yet.
    pub(crate) leaving: Leaving,
    /// Other trust domains.
    pub(crate) federation: Federation,
    pub(crate) rotations: crate::rotation::Rotations,
    /// The other replicas.
    pub(crate) presences: Presences,
    /// The data folder, which this process has to itself.
    pub(crate) folder: DataFolder,
    /// Room on its disk for what cannot wait.
    pub(crate) reserve: Arc<Reserve>,
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

    /// The same, with a hand in the ledger's appends.
    ///
    /// # Errors
    /// As [`Ca::open`].
    pub async fn open_hooked(config: Config, clock: Clock, hooks: Hooks) -> Result<Self, OpenError> {
        Self::open_over(config, clock, hooks, |store| store).await
    }

    /// The same, with something between it and its store.
    ///
    /// # Errors
    /// As [`Ca::open`].
    pub async fn open_over(
        config: Config,
        clock: Clock,
        hooks: Hooks,
        over: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store> + Send,
    ) -> Result<Self, OpenError> {
        Self::open_all(config, clock, Metrics::new(), hooks, over).await
    }

    /// The same, counting on these metrics, which may be served already while it opens.
    ///
    /// # Errors
    /// As [`Ca::open`].
    pub async fn open_with(config: Config, clock: Clock, metrics: Metrics) -> Result<Self, OpenError> {
        Self::open_all(config, clock, metrics, Hooks::default(), |store| store).await
    }

    async fn open_all(
        config: Config,
        clock: Clock,
        metrics: Metrics,
        hooks: Hooks,
        over: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store> + Send,
    ) -> Result<Self, OpenError> {
        let checked = config.checked()?;
        if let Some(endpoint) = &config.bundle_endpoint {
            federation::web_acceptor(endpoint, &clock).await?;
        }
        let callers = Callers::open(&config, &clock, &metrics).await?;
        let data_dir = config.data_dir.clone();
        let keys = config.key_store();
        let files = HierarchyFiles::new(&config, keys.clone());
        let reserve = Arc::new(Reserve::of(&config));
        let lender = Arc::clone(&reserve);
        let opened = task::spawn_blocking(move || {
            let failed = |source| OpenError::DataDir { path: data_dir.clone(), source };
            if is_foreign(&data_dir).map_err(failed)? {
                return Err(OpenError::ForeignDir(data_dir));
            }
            private_directory(&data_dir).map_err(failed)?;
            let folder = DataFolder::take(&data_dir)?;
            // While nobody is served who could use it up.
            lender.open().map_err(failed)?;
            Ok(folder)
        });
        let folder = opened.await.map_err(|_panic| OpenError::Interrupted)??;
        let pending = config.data_dir.clone();
        let worst = Unreported::ahead(None, clock(), clock() + checked.profile.max_ttl());
        let pending = task::spawn_blocking(move || {
            let failed = |source| OpenError::DataDir { path: pending.clone(), source };
            let renewals = Renewals::open(&pending).map_err(failed)?;
            Ok::<_, OpenError>((renewals, Owed::open(&pending, worst).map_err(failed)?))
        });
        let (renewals, owed) = pending.await.map_err(|_panic| OpenError::Interrupted)??;
        let store = over(storage::open(&config, config.data_dir.join("store")).await?);
        let records = Records::new(store.clone(), folder.replica.clone());
        // Before they are read: what changes in between is noticed.
        let stamp = files.plugged.stamp();
        let hierarchy = crate::replicas::open_hierarchy(&records, &files, &config, &clock).await?;
        // Before anything is issued that lives for so long.
        records.allow_life(config.certificates.max_ttl).await?;
        let now = clock();
        let (standing, domain) = (hierarchy.clone(), config.trust_domain.clone());
        let (dns, profile) = (checked.dns_names.clone(), checked.profile.clone());
        let serving = task::spawn_blocking(move || crate::serving::issue(&standing, &domain, &dns, &profile, now));
        let serving = serving.await.map_err(|_ending| OpenError::Interrupted)??;
        let standing = Standing {
            data_dir: &config.data_dir,
            trust_domain: &config.trust_domain,
            cluster: &config.cluster,
            roots: hierarchy.bundles().get(&config.trust_domain),
            shared: config.store.is_shared(),
            replaces: config.ledger.replaces.as_deref(),
        };
        let ledger = Ledger::open(&standing, &records, &metrics, hooks).await?;
        // The first ones were made before there was a ledger; those that a person plugged in were made elsewhere.
        let held = crate::hierarchy::held(&files, &hierarchy).await?;
        ledger.record_authorities(&held, &config.trust_domain, crate::issue::whole_seconds(now)).await?;
        ledger.record(&Entry::Certificate { issued: &serving.issued, caller: "ca" }).await?;
        let admission = Admission::new(&config.limits, &metrics);
        let metrics = CaMetrics::new(metrics);
        let inner = Inner {
            profile: checked.profile,
            profiles: checked.profiles,
            dns_names: checked.dns_names,
            clock,
            troubles: Troubles::default(),
            started_at: now,
            admission,
            callers,
            federation: Federation::new(checked.relations, &metrics),
            metrics,
            store,
            records,
            ledger: Arc::new(ledger),
            keys,
            signing: Signing::new(),
            files,
            hierarchy: watch::Sender::new(Arc::new(hierarchy)),
            hierarchy_turn: tokio::sync::Mutex::default(),
            hierarchy_patience: HierarchyPatience::default(),
            hierarchy_trouble: watch::Sender::default(),
            hierarchy_stamp: stamp,
            serving: watch::Sender::new(Arc::new(serving.credentials)),
            oldest_leaf: watch::Sender::default(),
            revoking: crate::revocation::Revoking::new(),
            jwt: JwtKeys::default(),
            renewals,
            owed,
            leaving: Leaving::default(),
            rotations: crate::rotation::Rotations::default(),
            presences: Presences::new()?,
            folder,
            reserve,
            config,
        };
        let ca = Self(Arc::new(inner));
        ca.measure_at_scrapes();
        ca.keep_head().await?;
        // Lists of other trust domains are good by their bundles.
        ca.open_federation().await?;
        ca.open_revocations().await?;
        ca.reconcile(checked.registrations).await?;
        ca.keep_reserve().await;
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

    /// Keeps the ledger's head, and closes ledger, store and data folder: another process may open them when this returns.
    pub async fn close(&self) {
        self.enter_phase(Phase::Stopped).await;
        if let Err(error) = self.keep_head().await {
            tracing::warn!(reason = %alcazar_service::process::chain(&error), "the ledger's last head was not kept");
        }
        self.0.ledger.close().await;
        self.0.store.close().await;
        self.0.folder.let_go();
    }

    pub(crate) fn hierarchy(&self) -> Arc<Hierarchy> {
        self.0.hierarchy.borrow().clone()
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
            Some("store" | "ledger" | "ledger-name" | "ledger-name.new" | "hierarchy.new") => {}
            Some("lock" | "replica" | "replica.new" | "lost+found") => {}
            Some(outage::RENEWALS | outage::NOTES | reserve::FILE) => {}
            _ => stranger = true,
        }
    }
    Ok(stranger)
}
