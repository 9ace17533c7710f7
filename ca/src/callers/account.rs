//! A Kubernetes service account and what its token says, from either of the two ways to ask.

use std::{fmt, str::FromStr, time::SystemTime};

use alcazar_identity::{ParseSpiffeIdError, SpiffeId, TrustDomain, rfc3339};
use alcazar_jwt::Claims;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use serde_json::Value;
use thiserror::Error;

/// A service account, as `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServiceAccount {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// What a service account's token says, once somebody has vouched for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccountToken {
    pub(crate) account: ServiceAccount,
    /// The pod that it was made for. Tokens that are not bound to one have none.
    pub(crate) pod: Option<BoundPod>,
    /// The node that the pod was on when the token was made. Clusters before 1.30 do not say.
    pub(crate) node: Option<String>,
}

/// The pod that a token is bound to, in the account's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BoundPod {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl ServiceAccount {
    /// Its identity.
    ///
    /// # Errors
    /// When a name cannot stand in one.
    pub(crate) fn spiffe_id(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, ParseSpiffeIdError> {
        SpiffeId::workload(trust_domain, &self.namespace, &self.name)
    }

    /// The account whose identity it is.
    pub(crate) fn of(id: &SpiffeId) -> Option<Self> {
        Some(Self { namespace: id.namespace()?.into(), name: id.service_account()?.into() })
    }

    fn of_username(username: &str) -> Result<Self, AccountError> {
        let parts = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let (namespace, name) = parts.ok_or_else(|| AccountError::NotAnAccount(shown(username)))?;
        Self::new(namespace, name).ok_or_else(|| AccountError::NotAnAccount(shown(username)))
    }

    fn new(namespace: &str, name: &str) -> Option<Self> {
        let word = |text: &str| !text.is_empty() && !text.contains(['/', ':']) && text.len() <= 253;
        (word(namespace) && word(name)).then(|| Self { namespace: namespace.into(), name: name.into() })
    }
}

impl AccountToken {
    /// What an API server says of a token that it was shown (TokenReview).
    ///
    /// `ours` are the audiences that we asked for: a server that does not know about audiences vouches for a token that may
    /// be for somebody else, and says so by naming none.
    ///
    /// # Errors
    /// When it does not vouch for it, not for us, or not for a service account.
    pub(crate) fn of_review(status: &TokenReviewStatus, ours: &[String]) -> Result<Self, AccountError> {
        if status.authenticated != Some(true) {
            return Err(AccountError::Refused(shown(status.error.as_deref().unwrap_or("it does not say why"))));
        }
        let audiences = status.audiences.as_deref().unwrap_or_default();
        if !audiences.iter().any(|audience| ours.contains(audience)) {
            return Err(AccountError::Audience { found: shown(&audiences.join(", ")), expected: ours.join(", ") });
        }
        let user = status.user.as_ref().ok_or(AccountError::Missing("user"))?;
        let account = ServiceAccount::of_username(user.username.as_deref().unwrap_or_default())?;
        let extra = |name: &str| {
            let values = user.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{name}"))?;
            values.first().filter(|value| values.len() == 1 && !value.is_empty()).cloned()
        };
        let pod = extra("pod-name").zip(extra("pod-uid")).map(|(name, uid)| BoundPod { name, uid });
        Ok(Self { account, pod, node: extra("node-name") })
    }

