//! Where the CA's state is: beside its keys, or where its replicas share it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use alcazar_identity::TrustDomain;
use alcazar_store::{
    EtcdStore, KubernetesStore, ParseKeyError, Sentinel, SledStore, Store, StoreError,
    etcd::{EtcdConfig, EtcdConfigError, EtcdTls, EtcdUser, OpenEtcdError},
    kubernetes::{KubernetesStoreConfig, OpenKubernetesError},
};
use serde::Deserialize;
use thiserror::Error;

use crate::{
    duration,
    kubernetes::{self, KubernetesConfig, KubernetesError},
};

/// Where the CA's state is. Keys and the ledger stay in the data folder of each replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StoreConfig {
    /// In the data folder, for one process.
    #[default]
    Sled,
    /// In an etcd cluster.
    Etcd(EtcdSection),
    /// In Secrets of the cluster that `kubernetes` names.
    Kubernetes(KubernetesSection),
}

/// The state in an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EtcdSection {
    /// The members: `https://<host>:<port>`; `http://` to this machine alone.
    pub endpoints: Vec<String>,
    /// What its keys begin with. Default: `alcazar/<trust domain>/<cluster>`.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Whom to believe, and the client's own certificate. Needed for `https://`.
    #[serde(default)]
    pub tls: Option<TlsSection>,
    /// A user of etcd. Default: whoever the certificate names.
    #[serde(default)]
    pub user: Option<UserSection>,
    /// How long an answer may take. Default: 5s.
    #[serde(default = "default_deadline", deserialize_with = "duration::deserialize")]
    pub deadline: Duration,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TlsSection {
    /// The authorities that etcd's certificates are signed by.
    pub ca: PathBuf,
    /// The client's certificate chain; with `key`.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// Its key; with `certificate`.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// The name in etcd's certificates. Default: the host of the endpoint.
    #[serde(default)]
    pub server_name: Option<String>,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct UserSection {
    /// The name.
    pub name: String,
    /// The file with the password.
    pub password_file: PathBuf,
}

/// The state in Secrets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KubernetesSection {
    /// The namespace. Default: the CA's own.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The store's name, for more than one in a namespace. Default: `alcazar`.
    #[serde(default = "default_name")]
    pub name: String,
    /// How long an answer may take. Default: 5s.
    #[serde(default = "default_deadline", deserialize_with = "duration::deserialize")]
    pub deadline: Duration,
}

impl StoreConfig {
    /// Whether it makes sense, without a look at any file or server.
    pub(crate) fn check(&self, trust_domain: &TrustDomain, cluster: &str) -> Result<(), StoreConfigError> {
        match self {
            Self::Sled => Ok(()),
            Self::Etcd(section) => Ok(section.config(trust_domain, cluster)?.check()?),
            Self::Kubernetes(section) => {
                let namespace = section.namespace.as_deref().unwrap_or("default");
                let mut config = KubernetesStoreConfig::new(namespace, &section.name, "");
                config.deadline = section.deadline;
                Ok(config.check()?)
            }
        }
    }

    /// Whether other replicas share it.
    pub fn is_shared(&self) -> bool {
        *self != Self::Sled
    }
}

