//! The configuration file, `ca.yaml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use alcazar_identity::{SpiffeId, SpiffeIdKind, TrustDomain};
use alcazar_service::audit::AuditConfig;
use serde::Deserialize;
use thiserror::Error;

use crate::{
    admission::Limits,
    authority::is_cluster_name,
    cacerts::CacertsConfig,
    callers::CallersConfig,
    duration,
    federation::{self, BundleEndpointConfig, FederationConfig, FederationConfigError, Relation},
    jwt_authority::{JwtConfig, JwtConfigError},
    keys::{KeyStore, KeysConfig},
    kubernetes::KubernetesConfig,
    ledger::LedgerConfig,
    profile::{DnsName, ParseDnsNameError, Profile, ProfileConfig, ProfileError, Profiles},
    records::{ParseRegistrationError, Registration, text},
    replicas::ReplicasConfig,
    revocation::RevocationConfig,
    rotation::{self, ClusterConfig, ClusterConfigError},
    storage::{StoreConfig, StoreConfigError},
};

/// How a CA is set up.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The trust domain. Default: `cluster.local`.
    #[serde(with = "text", default = "TrustDomain::cluster_local")]
    pub trust_domain: TrustDomain,
    /// The cluster that this CA's intermediate is for. Default: `local`.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// Where the hierarchy, the store and the administration socket are. For this CA alone.
    pub data_dir: PathBuf,
    /// Where nodes reach it. Default: `127.0.0.1:15012`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// DNS names of its serving certificate, for clients that check names and not identities. Default: none.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// Who may ask, beside nodes with a join token or their certificate. Default: nobody.
    #[serde(default)]
    pub callers: CallersConfig,
    /// The lives of certificates.
    #[serde(default)]
    pub certificates: Certificates,
    /// Certificates that a person plugs in. Default: none, and the CA makes its own root, unless `alcazar ca install` has put some there.
    #[serde(default)]
    pub cacerts: Option<CacertsConfig>,
    /// How the CA's keys are kept. Default: in files, not encrypted.
    #[serde(default)]
    pub keys: KeysConfig,
    /// The lives of JWT-SVIDs and of the keys that sign them.
    #[serde(default)]
    pub jwt: JwtConfig,
    /// Where other trust domains fetch our bundle. Default: nowhere.
    #[serde(default)]
    pub bundle_endpoint: Option<BundleEndpointConfig>,
    /// Other trust domains, whose bundles are fetched. One that leaves this list is believed no more. Default: none.
    #[serde(default)]
    pub federation: Vec<FederationConfig>,
    /// Other clusters under the same root: none of them is left behind when the root is exchanged. Default: none.
    #[serde(default)]
    pub clusters: Vec<ClusterConfig>,
    /// Workloads, beside those that are put in by administration. One that leaves this list is removed.
    #[serde(default)]
    pub registrations: Vec<ConfiguredRegistration>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served. Default: nowhere.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// A file with a line for each decision. Default: none, and decisions are in the log alone.
    #[serde(default)]
    pub audit: Option<AuditConfig>,
    /// What certificates there are: `default` for workloads whose registration names no profile, `node` for nodes, others
    /// for the registrations that name them. Default: every kind of key, the lives of `certificates`, no DNS names.
    #[serde(default)]
    pub profiles: BTreeMap<String, ProfileConfig>,
    /// How much may be asked of it, and by whom.
    #[serde(default)]
    pub limits: Limits,
    /// Where CRLs are served, and whether certificates say so.
    #[serde(default)]
    pub revocation: RevocationConfig,
    /// Where the state is that replicas share: `sled` (in `dataDir`, one process), `etcd: {...}` or `kubernetes: {...}`.
    /// Default: `sled`.
    #[serde(default)]
    pub store: StoreConfig,
    /// How replicas that share the store know each other.
    #[serde(default)]
    pub replicas: ReplicasConfig,
    /// What a person decides about the ledger of this replica. Default: nothing.
    #[serde(default)]
    pub ledger: LedgerConfig,
    /// What is kept of nodes.
    #[serde(default)]
    pub nodes: NodesConfig,
    /// The Kubernetes cluster, for what asks its API. Default: as the CA's own pod reaches it, once something asks.
    #[serde(default)]
    pub kubernetes: KubernetesConfig,
}

