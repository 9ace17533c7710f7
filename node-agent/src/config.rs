use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use alcazar_identity::{ParseSpiffeIdError, SpiffeId, TrustDomain};
use alcazar_mtls::grpc::{ParseTargetError, Target};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::crls::CrlsConfig;
use crate::evidence::{MachineFiles, Sources};
use crate::files::{self, Access, FilesConfig, FilesConfigError, OwnerError};
use crate::kubernetes::{KubernetesConfig, KubernetesConfigError};
use crate::token::TokenSource;

/// What an agent is told: `agent.yaml`.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The trust domain of the mesh, as in `cluster.local`.
    #[serde(deserialize_with = "from_text")]
    pub trust_domain: TrustDomain,
    /// The cluster that this node is in.
    pub cluster: String,
    /// The name of this node within its cluster. On a node of Kubernetes the name that it has there. Either here or
    /// by `--node`.
    #[serde(default)]
    pub node: String,
    /// Where the CA is: `host:port`; several, separated by commas, where it has replicas: they are tried in turn, beginning with the
    /// one that answered last.
    pub ca_address: String,
    /// The join token itself. Rather `joinTokenFile`, where others may read this file.
    #[serde(default)]
    pub join_token: Option<String>,
    /// A file with the join token; read anew at every use. Without a token only a saved identity can prove the node.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// What else proves this node. Nothing by default.
    #[serde(default)]
    pub attest: AttestConfig,
    /// Where the node's own key and certificate are kept over restarts; private to the agent.
    pub data_dir: PathBuf,
    /// Keeps what workloads hold over a restart, sealed. Not by default: their keys are in memory alone.
    #[serde(default)]
    pub seal: Option<SealConfig>,
    /// Where the sockets are made that workloads come to.
    pub sockets_dir: PathBuf,
    /// Where `/healthz`, `/readyz` and `/metrics` are served; nowhere by default.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// A file that narrows what the CA has registered for this node; followed while the agent runs. Default: none, and everything
    /// that is registered is served as it is.
    #[serde(default)]
    pub narrow: Option<PathBuf>,
    /// Whether stock clients are given CRLs beside the roots: `auto`, whenever all are here, or `never`. Default: `auto`.
    #[serde(default)]
    pub crls: CrlsConfig,
    /// Files for programs that read PEM. Default: none.
    #[serde(default)]
    pub files: Vec<FilesConfig>,
    /// Who lists the pods of this node, for the selectors `k8s:`. Default: nobody, and those selectors hold for nobody.
    #[serde(default)]
    pub kubernetes: Option<KubernetesConfig>,
}

/// What proves a node beside its certificate and its join token, in the order in which it is tried. Every file is read anew at
/// every use.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AttestConfig {
    /// A file with the token of a Kubernetes service account, or of an OIDC issuer that the CA's `callers` name.
    pub bearer_token_file: Option<PathBuf>,
    /// The certificate that the enterprise's own CA gave to this machine.
    pub machine: Option<MachineConfig>,
    /// The roots (PEM) by which the CA is known before any of this is shown to it. Default: those that the node holds, and
    /// where it holds none, the one that the join token pins.
    pub root_file: Option<PathBuf>,
}

/// A machine certificate in PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineConfig {
    /// The certificate, and those between it and the enterprise's root.
    pub certificate_file: PathBuf,
    /// Its key, PKCS#8.
    pub key_file: PathBuf,
}

/// What workloads hold survives a restart.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SealConfig {
    /// A file with the key that seals: 32 bytes, not in the data directory. Read at the start.
    pub key_file: PathBuf,
}

impl Config {
    /// The name of this node.
    ///
    /// # Errors
    /// When cluster or node cannot stand in a SPIFFE ID, or nobody says which node this is.
    pub fn node_id(&self) -> Result<SpiffeId, ConfigError> {
        if self.node.is_empty() {
            return Err(ConfigError::NoNode);
        }
        SpiffeId::node(&self.trust_domain, &self.cluster, &self.node).map_err(ConfigError::Node)
    }

    /// Whom the CA must prove itself to be.
    pub(crate) fn ca_id(&self) -> Result<SpiffeId, ConfigError> {
        SpiffeId::workload(&self.trust_domain, "alcazar-system", "alcazar-ca").map_err(ConfigError::Node)
    }

    pub(crate) fn target(&self) -> Result<Target, ConfigError> {
        self.ca_address.parse().map_err(ConfigError::CaAddress)
    }

    /// The files that are to be kept, and whose each is.
    pub(crate) fn files(&self) -> Result<Vec<(FilesConfig, Access)>, ConfigError> {
        files::check(&self.files)?;
        let entries = self.files.iter().cloned();
        entries.map(|entry| files::access(&entry).map(|access| (entry, access)).map_err(ConfigError::Owner)).collect()
    }

    /// What proves the node beside its certificate.
    pub(crate) fn sources(&self) -> Result<Sources, ConfigError> {
        let AttestConfig { bearer_token_file, machine, root_file } = &self.attest;
        let machine = machine.as_ref().map(|machine| MachineFiles {
            certificate: machine.certificate_file.clone(),
            key: machine.key_file.clone(),
        });
        let join_token = self.token()?;
        Ok(Sources { join_token, bearer_token: bearer_token_file.clone(), machine, roots: root_file.clone() })
    }

    fn token(&self) -> Result<TokenSource, ConfigError> {
        match (&self.join_token, &self.join_token_file) {
            (Some(_), Some(_)) => Err(ConfigError::TwoTokens),
            (Some(text), None) => Ok(TokenSource::Given(Zeroizing::new(text.clone()))),
            (None, Some(path)) => Ok(TokenSource::File(path.clone())),
            (None, None) => Ok(TokenSource::Absent),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("trust_domain", &self.trust_domain)
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("ca_address", &self.ca_address)
            .field("join_token", &self.join_token.as_ref().map(|_| "redacted"))
            .field("join_token_file", &self.join_token_file)
            .field("attest", &self.attest)
            .field("data_dir", &self.data_dir)
            .field("seal", &self.seal)
            .field("sockets_dir", &self.sockets_dir)
            .field("admin", &self.admin)
            .field("narrow", &self.narrow)
            .field("crls", &self.crls)
            .field("files", &self.files)
            .field("kubernetes", &self.kubernetes)
            .finish()
    }
}

/// What is wrong with a configuration that reads well.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nobody says which node this is.
    #[error("the name of this node is missing: `node` in the configuration, or --node")]
    NoNode,
    /// Cluster or node cannot stand in a SPIFFE ID.
    #[error("cluster and node do not make a SPIFFE ID")]
    Node(#[source] ParseSpiffeIdError),
    /// The CA's address is none.
    #[error("caAddress is wrong")]
    CaAddress(#[source] ParseTargetError),
    /// One token is enough, and two would be a riddle.
    #[error("joinToken and joinTokenFile are both given: one of them is enough")]
    TwoTokens,
    /// Files that cannot be as they are described.
    #[error(transparent)]
    Files(#[from] FilesConfigError),
    /// Whose files are to be is not known.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Who lists the pods of this node is not said well.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesConfigError),
}

fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}
