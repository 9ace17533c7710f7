//! Which workloads a node may ask for.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use alcazar_identity::{ParseSpiffeIdError, SpiffeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::text;

/// A workload that a node may ask for, and how the node's agent knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    #[serde(with = "text")]
    id: RegistrationId,
    #[serde(with = "text")]
    node: SpiffeId,
    #[serde(with = "text")]
    spiffe_id: SpiffeId,
    selectors: BTreeSet<Selector>,
    /// Zero: the CA's default.
    #[serde(default)]
    ttl_seconds: u64,
    /// Whether the CA's configuration file made it; then it goes when it goes from there.
    #[serde(default)]
    configured: bool,
}

impl Registration {
    /// A registration.
    ///
    /// # Errors
    /// When the node is not a node's identity, the two are of different trust domains, the workload's identity
    /// is a node's, or there is no selector: a workload that nothing tells apart is nobody in particular.
    pub fn new(
        id: RegistrationId,
        node: SpiffeId,
        spiffe_id: SpiffeId,
        selectors: impl IntoIterator<Item = Selector>,
        ttl: Option<Duration>,
    ) -> Result<Self, ParseRegistrationError> {
        use alcazar_identity::SpiffeIdKind::Node;
        if !matches!(node.kind(), Node { .. }) {
            return Err(ParseRegistrationError::NotANode(node));
        }
        if matches!(spiffe_id.kind(), Node { .. }) {
            return Err(ParseRegistrationError::IsANode(spiffe_id));
        }
        if node.trust_domain() != spiffe_id.trust_domain() {
            return Err(ParseRegistrationError::TrustDomains { node, spiffe_id });
        }
        let selectors: BTreeSet<_> = selectors.into_iter().collect();
        if selectors.is_empty() {
            return Err(ParseRegistrationError::NoSelector(id));
        }
        Ok(Self { id, node, spiffe_id, selectors, ttl_seconds: ttl.unwrap_or_default().as_secs(), configured: false })
    }

    /// Its name, unique in the CA.
    pub fn id(&self) -> &RegistrationId {
        &self.id
    }

    /// The node that may ask for it.
    pub fn node(&self) -> &SpiffeId {
        &self.node
    }

    /// The identity that the workload gets.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// How the node's agent knows the workload; all must hold.
    pub fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.selectors.iter()
    }

    /// The life of its certificates; `None` is the CA's default.
    pub fn ttl(&self) -> Option<Duration> {
        (self.ttl_seconds > 0).then(|| Duration::from_secs(self.ttl_seconds))
    }

    pub(crate) fn is_configured(&self) -> bool {
        self.configured
    }

    pub(crate) fn configured(self) -> Self {
        Self { configured: true, ..self }
    }
}

/// A registration's name: letters, digits, `.`, `-` and `_`; by convention `<namespace>.<workload>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistrationId(String);

impl RegistrationId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistrationId {
    type Err = ParseRegistrationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text) { Ok(Self(text.into())) } else { Err(ParseRegistrationError::Id(text.into())) }
    }
}

impl fmt::Display for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One thing by which an agent knows a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Selector {
    /// It calls on the socket of this name, which the agent makes for it alone.
    Socket(String),
    /// Its processes run as this user.
    Uid(u32),
    /// Its processes run in this group.
    Gid(u32),
}

impl FromStr for Selector {
    type Err = ParseRegistrationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseRegistrationError::Selector(text.into());
        let (kind, value) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "socket" if is_name(value) => Ok(Self::Socket(value.into())),
            "uid" => value.parse().map(Self::Uid).map_err(|_reason| wrong()),
            "gid" => value.parse().map(Self::Gid).map_err(|_reason| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Selector {
    type Error = ParseRegistrationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(name) => write!(f, "socket:{name}"),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Gid(gid) => write!(f, "gid:{gid}"),
        }
    }
}

/// Why something is not a registration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseRegistrationError {
    /// A name with other characters, or too long.
    #[error(
        "{0:?} is not a registration's name: 1 to 200 letters, digits, dots, hyphens and underscores, beginning with a letter or digit"
    )]
    Id(String),
    /// Not a selector.
    #[error("{0:?} is not a selector: socket:<name>, uid:<number> or gid:<number>")]
    Selector(String),
    /// No selector.
    #[error("the registration {0} has no selector, so nothing tells the workload apart")]
    NoSelector(RegistrationId),
    /// Not a SPIFFE ID.
    #[error("{text:?} is not a SPIFFE ID")]
    SpiffeId {
        /// What was given.
        text: String,
        /// What is wrong with it.
        source: ParseSpiffeIdError,
    },
    /// The node is something else.
    #[error("{0} is not the identity of a node (spiffe://<trust domain>/node/<cluster>/<node>)")]
    NotANode(SpiffeId),
    /// The workload is a node.
    #[error("{0} is the identity of a node; a registration is for workloads")]
    IsANode(SpiffeId),
    /// Of two trust domains.
    #[error("the node {node} and the workload {spiffe_id} are of different trust domains")]
    TrustDomains {
        /// The node.
        node: SpiffeId,
        /// The workload.
        spiffe_id: SpiffeId,
    },
}

fn is_name(text: &str) -> bool {
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    begins && text.len() <= 200 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_binds_a_workload_to_a_node_of_its_trust_domain() {
        let make = |node: &str, id: &str, selectors: &[&str]| {
            let selectors: Vec<_> = selectors.iter().map(|s| s.parse().unwrap()).collect();
            Registration::new("shop.web".parse().unwrap(), node.parse().unwrap(), id.parse().unwrap(), selectors, None)
        };
        let good = make("spiffe://td/node/c/n", "spiffe://td/ns/shop/sa/web", &["socket:shop.web", "uid:7"]).unwrap();
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Registration>(&text).unwrap(), good);
        let why = |node, id, selectors| make(node, id, selectors).unwrap_err().to_string();
        assert!(
            why("spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/b", &["uid:1"]).contains("not the identity of a node")
        );
        assert!(why("spiffe://td/node/c/n", "spiffe://td/node/c/m", &["uid:1"]).contains("is the identity of a node"));
        assert!(
            why("spiffe://td/node/c/n", "spiffe://other/ns/a/sa/b", &["uid:1"]).contains("different trust domains")
        );
        assert!(why("spiffe://td/node/c/n", "spiffe://td/ns/a/sa/b", &[]).contains("no selector"));
    }

    #[test]
    fn names_and_selectors_are_strict() {
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", &"a".repeat(201)] {
            assert!(bad.parse::<RegistrationId>().is_err(), "{bad:?}");
            assert!(format!("socket:{bad}").parse::<Selector>().is_err(), "{bad:?}");
        }
        for bad in ["", "uid", "uid:", "uid:-1", "uid:4294967296", "gid:x", "pid:1", "socket:../x"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
        for good in ["socket:shop.web-v1", "uid:0", "gid:1000"] {
            assert_eq!(good.parse::<Selector>().unwrap().to_string(), good);
        }
    }
}
