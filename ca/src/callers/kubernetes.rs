//! Service accounts of the cluster: whose a token is, by the API server or by the cluster's keys.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_jwt::{Expectations, Issuer, Token};
use alcazar_service::{Metrics, clock::Clock};
use kube::Client;
use tokio::sync::watch;

use super::{
    CallersError,
    account::{AccountError, AccountToken, ServiceAccount},
    config::{KubernetesCallers, VerifyTokens},
    error::CallerError,
    keys::{ClusterKeys, FetchKeys, IssuerKeys, KeysFile},
    pod_watch::PodWatch,
    pods::Accounts,
    review::Reviews,
    rights,
    scheduled::Except,
};
use crate::admission::Stranger;

/// The plug for service accounts.
pub(crate) struct KubernetesPlug {
    /// Whose tokens; `None`: whichever no other plug claims.
    pub(super) issuer: Option<String>,
    vouching: Vouching,
    trusted: BTreeSet<ServiceAccount>,
    agents: BTreeSet<ServiceAccount>,
    pods: Option<PodWatch>,
    /// Whether nodes are told of the pods on them.
    tells_of_pods: bool,
    except: Except,
    cluster_ids: Vec<String>,
    clock: Clock,
}

enum Vouching {
    Review(Box<Reviews>),
    Keys { keys: IssuerKeys, issuer: String, audiences: Vec<String> },
}

