//! Who asks: the list of plugs, and which of them decides.
//!
//! ```text
//!   what the request carries                 exactly one plug                     who it is
//!   join token ───────────────────────────▶ records::TokenRecord ──────────────▶ a node, once
//!   authorization: Bearer ─┬ iss of oidc ─▶ oidc: issuer's keys, rules ────────▶ a workload or a node
//!                          └ any other ───▶ kubernetes: TokenReview or keys ───▶ a service account; its node's pods
//!   machine certificate + signed nonce ───▶ machines: roots, rules ────────────▶ a node
//!   its certificate + signed nonce ───────▶ records::Lineage ──────────────────▶ a node that was away
//!   client certificate (TLS) ─────────────▶ records::Lineage ──────────────────▶ a node
//! ```
//!
//! # Invariants
//! - What a request carries chooses the plug, before anything is verified, and that plug's word is final: evidence that is
//!   refused never falls through to other evidence beside it, or to another plug.
//! - A claim of the token says which plug; only the plug's own keys, or the API server, say whether the claim is true.
//! - That nobody could be asked (API server, issuer's keys) is UNAVAILABLE and never a refusal or a success.
//! - What was said of a token is remembered for a minute and by its hash. The token itself is neither kept nor logged.
//! - Who has proved nothing yet has the share of its address, and holds no place of those who are known.

mod account;
mod challenge;
mod config;
mod error;
mod invalid;
mod keys;
mod kubernetes;
mod machines;
mod oidc;
mod pod_watch;
mod pods;
mod returning;
mod review;
mod rights;
mod roots;
mod rules;
mod scheduled;

use std::{
    borrow::Cow,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_jwt::Token;
use alcazar_service::{
    Metrics,
    clock::Clock,
    metrics::{Counter, Counters},
};
use http::HeaderMap;
use thiserror::Error;

use self::{account::AccountToken, challenge::Challenges, machines::MachinePlug, oidc::OidcPlug, roots::Reread};
pub use self::{
    account::ParseServiceAccountError,
    config::{CallersConfig, KubernetesCallers, MachineCallers, OidcCallers, VerifyTokens},
    invalid::CallersError,
    rules::{RuleConfig, RuleConfigError, RuleFault},
};
pub(crate) use self::{
    error::CallerError,
    kubernetes::KubernetesPlug,
    machines::MachineEvidence,
    pods::Accounts,
    returning::{LineageEvidence, ReturnRefusal},
    scheduled::{
        account_of, in_place_of, registration as registration_of_pods, registrations as registrations_of_pods,
    },
};
use crate::{
    admission::{Admission, Overloaded, Stranger},
    config::Config,
    kubernetes::client,
    serial::NoRandomness,
};

/// The plugs, as `ca.yaml` has them.
pub(crate) struct Callers {
    kubernetes: Option<KubernetesPlug>,
    oidc: Vec<OidcPlug>,
    machines: Option<MachinePlug>,
    challenges: Challenges,
    /// Whether nodes may come back by a certificate that has ended.
    returning: bool,
    trust_domain: TrustDomain,
    cluster: String,
    failures: Counters<1>,
}

/// What decides who a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plug {
    /// A single-use token for a node.
    JoinToken,
    /// A node's certificate, by its lineage.
    NodeCertificate,
    /// A service account's token.
    Kubernetes,
    /// A token of a configured issuer.
    Oidc,
    /// An enterprise's machine certificate.
    Machine,
    /// A node's certificate that has ended, by its lineage and a signature.
    Lineage,
    /// A bearer token that is no configured plug's.
    Bearer,
    /// The CA itself, for the Secret of a service account.
    Secrets,
    /// Nothing was shown.
    Nobody,
}

/// Where a request came in, for the limits of those who have proved nothing.
#[derive(Clone, Copy)]
pub(crate) struct Door<'a> {
    pub(crate) admission: &'a Admission,
    pub(crate) from: Option<IpAddr>,
}

impl Door<'_> {
    /// Lets a stranger come in to be looked at.
    pub(crate) fn stranger(self) -> Result<Stranger, Overloaded> {
        self.admission.stranger(self.from)
    }
}

/// The holder of a good bearer token.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    pub(crate) id: SpiffeId,
    pub(crate) plug: Plug,
    /// What else is known of a service account.
    account: Option<AccountToken>,
}