/// The lives of certificates.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Certificates {
    /// For whoever asks for none. Default: 1h.
    #[serde(deserialize_with = "duration::deserialize")]
    pub ttl: Duration,
    /// The longest that anybody gets. Default: 24h, which is also the most that can be set.
    #[serde(deserialize_with = "duration::deserialize")]
    pub max_ttl: Duration,
}

/// What is kept of nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NodesConfig {
    /// A node whose last certificate ended so long ago is forgotten. At least a day. Default: 30d.
    #[serde(deserialize_with = "duration::deserialize")]
    pub forget_after: Duration,
    /// So long after its certificate ended, a node may come back by it. Default: as long as it is remembered (`forgetAfter`);
    /// `0s`: never.
    #[serde(deserialize_with = "duration::deserialize_option")]
    pub reattest_within: Option<Duration>,
}

impl NodesConfig {
    /// How long after its end a certificate lets its node come back; zero: not at all.
    pub(crate) fn reattest_within(&self) -> Duration {
        self.reattest_within.unwrap_or(self.forget_after)
    }
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self { forget_after: 30 * DAY, reattest_within: None }
    }
}

/// A registration in the configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConfiguredRegistration {
    /// Its name, by convention `<namespace>.<workload>`.
    pub id: String,
    /// The node: a name in this CA's cluster, or a whole SPIFFE ID.
    pub node: String,
    /// The identity: `<namespace>/<service account>`, or a whole SPIFFE ID.
    pub identity: String,
    /// How the agent knows the workload: `socket:<name>`, `uid:<number>`, `gid:<number>`; all must hold.
    pub selectors: Vec<String>,
    /// The life of its certificates. Default: that of `certificates.ttl`.
    #[serde(default, deserialize_with = "duration::deserialize_option")]
    pub ttl: Option<Duration>,
    /// The profile of its certificates. Default: `default`.
    #[serde(default)]
    pub profile: Option<String>,
    /// DNS names of its certificates, which the profile must allow. Default: none.
    #[serde(default)]
    pub dns_names: Vec<DnsName>,
}

