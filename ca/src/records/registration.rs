//! Which workloads a node may ask for.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use alcazar_identity::{ParseSpiffeIdError, SpiffeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::text;
use crate::profile::{DnsName, ParseDnsNameError};

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
    #[serde(default)]
    profile: Option<String>,
    #[serde(default)]
    dns_names: BTreeSet<DnsName>,
    /// Whether the CA's configuration file made it; then it goes when it goes from there.
    #[serde(default)]
    configured: bool,
}

impl Registration {
    /// A registration.
    ///
    /// # Errors
    /// When the node is not a node's identity, the two are of different trust domains, the workload's identity
    /// is a node's, the CA's own or has no path, there is no selector (a workload that nothing tells apart is nobody in
    /// particular), or there are two sockets: a caller comes by one.
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
        if spiffe_id.path().is_empty() {
            return Err(ParseRegistrationError::NoPath(spiffe_id));
        }
        if crate::serving::is_the_cas(&spiffe_id) {
            return Err(ParseRegistrationError::Reserved(spiffe_id));
        }
        if node.trust_domain() != spiffe_id.trust_domain() {
            return Err(ParseRegistrationError::TrustDomains { node, spiffe_id });
        }
        let selectors: BTreeSet<_> = selectors.into_iter().collect();
        if selectors.is_empty() {
            return Err(ParseRegistrationError::NoSelector(id));
        }
        if selectors.iter().filter(|selector| matches!(selector, Selector::Socket(_))).count() > 1 {
            return Err(ParseRegistrationError::TwoSockets(id));
        }
        let ttl_seconds = ttl.unwrap_or_default().as_secs();
        let (profile, dns_names) = (None, BTreeSet::new());
        Ok(Self { id, node, spiffe_id, selectors, ttl_seconds, profile, dns_names, configured: false })
    }

    /// The same, with certificates of this profile; `None` or an empty name is the default one.
    ///
    /// # Errors
    /// When it cannot be the name of a profile.
    pub fn with_profile(self, profile: Option<String>) -> Result<Self, ParseRegistrationError> {
        let profile = profile.filter(|name| !name.is_empty());
        match profile {
            Some(name) if name.len() > MOST_OF_A_NAME => Err(ParseRegistrationError::Profile),
            profile => Ok(Self { profile, ..self }),
        }
    }

    /// The same, with these DNS names in its certificates, if its profile allows them.
    ///
    /// # Errors
    /// When there are more than a certificate can be expected to hold.
    pub fn with_dns_names(self, names: impl IntoIterator<Item = DnsName>) -> Result<Self, ParseRegistrationError> {
        let dns_names: BTreeSet<_> = names.into_iter().collect();
        if dns_names.len() > MOST_NAMES {
            return Err(ParseRegistrationError::Names(dns_names.len()));
        }
        Ok(Self { dns_names, ..self })
    }

    /// The profile of its certificates; `None` is the default one.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// DNS names of its certificates.
    pub fn dns_names(&self) -> impl Iterator<Item = &DnsName> {
        self.dns_names.iter()
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

/// A registration's name: `a-z`, `0-9`, `.` and `-`, as agents take it; by convention `<namespace>.<workload>`.
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

/// One thing by which an agent knows a workload. The grammar is the agent's: what it would refuse is refused here, where the
/// operator hears of it.
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
            "socket" if is_name(value) && value != SHARED_SOCKET => Ok(Self::Socket(value.into())),
            "socket" => Err(ParseRegistrationError::Socket(text.into())),
            "uid" => number(value).map(Self::Uid).ok_or_else(wrong),
            "gid" => number(value).map(Self::Gid).ok_or_else(wrong),
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
    #[error("{0:?} is not a registration's name: 1 to 200 of a-z, 0-9, '.' and '-', beginning with a letter or digit")]
    Id(String),
    /// Not a selector.
    #[error("{0:?} is not a selector: socket:<name>, uid:<number> or gid:<number>")]
    Selector(String),
    /// Not the name of a socket.
    #[error(
        "{0:?} cannot be a socket's selector: the name is 1 to 200 of a-z, 0-9, '.' and '-', beginning with a letter or digit, and not {SHARED_SOCKET:?}, the agent's own"
    )]
    Socket(String),
    /// Two sockets.
    #[error("the registration {0} names two sockets, and a caller comes by one")]
    TwoSockets(RegistrationId),
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
    /// Too long a name of a profile.
    #[error("the name of the profile is longer than {MOST_OF_A_NAME}")]
    Profile,
    /// Not a DNS name.
    #[error(transparent)]
    Dns(#[from] ParseDnsNameError),
    /// Too many DNS names.
    #[error("{0} DNS names are more than {MOST_NAMES}")]
    Names(usize),
    /// The workload is the CA.
    #[error("{0} is the identity by which everybody knows the CA, and nobody else can have it")]
    Reserved(SpiffeId),
    /// An identity of the trust domain itself.
    #[error("{0} has no path: it names the trust domain and no workload in it")]
    NoPath(SpiffeId),
    /// Of two trust domains.
    #[error("the node {node} and the workload {spiffe_id} are of different trust domains")]
    TrustDomains {
        /// The node.
        node: SpiffeId,
        /// The workload.
        spiffe_id: SpiffeId,
    },
}

const MOST_OF_A_NAME: usize = 200;
const MOST_NAMES: usize = 100;

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let begins = text.bytes().next().is_some_and(plain);
    begins && text.len() <= 200 && text.bytes().all(|b| plain(b) || b".-".contains(&b))
}

/// A number as numbers are written.
fn number(digits: &str) -> Option<u32> {
    digits.parse::<u32>().ok().filter(|number| number.to_string() == digits)
}

/// The name of the socket that all callers of an agent share.
const SHARED_SOCKET: &str = "agent";

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
        let two = &["socket:a", "socket:b"];
        assert!(why("spiffe://td/node/c/n", "spiffe://td/ns/a/sa/b", two).contains("two sockets"));
        // Whoever had the first would be the CA to every agent; the second verifies nowhere.
        let ca = "spiffe://td/ns/alcazar-system/sa/alcazar-ca";
        assert!(why("spiffe://td/node/c/n", ca, &["uid:1"]).contains("knows the CA"));
        assert!(why("spiffe://td/node/c/n", "spiffe://td", &["uid:1"]).contains("has no path"));
        for neighbour in ["spiffe://td/ns/alcazar-system/sa/alcazar-control", "spiffe://td/ns/shop/sa/alcazar-ca"] {
            assert!(make("spiffe://td/node/c/n", neighbour, &["uid:1"]).is_ok(), "{neighbour}");
        }
    }

    #[test]
    fn names_and_selectors_are_strict() {
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", "Shop", "shop_web", &"a".repeat(201)] {
            assert!(bad.parse::<RegistrationId>().is_err(), "{bad:?}");
            assert!(format!("socket:{bad}").parse::<Selector>().is_err(), "{bad:?}");
        }
        for bad in ["", "uid", "uid:", "uid:-1", "uid:+1", "uid:01", "uid:4294967296", "gid:x", "pid:1", "socket:../x"]
        {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
        // It would be mistaken for the socket that all share.
        assert!("socket:agent".parse::<Selector>().is_err());
        for good in ["socket:shop.web-v1", "uid:0", "gid:1000"] {
            assert_eq!(good.parse::<Selector>().unwrap().to_string(), good);
        }
    }
}
