//! What is pushed: encoded once, known by a version that is a hash of the bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use alcazar_api::mesh::{POLICY_URL, SERVICE_URL, WORKLOAD_URL};
use alcazar_identity::SpiffeId;
use ring::digest::{SHA256, digest};

/// The name of a resource: `<namespace>/<name>`.
pub(crate) type Name = Arc<str>;

/// The kinds of resource, in the order in which a change is pushed: a proxy that gets a new port has its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who may call a workload; for its own proxy.
    Policy,
    /// A workload; for its own proxy.
    Workload,
    /// A service; for everybody.
    Service,
}

impl Kind {
    /// All of them, in the order of pushing.
    pub const ALL: [Self; 3] = [Self::Policy, Self::Workload, Self::Service];

    /// The type URL.
    pub fn url(self) -> &'static str {
        match self {
            Self::Policy => POLICY_URL,
            Self::Workload => WORKLOAD_URL,
            Self::Service => SERVICE_URL,
        }
    }

    /// The kind of a type URL.
    pub(crate) fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy",
            Self::Workload => "workload",
            Self::Service => "service",
        })
    }
}

/// What tells one content from another: the first half of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u128);

impl Version {
    pub(crate) fn of(content: &[u8]) -> Self {
        let half = digest(&SHA256, content).as_ref().first_chunk::<16>().copied();
        Self(u128::from_be_bytes(half.unwrap_or_default()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

impl FromStr for Version {
    type Err = NotOurVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_ours = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_ours {
            return Err(NotOurVersion);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NotOurVersion)
    }
}

/// A version that we did not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version of ours")]
pub struct NotOurVersion;

/// One encoded resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) version: Version,
    pub(crate) body: Vec<u8>,
    /// Who alone may have it; everybody where there is none.
    pub(crate) owner: Option<SpiffeId>,
}

impl Resource {
    pub(crate) fn new(message: &impl prost::Message, owner: Option<SpiffeId>) -> Self {
        let body = message.encode_to_vec();
        Self { version: Version::of(&body), body, owner }
    }
}

/// All resources of one kind.
pub(crate) type Set = BTreeMap<Name, Arc<Resource>>;

/// The resources of one kind that one peer may see.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    set: &'a Set,
    peer: &'a SpiffeId,
}

impl<'a> View<'a> {
    pub(crate) fn new(set: &'a Set, peer: &'a SpiffeId) -> Self {
        Self { set, peer }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Arc<Resource>> {
        self.set.get(name).filter(|resource| self.allows(resource))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a Name, &'a Arc<Resource>)> + use<'a> {
        let view = *self;
        self.set.iter().filter(move |(_, resource)| view.allows(resource))
    }

    /// Whether a resource of that name is there for somebody else.
    pub(crate) fn is_another_s(&self, name: &str) -> bool {
        self.set.get(name).is_some_and(|resource| !self.allows(resource))
    }

    fn allows(&self, resource: &Resource) -> bool {
        resource.owner.as_ref().is_none_or(|owner| owner == self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_goes_out_and_comes_back() {
        let version = Version::of(b"content");
        assert_eq!(version.to_string().parse(), Ok(version));
        assert_ne!(version, Version::of(b"other"));
        for foreign in ["", "1", "+0000000000000000000000000000000", &"g".repeat(32), &"A".repeat(32)] {
            assert_eq!(foreign.parse::<Version>(), Err(NotOurVersion), "{foreign:?}");
        }
    }

    #[test]
    fn a_kind_goes_by_its_url() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_url(kind.url()), Some(kind));
        }
        assert_eq!(Kind::of_url("type.googleapis.com/envoy.config.cluster.v3.Cluster"), None);
    }
}