impl Callers {
    /// Reads the configuration. Nobody else is asked yet, so that a CA starts while they are away.
    pub(crate) async fn open(config: &Config, clock: &Clock, metrics: &Metrics) -> Result<Self, CallersError> {
        let CallersConfig { kubernetes, oidc, machines } = &config.callers;
        let (trust_domain, cluster) = (&config.trust_domain, &config.cluster);
        let kubernetes = match kubernetes {
            Some(callers) => {
                let api = match KubernetesPlug::needs_client(callers) {
                    true => Some(client(&config.kubernetes).await.map_err(CallersError::Kubernetes)?),
                    false => None,
                };
                Some(KubernetesPlug::new(callers, trust_domain, api, clock, metrics)?)
            }
            None => None,
        };
        let oidc = oidc.iter().map(|issuer| OidcPlug::new(issuer, cluster, clock)).collect::<Result<Vec<_>, _>>()?;
        let mut issuers: Vec<&str> = oidc.iter().map(|plug| plug.issuer.as_str()).collect();
        issuers.extend(kubernetes.as_ref().and_then(|plug| plug.issuer.as_deref()));
        issuers.sort_unstable();
        if let Some([twice, _]) = issuers.array_windows().find(|[one, other]| one == other) {
            return Err(CallersError::Twice((*twice).into()));
        }
        let machines =
            machines.as_ref().map(|machines| MachinePlug::new(machines, trust_domain, cluster)).transpose()?;
        let failures = metrics.counters(
            "alcazar_ca_authentication_failures",
            "Requests whose sender did not prove who it is, by what was to prove it",
            ["plug"],
        );
        let (trust_domain, cluster) = (trust_domain.clone(), cluster.clone());
        let (challenges, returning) = (Challenges::new()?, !config.nodes.reattest_within().is_zero());
        Ok(Self { kubernetes, oidc, machines, challenges, returning, trust_domain, cluster, failures })
    }

    /// Who holds a bearer token: the issuer that it claims chooses the one plug that decides. Whoever sends one is a stranger
    /// until it is verified, and one of too many is not looked at; but whose token was good a moment ago is known.
    ///
    /// # Errors
    /// When that plug refuses it, cannot decide now, or there is none; with the plug.
    pub(crate) async fn bearer(&self, text: &str, door: Door<'_>) -> Result<Bearer, (Plug, CallerError)> {
        if self.oidc.is_empty() && self.kubernetes.is_none() {
            return Err((Plug::Bearer, CallerError::NoTokens));
        }
        if let Some(known) = self.kubernetes.as_ref().and_then(|plug| plug.remembered(text)) {
            return self.account(known.map_err(CallerError::Account));
        }
        let stranger = door.stranger().map_err(|overloaded| (Plug::Bearer, CallerError::Overloaded(overloaded)))?;
        let bearer = self.verified(text, &stranger).await?;
        stranger.proved();
        Ok(bearer)
    }

    async fn verified(&self, text: &str, stranger: &Stranger) -> Result<Bearer, (Plug, CallerError)> {
        let token = Token::parse(text).map_err(|error| (Plug::Bearer, CallerError::Token(error)))?;
        let issuer = token.claimed_issuer().unwrap_or_default().to_owned();
        if let Some(plug) = self.oidc.iter().find(|plug| plug.issuer == issuer) {
            let id = plug.identity(token, &self.trust_domain).await.map_err(|error| (Plug::Oidc, error))?;
            return Ok(Bearer { id, plug: Plug::Oidc, account: None });
        }
        let ours = |plug: &&KubernetesPlug| plug.issuer.as_ref().is_none_or(|own| *own == issuer);
        let Some(plug) = self.kubernetes.as_ref().filter(ours) else {
            let shown = issuer.chars().take(200).collect();
            return Err((Plug::Bearer, CallerError::UnknownIssuer(shown)));
        };
        self.account(plug.account(text, token, stranger).await)
    }

    /// The holder of a service account's token.
    fn account(&self, token: Result<AccountToken, CallerError>) -> Result<Bearer, (Plug, CallerError)> {
        let refused = |error| (Plug::Kubernetes, error);
        let token = token.map_err(refused)?;
        let id = token.account.spiffe_id(&self.trust_domain);
        let id = id.map_err(|error| refused(CallerError::Identity(error)))?;
        // Whoever had it would be the CA to every agent.
        if crate::serving::is_the_cas(&id) {
            return Err(refused(CallerError::WrongKind(id)));
        }
        Ok(Bearer { id, plug: Plug::Kubernetes, account: Some(token) })
    }

    /// Which node the holder of a bearer token attests: that of a node agent's pod, or the one that a rule says.
    pub(crate) async fn attesting(
        &self,
        text: &str,
        door: Door<'_>,
    ) -> Result<(Bearer, SpiffeId), (Plug, CallerError)> {
        let bearer = self.bearer(text, door).await?;
        let refused = |error| (bearer.plug, error);
        let node = match (&bearer.account, &self.kubernetes) {
            (Some(account), Some(plug)) => {
                let node = plug.node_of(account).map_err(refused)?;
                let id = SpiffeId::node(&self.trust_domain, &self.cluster, &node);
                id.map_err(|error| refused(CallerError::Identity(error)))?
            }
            _ if matches!(bearer.id.kind(), alcazar_identity::SpiffeIdKind::Node { .. }) => bearer.id.clone(),
            _ => return Err(refused(CallerError::WrongKind(bearer.id.clone()))),
        };
        Ok((bearer, node))
    }