impl Config {
    /// A configuration with the defaults, for this data folder.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            trust_domain: TrustDomain::cluster_local(),
            cluster: default_cluster(),
            data_dir: data_dir.into(),
            listen: default_listen(),
            dns_names: Vec::new(),
            callers: CallersConfig::default(),
            certificates: Certificates::default(),
            cacerts: None,
            keys: KeysConfig::default(),
            jwt: JwtConfig::default(),
            bundle_endpoint: None,
            federation: Vec::new(),
            clusters: Vec::new(),
            registrations: Vec::new(),
            admin: None,
            audit: None,
            limits: Limits::default(),
            revocation: RevocationConfig::default(),
            profiles: BTreeMap::new(),
            store: StoreConfig::default(),
            replicas: ReplicasConfig::default(),
            ledger: LedgerConfig::default(),
            nodes: NodesConfig::default(),
            kubernetes: KubernetesConfig::default(),
        }
    }

    /// The SPIFFE ID of a node of this cluster; a text that is a SPIFFE ID already stands for itself.
    ///
    /// # Errors
    /// When the name cannot be part of one.
    pub fn node_id(&self, node: &str) -> Result<SpiffeId, ConfigError> {
        let parsed = if node.starts_with("spiffe://") {
            node.parse()
        } else {
            SpiffeId::node(&self.trust_domain, &self.cluster, node)
        };
        parsed.map_err(|source| ConfigError::Node { node: node.into(), source })
    }

    /// Where this CA's keys are. Nothing is opened yet.
    pub fn key_store(&self) -> Arc<dyn KeyStore> {
        self.keys.store(&self.data_dir.join("hierarchy"), &format!("{}/{}", self.trust_domain, self.cluster))
    }

    /// Whether it is a node of this cluster: the CA of a cluster vouches for no other's nodes.
    pub(crate) fn has_node(&self, id: &SpiffeId) -> bool {
        *id.trust_domain() == self.trust_domain
            && matches!(id.kind(), SpiffeIdKind::Node { cluster, .. } if cluster == self.cluster)
    }

    /// How often who keeps a copy of our bundle should look for a newer one.
    pub(crate) fn refresh_hint(&self) -> Duration {
        self.bundle_endpoint.as_ref().map_or_else(federation::default_refresh_hint, |endpoint| endpoint.refresh_hint)
    }

    pub(crate) fn checked(&self) -> Result<Checked, ConfigError> {
        if !is_cluster_name(&self.trust_domain, &self.cluster) {
            return Err(ConfigError::Cluster(self.cluster.clone()));
        }
        let profiles = Profiles::new(&self.profiles, &self.certificates)?;
        self.store.check(&self.trust_domain, &self.cluster)?;
        self.jwt.check()?;
        self.bundle_endpoint.as_ref().map_or(Ok(()), BundleEndpointConfig::check)?;
        rotation::check_clusters(self)?;
        let relations = federation::relations(&self.federation, &self.trust_domain)?;
        let dns_names = self.dns_names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        self.limits.check()?;
        if self.nodes.forget_after < DAY {
            return Err(ConfigError::ForgetNodes(self.nodes.forget_after));
        }
        if self.nodes.reattest_within() > self.nodes.forget_after {
            return Err(ConfigError::Reattest);
        }
        let mut ids = BTreeSet::new();
        let mut registrations = Vec::new();
        for configured in &self.registrations {
            let wrong = |source| ConfigError::Registration { id: configured.id.clone(), source };
            let registration = self.registration(configured).map_err(wrong)?;
            if !ids.insert(configured.id.clone()) {
                return Err(ConfigError::Twice(configured.id.clone()));
            }
            if !self.has_node(registration.node()) {
                return Err(ConfigError::OtherCluster { id: configured.id.clone(), node: registration.node().clone() });
            }
            check_registration(&registration, &profiles)
                .map_err(|source| ConfigError::Profiles { id: configured.id.clone(), source })?;
            registrations.push(registration);
        }
        Ok(Checked { profile: profiles.default().clone(), profiles, dns_names, registrations, relations })
    }

    fn registration(&self, configured: &ConfiguredRegistration) -> Result<Registration, ParseRegistrationError> {
        let spiffe = |text: &str, source| ParseRegistrationError::SpiffeId { text: text.into(), source };
        let node = self.node_id(&configured.node).map_err(|error| match error {
            ConfigError::Node { source, .. } => spiffe(&configured.node, source),
            _ => ParseRegistrationError::Id(configured.node.clone()),
        })?;
        let identity = &configured.identity;
        let id = match identity.split_once('/') {
            Some((namespace, account)) if !identity.starts_with("spiffe://") => {
                SpiffeId::workload(&self.trust_domain, namespace, account)
            }
            _ => identity.parse(),
        };
        let id = id.map_err(|source| spiffe(identity, source))?;
        let selectors = configured.selectors.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?;
        let registration = Registration::new(configured.id.parse()?, node, id, selectors, configured.ttl)?;
        let registration = registration.with_profile(configured.profile.clone())?;
        Ok(registration.with_dns_names(configured.dns_names.iter().cloned())?.configured())
    }
}

