//! Which workloads a node may ask for.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use alcazar_identity::{ParseSelectorError, ParseSpiffeIdError, Selector, SpiffeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{text, texts};
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
    #[serde(with = "texts")]
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
    /// When its name is kept for pods, the node is not a node's identity, the two are of different trust domains, the workload's
    /// identity is a node's, the CA's own or has no path, there is no selector (a workload that nothing tells apart is nobody in
    /// particular), or there are two sockets: a caller comes by one.
    pub fn new(
        id: RegistrationId,
        node: SpiffeId,
        spiffe_id: SpiffeId,
        selectors: impl IntoIterator<Item = Selector>,
        ttl: Option<Duration>,
    ) -> Result<Self, ParseRegistrationError> {
        if id.is_of_pods() {
            return Err(ParseRegistrationError::OfPods(id));
        }
        Self::of_any(id, node, spiffe_id, selectors, ttl)
    }

    /// The registration that follows from pods, with the default life: nobody has put it in.
    pub(crate) fn of_pods(
        id: RegistrationId,
        node: SpiffeId,
        spiffe_id: SpiffeId,
        selectors: impl IntoIterator<Item = Selector>,
    ) -> Result<Self, ParseRegistrationError> {
        Self::of_any(id, node, spiffe_id, selectors, None)
    }

    fn of_any(
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
    /// How the names begin that are kept for what follows from pods: `k8s.<namespace>.<account>`.
    pub const OF_PODS: &'static str = "k8s.";

    /// The most bytes of a name.
    pub(crate) const LONGEST: usize = 200;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is kept for what follows from pods.
    pub fn is_of_pods(&self) -> bool {
        self.0.starts_with(Self::OF_PODS)
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

/// Why something is not a registration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseRegistrationError {
    /// A name with other characters, or too long.
    #[error("{0:?} is not a registration's name: 1 to {max} of a-z, 0-9, '.' and '-', beginning with a letter or digit", max = RegistrationId::LONGEST)]
    Id(String),
    /// A name that nobody can put in.
    #[error(
        "{0} cannot be put in: names that begin with {begin:?} are kept for the pods of the cluster, of which the CA knows by itself; choose another", begin = RegistrationId::OF_PODS
    )]
    OfPods(RegistrationId),
    /// Not a selector.
    #[error(transparent)]
    Selector(#[from] ParseSelectorError),
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
    begins && text.len() <= RegistrationId::LONGEST && text.bytes().all(|b| plain(b) || b".-".contains(&b))
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
        let two = &["socket:a", "socket:b"];
        assert!(why("spiffe://td/node/c/n", "spiffe://td/ns/a/sa/b", two).contains("two sockets"));
        // Whoever had the first would be the CA to every agent; the second verifies nowhere.
        let ca = "spiffe://td/ns/alcazar-system/sa/alcazar-ca";
        assert!(why("spiffe://td/node/c/n", ca, &["uid:1"]).contains("knows the CA"));
        assert!(why("spiffe://td/node/c/n", "spiffe://td", &["uid:1"]).contains("has no path"));
        let kept = Registration::new(
            "k8s.shop.web".parse().unwrap(),
            "spiffe://td/node/c/n".parse().unwrap(),
            "spiffe://td/ns/shop/sa/web".parse().unwrap(),
            ["uid:1".parse().unwrap()],
            None,
        );
        let kept = kept.unwrap_err().to_string();
        assert!(kept.contains("k8s.shop.web") && kept.contains("kept for the pods"), "{kept}");
        for neighbour in ["spiffe://td/ns/alcazar-system/sa/alcazar-control", "spiffe://td/ns/shop/sa/alcazar-ca"] {
            assert!(make("spiffe://td/node/c/n", neighbour, &["uid:1"]).is_ok(), "{neighbour}");
        }
    }

    #[test]
    fn names_are_strict() {
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", "Shop", "shop_web", &"a".repeat(201)] {
            assert!(bad.parse::<RegistrationId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_record_of_a_kind_that_is_not_known_here_is_not_read() {
        let node = "spiffe://td/node/c/n".parse().unwrap();
        let selectors = ["uid:7", "unit:web.service", "group:8"].map(|text| text.parse().unwrap());
        let web = "spiffe://td/ns/shop/sa/web".parse().unwrap();
        let registration = Registration::new("shop.web".parse().unwrap(), node, web, selectors, None).unwrap();
        let text = serde_json::to_string(&registration).unwrap();
        assert!(text.contains(r#"["uid:7","group:8","unit:web.service"]"#), "{text}");
        assert_eq!(serde_json::from_str::<Registration>(&text).unwrap(), registration);
        let error = serde_json::from_str::<Registration>(&text.replace("uid:7", "moon:7")).unwrap_err();
        assert!(error.to_string().contains(r#""moon:7" is not a selector"#), "{error}");
    }
}