impl EtcdSection {
    fn config(&self, trust_domain: &TrustDomain, cluster: &str) -> Result<EtcdConfig, StoreConfigError> {
        let prefix = self.prefix.clone().unwrap_or_else(|| format!("alcazar/{trust_domain}/{cluster}"));
        let tls = self.tls.as_ref().map(|tls| {
            let client = match (&tls.certificate, &tls.key) {
                (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
                (None, None) => None,
                _ => return Err(StoreConfigError::HalfACertificate),
            };
            Ok(EtcdTls { ca: tls.ca.clone(), client, server_name: tls.server_name.clone() })
        });
        Ok(EtcdConfig {
            endpoints: self.endpoints.clone(),
            prefix: prefix.parse().map_err(StoreConfigError::Prefix)?,
            tls: tls.transpose()?,
            user: self
                .user
                .as_ref()
                .map(|user| EtcdUser { name: user.name.clone(), password: user.password_file.clone() }),
            deadline: self.deadline,
        })
    }
}

/// Opens the state; `local` is where it is on this machine.
pub(crate) async fn open(config: &crate::config::Config, local: PathBuf) -> Result<Arc<dyn Store>, OpenStoreError> {
    match &config.store {
        StoreConfig::Sled => {
            let opened = tokio::task::spawn_blocking(move || SledStore::open(local)).await;
            Ok(Arc::new(opened.map_err(|_panic| OpenStoreError::Interrupted)??))
        }
        StoreConfig::Etcd(section) => {
            let store = EtcdStore::open(section.config(&config.trust_domain, &config.cluster)?).await?;
            watched_over(Arc::new(store))
        }
        StoreConfig::Kubernetes(section) => {
            let store = open_kubernetes(section, &config.kubernetes).await?;
            watched_over(Arc::new(store))
        }
    }
}

/// Nobody waits for servers that are known to be away.
fn watched_over(store: Arc<dyn Store>) -> Result<Arc<dyn Store>, OpenStoreError> {
    Ok(Arc::new(Sentinel::new(store).map_err(OpenStoreError::Sentinel)?))
}

async fn open_kubernetes(
    section: &KubernetesSection,
    cluster: &KubernetesConfig,
) -> Result<KubernetesStore, OpenStoreError> {
    let (client, server) = kubernetes::client_for_the_store(cluster).await?;
    let namespace = section.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let mut settings = KubernetesStoreConfig::new(namespace, &section.name, server);
    settings.deadline = section.deadline;
    Ok(KubernetesStore::open(client, settings).await?)
}

/// What in the configuration of the store makes no sense.
#[derive(Debug, Error)]
pub enum StoreConfigError {
    /// etcd.
    #[error("store: etcd")]
    Etcd(#[from] EtcdConfigError),
    /// The prefix.
    #[error("store: etcd: prefix")]
    Prefix(#[source] ParseKeyError),
    /// A certificate without its key, or the other way round.
    #[error("store: etcd: tls: certificate and key belong together; give both, or neither")]
    HalfACertificate,
    /// Kubernetes.
    #[error("store: kubernetes")]
    Kubernetes(#[from] alcazar_store::kubernetes::KubernetesStoreConfigError),
}

/// Why the state did not open.
#[derive(Debug, Error)]
pub enum OpenStoreError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] StoreConfigError),
    /// The one on the disk.
    #[error(transparent)]
    Sled(#[from] StoreError),
    /// etcd.
    #[error(transparent)]
    Etcd(#[from] OpenEtcdError),
    /// Kubernetes.
    #[error(transparent)]
    Kubernetes(#[from] OpenKubernetesError),
    /// No client of Kubernetes.
    #[error(transparent)]
    Client(#[from] KubernetesError),
    /// The key that is looked for.
    #[error("the store cannot be watched over")]
    Sentinel(#[source] ParseKeyError),
    /// The process is ending.
    #[error("opening was interrupted")]
    Interrupted,
}

fn default_deadline() -> Duration {
    Duration::from_secs(5)
}

fn default_name() -> String {
    "alcazar".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(store: serde_json::Value) -> Result<(), String> {
        let store: StoreConfig = serde_json::from_value(store).map_err(|error| error.to_string())?;
        let says = |error: StoreConfigError| alcazar_service::process::chain(&error).to_string();
        store.check(&"example.org".parse().unwrap(), "east").map_err(says)
    }

    #[test]
    fn each_kind_of_store_is_configured_and_what_does_not_fit_is_said() {
        use serde_json::json;
        let tls = json!({"ca": "ca.pem"});
        for good in [
            json!("sled"),
            json!({"etcd": {"endpoints": ["http://127.0.0.1:2379"]}}),
            json!({"etcd": {"endpoints": ["https://etcd:2379"], "tls": tls, "prefix": "a/b", "deadline": "2s"}}),
            json!({"kubernetes": {}}),
            json!({"kubernetes": {"namespace": "alcazar-system", "name": "east"}}),
        ] {
            assert_eq!(check(good.clone()), Ok(()), "{good}");
        }
        for (bad, why) in [
            (json!({"etcd": {}}), "endpoints"),
            (json!({"etcd": {"endpoints": []}}), "no endpoint"),
            (json!({"etcd": {"endpoints": ["http://etcd:2379"]}}), "https://"),
            (json!({"etcd": {"endpoints": ["https://etcd:2379"]}}), "certificate authority"),
            (json!({"etcd": {"endpoints": ["http://127.0.0.1:1"], "prefix": ""}}), "prefix"),
            (
                json!({"etcd": {"endpoints": ["https://e:1"], "tls": {"ca": "ca.pem", "key": "key.pem"}}}),
                "belong together",
            ),
            (json!({"etcd": {"endpoints": ["http://127.0.0.1:1"], "deadline": "1h"}}), "100ms to 60s"),
            (json!({"kubernetes": {"name": "No Name"}}), "No Name"),
            (json!({"kubernetes": {"deadline": "0s"}}), "100ms to 60s"),
            (json!({"kubernetes": {"namespaces": "x"}}), "namespaces"),
            (json!("etcd"), "variant"),
        ] {
            let error = check(bad.clone()).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
