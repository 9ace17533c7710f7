//! The pods of this node: which service account each runs under.

mod known;
mod list;
mod pods;
mod source;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use alcazar_mtls::web::{HttpsUrl, ParseHttpsUrlError};
use serde::{Deserialize, Deserializer};

pub use list::{ParsePodListError, PodList};
pub(crate) use pods::{Keeper, Pods};
pub(crate) use source::Source;

use crate::peer::CgroupRoot;

/// Who is asked for the pods of this node: its kubelet, or the API server.
///
/// **There is no way to leave out the check of the server.** The kubelet's port can be taken by any user of the node while no kubelet
/// runs, and whoever answers there says whose each process is, and is shown a token.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesConfig {
    /// The kubelet of this node: `https://127.0.0.1:10250`. Either this or `api`.
    #[serde(default)]
    pub kubelet: Option<String>,
    /// The API server: `https://kubernetes.default.svc`.
    #[serde(default)]
    pub api: Option<String>,
    /// The roots (PEM) by which the server is known. A kubelet that made its certificate itself: that certificate, as in
    /// `/var/lib/kubelet/pki/kubelet.crt`. Read anew at every use.
    pub root_file: PathBuf,
    /// The name in the server's certificate. Default: for a kubelet the name of the node, for the API server the host of its URL.
    #[serde(default)]
    pub server_name: Option<String>,
    /// A file with the bearer token that may list pods there; read anew at every use.
    pub token_file: PathBuf,
    /// The control group below which the kubelet keeps its pods, as in its own configuration. Default: `/`.
    #[serde(default, deserialize_with = "from_text")]
    pub cgroup_root: CgroupRoot,
}

impl KubernetesConfig {
    pub(crate) fn source(&self, node: &str) -> Result<Source, KubernetesConfigError> {
        let (url, name) = match (&self.kubelet, &self.api) {
            (Some(kubelet), None) => (below(kubelet, "pods")?, Some(node.to_owned())),
            (None, Some(api)) => {
                // From what the server has in memory: it is asked again where it lags.
                let path = format!("api/v1/pods?fieldSelector=spec.nodeName%3D{node}&resourceVersion=0");
                (below(api, &path)?, None)
            }
            _ => return Err(KubernetesConfigError::OneServer),
        };
        let name = self.server_name.clone().or(name);
        Ok(Source {
            url,
            is_kubelet: self.kubelet.is_some(),
            name,
            roots: self.root_file.clone(),
            token: self.token_file.clone(),
            node: node.to_owned(),
        })
    }
}

fn below(server: &str, path: &str) -> Result<HttpsUrl, KubernetesConfigError> {
    let base: HttpsUrl = server.parse()?;
    if base.to_string().contains('?') {
        return Err(KubernetesConfigError::Query(server.to_owned()));
    }
    Ok(format!("{}/{path}", server.trim_end_matches('/')).parse()?)
}

fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// What is wrong with the section `kubernetes` of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesConfigError {
    /// None, or two of them.
    #[error(
        "kubernetes names the server that lists the pods: either `kubelet: https://127.0.0.1:10250` or `api: https://...`"
    )]
    OneServer,
    /// Its URL cannot be used.
    #[error("the server in kubernetes cannot be asked")]
    Url(#[from] ParseHttpsUrlError),
    /// The path is ours to say.
    #[error("{0:?} in kubernetes has a query: the URL of the server alone is needed")]
    Query(String),
}