    /// What a token says that the cluster's keys have signed.
    ///
    /// # Errors
    /// When it is not a service account's.
    ///
    /// **Source**: the claim `kubernetes.io` of bound service account tokens.
    pub(crate) fn of_claims(claims: &Claims) -> Result<Self, AccountError> {
        let account = ServiceAccount::of_username(claims.subject().unwrap_or_default())?;
        let private = claims.get("kubernetes.io").ok_or(AccountError::Missing("kubernetes.io"))?;
        let text = |path: &[&str]| {
            let found = path.iter().try_fold(private, |value, name| value.get(name));
            found.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let said = (text(&["namespace"]), text(&["serviceaccount", "name"]));
        if said != (Some(account.namespace.clone()), Some(account.name.clone())) {
            return Err(AccountError::Missing("kubernetes.io/serviceaccount"));
        }
        let pod = text(&["pod", "name"]).zip(text(&["pod", "uid"])).map(|(name, uid)| BoundPod { name, uid });
        Ok(Self { account, pod, node: text(&["node", "name"]) })
    }
}

/// When a token's claims end, by its own word; whoever vouches for the token vouches for this.
pub(crate) fn sooner(end: Option<SystemTime>, limit: SystemTime) -> SystemTime {
    end.map_or(limit, |end| end.min(limit))
}

impl FromStr for ServiceAccount {
    type Err = ParseServiceAccountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/').and_then(|(namespace, name)| Self::new(namespace, name));
        parts.ok_or_else(|| ParseServiceAccountError(text.into()))
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Not a service account.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a service account; write <namespace>/<name>")]
pub struct ParseServiceAccountError(String);

/// Why a token names no service account that we believe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum AccountError {
    #[error("the API server does not vouch for the token: {0}")]
    Refused(String),
    #[error("the API server vouches for the token for the audience {found:?}; accepted here: {expected:?}")]
    Audience { found: String, expected: String },
    #[error("it is for the audience {found:?}; accepted here: {expected:?}")]
    NotForUs { found: String, expected: String },
    #[error("it ended at {}, and the clock here says {}", rfc3339(*end), rfc3339(*now))]
    Over { end: SystemTime, now: SystemTime },
    #[error("it is not a service account's token: {0:?}")]
    NotAnAccount(String),
    #[error("it is not a service account's token: {0:?} is missing, or says something else")]
    Missing(&'static str),
}

pub(super) fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(changes: Value) -> Result<AccountToken, AccountError> {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["istio-ca"],
            "user": {"username": "system:serviceaccount:shop:web", "extra": {
                "authentication.kubernetes.io/pod-name": ["web-1"],
                "authentication.kubernetes.io/pod-uid": ["u-1"],
                "authentication.kubernetes.io/node-name": ["node-a"],
            }},
        });
        status.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        AccountToken::of_review(&serde_json::from_value(status).unwrap(), &["istio-ca".into(), "td".into()])
    }

    #[test]
    fn a_review_vouches_for_an_account_and_for_us() {
        let expected = AccountToken {
            account: "shop/web".parse().unwrap(),
            pod: Some(BoundPod { name: "web-1".into(), uid: "u-1".into() }),
            node: Some("node-a".into()),
        };
        assert_eq!(review(json!({})), Ok(expected.clone()));
        assert_eq!(review(json!({"audiences": ["x", "td"]})), Ok(expected));
        let bare = review(json!({"user": {"username": "system:serviceaccount:shop:web"}})).unwrap();
        assert_eq!((bare.pod, bare.node), (None, None));
        // A server that does not know about audiences names none: the token may be for anybody.
        for audiences in [json!([]), json!(null), json!(["https://kubernetes.default.svc"])] {
            let refused = review(json!({"audiences": audiences}));
            assert!(matches!(refused, Err(AccountError::Audience { .. })), "{refused:?}");
        }
        for said in [json!(false), json!(null)] {
            let refused = review(json!({"authenticated": said, "error": "token expired"}));
            assert_eq!(refused, Err(AccountError::Refused("token expired".into())));
        }
        for user in ["", "admin", "system:node:a", "system:serviceaccount:shop", "system:serviceaccount::web"] {
            let refused = review(json!({"user": {"username": user}}));
            assert!(matches!(refused, Err(AccountError::NotAnAccount(_))), "{user}: {refused:?}");
        }
        assert_eq!(review(json!({"user": null})), Err(AccountError::Missing("user")));
    }

    #[test]
    fn accounts_are_a_namespace_and_a_name() {
        for good in ["shop/web", "istio-system/ztunnel", "a/b.c"] {
            assert_eq!(good.parse::<ServiceAccount>().unwrap().to_string(), good);
        }
        for bad in ["", "shop", "/web", "shop/", "a/b/c", "a/b:c"] {
            assert!(bad.parse::<ServiceAccount>().is_err(), "{bad:?}");
        }
    }
}