/// Whether a registration keeps to its profile.
pub(crate) fn check_registration(registration: &Registration, profiles: &Profiles) -> Result<(), RegistrationError> {
    let profile = profiles.of(registration.profile());
    let profile =
        profile.ok_or_else(|| RegistrationError::Unknown(registration.profile().unwrap_or_default().into()))?;
    if let Some(ttl) = registration.ttl().filter(|ttl| *ttl > profile.max_ttl()) {
        return Err(RegistrationError::Ttl { ttl, max: profile.max_ttl() });
    }
    match registration.dns_names().find(|name| !profile.allows_name(registration.spiffe_id(), name)) {
        Some(name) => Err(RegistrationError::Name { name: name.clone(), id: registration.spiffe_id().clone() }),
        None => Ok(()),
    }
}

/// What a registration asks for that its profile does not allow.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegistrationError {
    /// There is no such profile.
    #[error("there is no profile {0:?} in the CA's configuration")]
    Unknown(String),
    /// Too long a life.
    #[error("a life of {} s is longer than the profile's longest of {} s", ttl.as_secs(), max.as_secs())]
    Ttl {
        /// What is asked for.
        ttl: Duration,
        /// What is allowed.
        max: Duration,
    },
    /// A name that is not on the list.
    #[error("the profile does not allow the DNS name {name} for {id} (profiles.*.dnsNames)")]
    Name {
        /// The name.
        name: DnsName,
        /// Whose it would be.
        id: SpiffeId,
    },
}

/// A configuration whose parts fit.
pub(crate) struct Checked {
    pub(crate) profile: Profile,
    pub(crate) profiles: Profiles,
    pub(crate) dns_names: Vec<DnsName>,
    pub(crate) registrations: Vec<Registration>,
    pub(crate) relations: Vec<Relation>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(3600), max_ttl: Duration::from_secs(24 * 3600) }
    }
}

/// What in a configuration makes no sense.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The cluster's name cannot stand in a SPIFFE ID.
    #[error("cluster: {0:?} cannot stand in a SPIFFE ID: use letters, digits, dots, hyphens and underscores")]
    Cluster(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreConfigError),
    /// The lives do not fit.
    #[error("certificates or profiles")]
    Profile(#[from] ProfileError),
    /// The lives of JWT-SVIDs do not fit.
    #[error(transparent)]
    Jwt(#[from] JwtConfigError),
    /// Federation makes no sense.
    #[error(transparent)]
    Federation(#[from] FederationConfigError),
    /// Other clusters make no sense.
    #[error(transparent)]
    Clusters(#[from] ClusterConfigError),
    /// Not a DNS name.
    #[error("dnsNames")]
    Dns(#[from] ParseDnsNameError),
    /// Not the name of a node.
    #[error("{node:?} is not the name of a node")]
    Node {
        /// What was given.
        node: String,
        /// What is wrong.
        source: alcazar_identity::ParseSpiffeIdError,
    },
    /// A registration that is none.
    #[error("registrations: {id}")]
    Registration {
        /// Its name.
        id: String,
        /// What is wrong.
        source: ParseRegistrationError,
    },
    /// A registration for a node of another cluster.
    #[error("registrations: {id}: {node} is not a node of this cluster; another cluster's CA vouches for it")]
    OtherCluster {
        /// The registration's name.
        id: String,
        /// The node.
        node: SpiffeId,
    },
    /// Limits that would stop everything.
    #[error("limits: {0}")]
    Limits(String),
    /// Nodes that would be forgotten while their operator sleeps.
    #[error("nodes: forgetAfter: {0:?} is less than a day")]
    ForgetNodes(Duration),
    /// A node that is forgotten cannot come back.
    #[error("nodes: reattestWithin is longer than forgetAfter, and a node that is forgotten does not come back")]
    Reattest,
    /// Two registrations of one name.
    #[error("registrations: {0} stands twice")]
    Twice(String),
    /// A registration that its profile does not allow.
    #[error("registrations: {id}")]
    Profiles {
        /// The registration's name.
        id: String,
        /// What is not allowed.
        source: RegistrationError,
    },
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn default_cluster() -> String {
    "local".into()
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 15012).into()
}
