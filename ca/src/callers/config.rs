//! `callers` in `ca.yaml`: who may ask beside nodes with a join token or a certificate of theirs.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::rules::RuleConfig;
use crate::duration;

/// Who may ask, beside nodes with a join token or their certificate. Default: nobody.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct CallersConfig {
    /// Service accounts of the cluster, by their tokens.
    pub kubernetes: Option<KubernetesCallers>,
    /// Whoever has a token of one of these issuers.
    pub oidc: Vec<OidcCallers>,
    /// Machines with a certificate of the enterprise's own CA.
    pub machines: Option<MachineCallers>,
}

/// Service accounts of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KubernetesCallers {
    /// Who vouches for a token. Default: `tokenReview`.
    pub verify: VerifyTokens,
    /// Tokens must be for one of these. Default: `istio-ca` and the name of the trust domain.
    pub audiences: Vec<String>,
    /// The issuer of the cluster's tokens. Needed for `offline`; with `tokenReview`, tokens of others are not even shown to
    /// the API server. Default: none.
    pub issuer: Option<String>,
    /// With `offline`, a file with the cluster's keys (JWKS). Default: they are fetched from the API server.
    pub jwks: Option<PathBuf>,
    /// How long the API server's word for a token is believed, at most until the token ends. Default: 1m; at most 10m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub cache_for: Duration,
    /// Accounts (`<namespace>/<name>`) that may ask for the pods on their own node, as ztunnel does. Default: none.
    pub trusted_node_accounts: Vec<String>,
    /// Accounts of node agents: their tokens attest the node that their pod is on. Default: none.
    pub node_agents: Vec<String>,
    /// Whether nodes are told of the accounts that have pods on them, as of registrations. Default: where `nodeAgents` names
    /// somebody.
    pub pods: Option<bool>,
    /// Whose pods give a node nothing: namespaces, and accounts (`<namespace>/<name>`). Default: nobody's.
    pub pods_except: Vec<String>,
    /// Names by which clients of Istio's CSR API may call this cluster, beside its own. Default: `Kubernetes`.
    pub cluster_ids: Vec<String>,
}

impl KubernetesCallers {
    /// Whether nodes are told of the pods on them.
    pub(super) fn tells_of_pods(&self) -> bool {
        self.pods.unwrap_or(!self.node_agents.is_empty())
    }

    /// Whether somebody's rights depend on who runs where.
    pub(super) fn needs_pods(&self) -> bool {
        self.tells_of_pods() || !self.trusted_node_accounts.is_empty() || !self.node_agents.is_empty()
    }
}

/// Who vouches for a service account's token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VerifyTokens {
    /// The API server: it knows whether the pod and the account still exist.
    #[default]
    TokenReview,
    /// The cluster's public keys: a token is good until it ends, whatever became of its pod.
    Offline,
}

/// Whoever has a token of this issuer (OpenID Connect).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OidcCallers {
    /// The issuer, character by character as its tokens have it. No other entry has the same.
    pub issuer: String,
    /// Tokens must be for one of these.
    pub audiences: Vec<String>,
    /// Where its keys are: a file, or an https URL. Default: where its configuration says
    /// (`<issuer>/.well-known/openid-configuration`).
    #[serde(default)]
    pub jwks: Option<String>,
    /// Roots (PEM) for its https URLs. Default: those of the system.
    #[serde(default)]
    pub roots: Option<PathBuf>,
    /// Claims to identities; the first that matches decides.
    pub rules: Vec<RuleConfig>,
}

/// Machines with a certificate of the enterprise's own CA.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MachineCallers {
    /// The roots (PEM) of those certificates.
    pub roots: PathBuf,
    /// Names in the certificate (`commonName`, `dns`, `uri`) to nodes; the first that matches decides.
    pub rules: Vec<RuleConfig>,
}

impl Default for KubernetesCallers {
    fn default() -> Self {
        Self {
            verify: VerifyTokens::default(),
            audiences: Vec::new(),
            issuer: None,
            jwks: None,
            cache_for: Duration::from_secs(60),
            trusted_node_accounts: Vec::new(),
            node_agents: Vec::new(),
            pods: None,
            pods_except: Vec::new(),
            cluster_ids: vec!["Kubernetes".into()],
        }
    }
}