    /// Which node a machine is, and a name of it for the record.
    pub(crate) fn machine(
        &self,
        evidence: &MachineEvidence<'_>,
        now: SystemTime,
    ) -> Result<(SpiffeId, String), CallerError> {
        let machines = self.machines.as_ref().ok_or(CallerError::NoMachines)?;
        let (node, fingerprint) = machines.node(evidence, &self.challenges, now)?;
        Ok((node, format!("machine certificate {fingerprint}")))
    }

    /// A nonce for a machine, or a node that comes back, to sign, and its end.
    pub(crate) fn challenge(&self, now: SystemTime) -> Result<(Vec<u8>, SystemTime), ChallengeFailed> {
        if self.machines.is_none() && !self.returning {
            return Err(ChallengeFailed::NoMachines);
        }
        Ok(self.challenges.make(now)?)
    }

    /// Whether a caller that says of which cluster it is has come to the right CA.
    pub(crate) fn check_cluster(&self, said: Option<&str>) -> Result<(), CallerError> {
        let own = |name: &str| name == self.cluster || self.kubernetes.as_ref().is_none_or(|plug| plug.is_called(name));
        match said.filter(|name| !name.is_empty() && !own(name)) {
            Some(found) => {
                let found = found.chars().take(100).collect();
                Err(CallerError::Cluster { found, own: self.cluster.clone() })
            }
            None => Ok(()),
        }
    }

    /// The files of roots that their owners exchange.
    pub(crate) fn files(&self) -> Vec<Arc<dyn Reread>> {
        let machines = self.machines.iter().map(|plug| plug.roots.clone() as Arc<dyn Reread>);
        let issuers = self.oidc.iter().filter_map(|plug| plug.roots.clone()).map(|file| file as Arc<dyn Reread>);
        machines.chain(issuers).collect()
    }

    /// The plug for service accounts, where there is one.
    pub(crate) fn kubernetes(&self) -> Option<&KubernetesPlug> {
        self.kubernetes.as_ref()
    }

    /// Counts what this plug refused.
    pub(crate) fn failures(&self, plug: Plug) -> Counter {
        self.failures.with([plug.as_str()])
    }
}

impl Bearer {
    /// Whose limits count: one pod's, since all pods of an account have one identity.
    pub(crate) fn limited_as(&self) -> Cow<'_, str> {
        match self.account.as_ref().and_then(|account| account.pod.as_ref()) {
            Some(pod) => format!("{} {}", self.id, pod.name).into(),
            None => self.id.as_str().into(),
        }
    }

    /// Whether its holder may ask for another identity.
    pub(crate) fn act_for(&self, callers: &Callers, wanted: &SpiffeId) -> Result<(), CallerError> {
        match (&self.account, &callers.kubernetes) {
            (Some(account), Some(plug)) => plug.act_for(account, wanted),
            _ => Err(CallerError::WrongKind(wanted.clone())),
        }
    }
}

/// The bearer token of a request; `None` when it carries none.
///
/// # Errors
/// When what it carries is not exactly one bearer token: it meant to prove something, and it does not.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, CallerError> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| text.split_once(' '));
    match (token, values.next()) {
        (Some((scheme, token)), None) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(CallerError::Header),
    }
}

impl Plug {
    /// Its name in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::JoinToken => "join-token",
            Self::NodeCertificate => "node-certificate",
            Self::Kubernetes => "kubernetes",
            Self::Oidc => "oidc",
            Self::Machine => "machine",
            Self::Lineage => "lineage",
            Self::Bearer => "bearer",
            Self::Secrets => "secrets",
            Self::Nobody => "none",
        }
    }
}

impl fmt::Display for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no nonce.
#[derive(Debug, Error)]
pub(crate) enum ChallengeFailed {
    #[error("nobody attests by a nonce here (callers.machines and nodes.reattestWithin in ca.yaml)")]
    NoMachines,
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// By how much an issuer's clock may differ from ours.
const LEEWAY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_one_bearer_token_or_none() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(http::header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer_token(&headers).map(|token| token.map(str::to_owned)).map_err(|_header| ())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["Bearer a.b.c"]), Ok(Some("a.b.c".into())));
        assert_eq!(read(&["bearer  a.b.c "]), Ok(Some("a.b.c".into())));
        for bad in
            [&["Basic abc"][..], &[""], &["Bearer"], &["a.b.c"], &["Bearer a", "Bearer b"], &["Bearer a", "Basic b"]]
        {
            assert_eq!(read(bad), Err(()), "{bad:?}");
        }
    }
}