impl KubernetesPlug {
    /// Reads the configuration. The API is not asked yet.
    pub(super) fn new(
        config: &KubernetesCallers,
        trust_domain: &TrustDomain,
        client: Option<Client>,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Self, CallersError> {
        let accounts = |texts: &[String]| texts.iter().map(|text| text.parse()).collect::<Result<BTreeSet<_>, _>>();
        let (trusted, agents) = (accounts(&config.trusted_node_accounts)?, accounts(&config.node_agents)?);
        let audiences = match config.audiences.is_empty() {
            true => vec!["istio-ca".to_owned(), trust_domain.to_string()],
            false => config.audiences.clone(),
        };
        if config.cache_for > LONGEST {
            return Err(CallersError::CacheFor);
        }
        let api = || client.clone().ok_or(CallersError::NoClient);
        let vouching = match config.verify {
            VerifyTokens::TokenReview if config.jwks.is_some() => return Err(CallersError::KeysForReview),
            VerifyTokens::TokenReview => {
                let outcomes = metrics.counters(
                    "alcazar_ca_token_reviews",
                    "Service account tokens by what was said of them",
                    ["outcome"],
                );
                Vouching::Review(Box::new(Reviews::new(api()?, audiences, config.cache_for, clock.clone(), outcomes)))
            }
            VerifyTokens::Offline => {
                let source: Box<dyn FetchKeys> = match &config.jwks {
                    Some(file) => Box::new(KeysFile(PathBuf::from(file))),
                    None => Box::new(ClusterKeys(api()?)),
                };
                let issuer = config.issuer.clone().ok_or(CallersError::OfflineIssuer)?;
                Vouching::Keys { keys: IssuerKeys::new(source, clock.clone()), issuer, audiences }
            }
        };
        let pods = match config.needs_pods() {
            true => Some(PodWatch::new(api()?, clock.clone())),
            false => None,
        };
        let (tells_of_pods, except) = (config.tells_of_pods(), Except::parse(&config.pods_except)?);
        let (issuer, cluster_ids) = (config.issuer.clone(), config.cluster_ids.clone());
        let clock = clock.clone();
        Ok(Self { issuer, vouching, trusted, agents, pods, tells_of_pods, except, cluster_ids, clock })
    }

    /// Whether the configuration needs the API of the cluster.
    pub(super) fn needs_client(config: &KubernetesCallers) -> bool {
        config.verify == VerifyTokens::TokenReview || config.jwks.is_none() || config.needs_pods()
    }

    /// What was said of this very token a moment ago.
    pub(super) fn remembered(&self, text: &str) -> Option<Result<AccountToken, AccountError>> {
        match &self.vouching {
            Vouching::Review(reviews) => reviews.remembered(text),
            Vouching::Keys { .. } => None,
        }
    }

    /// Whose token it is.
    pub(super) async fn account(
        &self,
        text: &str,
        token: Token<'_>,
        stranger: &Stranger,
    ) -> Result<AccountToken, CallerError> {
        match &self.vouching {
            Vouching::Review(reviews) => reviews.review(text, &token, stranger).await,
            Vouching::Keys { keys, issuer, audiences } => {
                let audiences: Vec<&str> = audiences.iter().map(String::as_str).collect();
                let expected = Expectations {
                    audiences: &audiences,
                    issuer: Issuer::Is(issuer),
                    now: (self.clock)(),
                    leeway: super::LEEWAY,
                };
                let claims = keys.verify(token, &expected).await?;
                AccountToken::of_claims(&claims).map_err(CallerError::Account)
            }
        }
    }

    /// Whether clients may call this cluster by that name.
    pub(crate) fn is_called(&self, cluster: &str) -> bool {
        self.cluster_ids.iter().any(|name| name == cluster)
    }

    /// Whether the holder of a token may ask for another identity.
    pub(crate) fn act_for(&self, caller: &AccountToken, wanted: &SpiffeId) -> Result<(), CallerError> {
        let wanted = ServiceAccount::of(wanted).ok_or_else(|| CallerError::WrongKind(wanted.clone()))?;
        if !self.trusted.contains(&caller.account) {
            return Err(CallerError::Rights(rights::RightsError::NotTrusted(caller.account.clone())));
        }
        if self.except.has(&wanted) {
            return Err(CallerError::Rights(rights::RightsError::Excepted(wanted)));
        }
        let pods = self.pods.as_ref().ok_or(CallerError::NoPods)?;
        pods.read(|pods| rights::act_for(pods, &self.trusted, caller, &wanted))
            .ok_or(CallerError::NoPods)?
            .map_err(CallerError::Rights)
    }

    /// The name of the node that a node agent's token attests.
    pub(super) fn node_of(&self, caller: &AccountToken) -> Result<String, CallerError> {
        if !self.agents.contains(&caller.account) {
            return Err(CallerError::NotAnAgent(caller.account.to_string()));
        }
        let pods = self.pods.as_ref().ok_or(CallerError::NoPods)?;
        pods.read(|pods| rights::node_of(pods, caller).map(str::to_owned))
            .ok_or(CallerError::NoPods)?
            .map_err(CallerError::Rights)
    }

    /// Whether a pod of this identity is scheduled on the node of this name. Nobody is while the pods are not known.
    pub(crate) fn is_scheduled(&self, node: &str, id: &SpiffeId) -> bool {
        let Some((pods, account)) = self.pods.as_ref().zip(ServiceAccount::of(id)) else { return false };
        !self.except.has(&account) && pods.read(|pods| rights::runs_on(pods, node, &account)).unwrap_or(false)
    }

    /// When it changes who is told of to some node (`None` inside: not all pods are known yet); `None` where no node is told.
    pub(crate) fn pod_changes(&self) -> Option<watch::Receiver<Option<u64>>> {
        self.told_pods().map(PodWatch::changes)
    }

    /// The accounts that have a pod on the node, to tell it; nobody where it is told nothing.
    ///
    /// # Errors
    /// While the pods are not known.
    pub(crate) fn accounts_on(&self, node: &str) -> Result<Accounts, CallerError> {
        let Some(pods) = self.told_pods() else { return Ok(Accounts::default()) };
        pods.read(|pods| pods.accounts_on(node)).ok_or(CallerError::NoPods)
    }

    /// The nodes that have pods, to tell them; `None` where no node is told, or the pods are not known.
    pub(crate) fn nodes_with_pods(&self) -> Option<Vec<String>> {
        self.told_pods()?.read(|pods| pods.nodes().map(str::to_owned).collect())
    }

    /// Whether the pods of this account give a node nothing.
    pub(crate) fn is_excepted(&self, account: &ServiceAccount) -> bool {
        self.except.has(account)
    }

    fn told_pods(&self) -> Option<&PodWatch> {
        self.pods.as_ref().filter(|_| self.tells_of_pods)
    }

    /// Every pod of the cluster, where somebody's rights depend on them.
    pub(crate) fn pods(&self) -> Option<&PodWatch> {
        self.pods.as_ref()
    }
}

/// Whoever was removed from the cluster has what was issued for as long as that lives, and this on top.
const LONGEST: Duration = Duration::from_secs(600);
