//! The Kubernetes API: how the CA reaches it.
//!
//! ```text
//! ca.yaml  kubernetes: {kubeconfig, context} ──▶ client() ──▶ TokenReview, pods, Secrets, the store
//!          nothing said: the pod's own service account
//! ```

pub(crate) mod secrets;

use std::path::PathBuf;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde::Deserialize;
use thiserror::Error;

pub use self::secrets::SecretsConfig;

/// How the CA reaches the API of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KubernetesConfig {
    /// A kubeconfig file. Default: none; the CA is a pod and uses its own service account, whose token is read again as it
    /// is renewed.
    pub kubeconfig: Option<PathBuf>,
    /// The context of that file. Default: its current one.
    pub context: Option<String>,
    /// Secrets of the type `istio.io/key-and-cert` for the service accounts of namespaces that ask for them. Default: none.
    pub secrets: Option<SecretsConfig>,
}

/// A client of the cluster's API, which asks again where the server says that it is busy.
///
/// Nothing is asked yet: an API that is away is found by the first request. The process has its TLS provider installed
/// before (`alcazar_mtls::install_default_provider`).
///
/// # Errors
/// When the configuration cannot be used; the error says which part.
pub async fn client(config: &KubernetesConfig) -> Result<kube::Client, KubernetesError> {
    connect(settings(config).await?)
}

/// A client that asks once and no more, and where the API is. A store must know what became of each request.
pub(crate) async fn client_for_the_store(config: &KubernetesConfig) -> Result<(kube::Client, String), KubernetesError> {
    let mut settings = settings(config).await?;
    settings.default_retry = false;
    let server = settings.cluster_url.to_string();
    Ok((connect(settings)?, server))
}

async fn settings(config: &KubernetesConfig) -> Result<kube::Config, KubernetesError> {
    let Some(path) = &config.kubeconfig else {
        if config.context.is_some() {
            return Err(KubernetesError::ContextWithoutFile);
        }
        return kube::Config::incluster().map_err(KubernetesError::InCluster);
    };
    let failed = |source| KubernetesError::Kubeconfig { path: path.clone(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions { context: config.context.clone(), ..KubeConfigOptions::default() };
    let settings = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?;
    // Whoever stands between could answer every TokenReview.
    if settings.accept_invalid_certs {
        return Err(KubernetesError::Unverified(path.clone()));
    }
    Ok(settings)
}

fn connect(settings: kube::Config) -> Result<kube::Client, KubernetesError> {
    kube::Client::try_from(settings).map_err(|source| KubernetesError::Client(Box::new(source)))
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum KubernetesError {
    /// The CA does not run in a pod, or its pod has no service account token.
    #[error(
        "no kubeconfig is named, and the CA's own service account cannot be used; outside a cluster set kubernetes.kubeconfig, \
         inside give the pod a service account (automountServiceAccountToken)"
    )]
    InCluster(#[source] InClusterError),
    /// The file cannot be used.
    #[error("the kubeconfig {} cannot be used", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// A context of no file.
    #[error("kubernetes.context names a context of a kubeconfig, and kubernetes.kubeconfig names none")]
    ContextWithoutFile,
    /// The file asks not to check the server's certificate.
    #[error(
        "the kubeconfig {} has insecure-skip-tls-verify; a CA must know whom it asks: name the cluster's certificate authority instead",
        .0.display()
    )]
    Unverified(PathBuf),
    /// TLS or credentials do not fit.
    #[error("no client of the Kubernetes API can be made of the configuration")]
    Client(#[source] Box<kube::Error>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(cluster: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'{cluster}}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
        );
        std::fs::write(file.path(), text).unwrap();
        file
    }

    async fn refusal(config: KubernetesConfig) -> String {
        settings(&config).await.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_kubeconfig_is_read_and_one_that_skips_verification_is_refused() {
        let good = kubeconfig("");
        let config = KubernetesConfig { kubeconfig: Some(good.path().into()), ..KubernetesConfig::default() };
        assert_eq!(settings(&config).await.unwrap().cluster_url, "https://127.0.0.1:1/");
        let other = KubernetesConfig { context: Some("elsewhere".into()), ..config.clone() };
        assert!(refusal(other).await.contains("cannot be used"));
        let skips = kubeconfig(", insecure-skip-tls-verify: true");
        let config = KubernetesConfig { kubeconfig: Some(skips.path().into()), ..KubernetesConfig::default() };
        assert!(refusal(config).await.contains("insecure-skip-tls-verify"));
    }

    #[tokio::test]
    async fn what_is_missing_is_said() {
        let missing =
            KubernetesConfig { kubeconfig: Some("/nowhere/kubeconfig".into()), ..KubernetesConfig::default() };
        assert!(refusal(missing).await.contains("/nowhere/kubeconfig"));
        let context = KubernetesConfig { context: Some("east".into()), ..KubernetesConfig::default() };
        assert!(refusal(context).await.contains("kubernetes.kubeconfig"));
        assert!(refusal(KubernetesConfig::default()).await.contains("set kubernetes.kubeconfig"));
    }
}
