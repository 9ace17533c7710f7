use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{ParseTrustDomainError, TrustDomain};

/// The name of a workload, a node or a trust domain: `spiffe://<trust domain>[/<path>]`.
///
/// Cheap to clone. Equality is equality of the text: the standard leaves nothing to normalise.
///
/// **Source**: SPIFFE-ID §2.
#[derive(Clone)]
pub struct SpiffeId {
    /// The whole text, `spiffe://` included.
    text: Arc<str>,
    trust_domain: TrustDomain,
}

/// What a path says by Alcazar's (and Istio's) conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpiffeIdKind<'a> {
    /// `/ns/<namespace>/sa/<service account>`.
    Workload {
        /// The Kubernetes namespace, or what plays its part elsewhere.
        namespace: &'a str,
        /// The service account.
        service_account: &'a str,
    },
    /// `/node/<cluster>/<node>`.
    Node {
        /// The cluster that the node is bound to.
        cluster: &'a str,
        /// The node's name within the cluster.
        node: &'a str,
    },
    /// Any other path, or none.
    Other,
}

impl SpiffeId {
    /// The identity of the workloads that run as one service account.
    ///
    /// # Errors
    /// When a part cannot be a path segment.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseSpiffeIdError> {
        Self::from_segments(trust_domain, ["ns", namespace, "sa", service_account])
    }

    /// The identity of a node of one cluster.
    ///
    /// # Errors
    /// When a part cannot be a path segment.
    pub fn node(trust_domain: &TrustDomain, cluster: &str, node: &str) -> Result<Self, ParseSpiffeIdError> {
        Self::from_segments(trust_domain, ["node", cluster, node])
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain that vouches for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading `/`, or the empty string for a trust domain itself.
    pub fn path(&self) -> &str {
        let start = SCHEME.len() + self.trust_domain.as_str().len();
        self.text.get(start..).unwrap_or_default()
    }

    /// The identity as RBAC YAML writes it: without `spiffe://`.
    pub fn principal(&self) -> &str {
        self.text.get(SCHEME.len()..).unwrap_or_default()
    }

    /// What the path says.
    pub fn kind(&self) -> SpiffeIdKind<'_> {
        let mut segments = self.path().split('/').skip(1);
        let parts = (segments.next(), segments.next(), segments.next(), segments.next(), segments.next());
        match parts {
            (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) => {
                SpiffeIdKind::Workload { namespace, service_account }
            }
            (Some("node"), Some(cluster), Some(node), None, None) => SpiffeIdKind::Node { cluster, node },
            _ => SpiffeIdKind::Other,
        }
    }

    /// The namespace, for a workload.
    pub fn namespace(&self) -> Option<&str> {
        match self.kind() {
            SpiffeIdKind::Workload { namespace, .. } => Some(namespace),
            _ => None,
        }
    }

    /// The service account, for a workload.
    pub fn service_account(&self) -> Option<&str> {
        match self.kind() {
            SpiffeIdKind::Workload { service_account, .. } => Some(service_account),
            _ => None,
        }
    }

    fn from_segments<const N: usize>(
        trust_domain: &TrustDomain,
        segments: [&str; N],
    ) -> Result<Self, ParseSpiffeIdError> {
        // A segment with a slash in it would make a different path of the same text.
        if let Some(segment) = segments.iter().find(|s| s.contains('/')) {
            return Err(ParseSpiffeIdError::Character { segment: (*segment).to_owned(), character: '/' });
        }
        format!("{SCHEME}{trust_domain}/{}", segments.join("/")).parse()
    }
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LENGTH {
            return Err(ParseSpiffeIdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| ParseSpiffeIdError::Scheme(text.to_owned()))?;
        let (name, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let trust_domain = name.parse()?;
        for segment in path.split('/').skip(1) {
            check_segment(segment)?;
        }
        Ok(Self { text: text.into(), trust_domain })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSpiffeIdError {
    /// Longer than implementations must support, so that others may refuse it.
    #[error("a SPIFFE ID has at most {MAX_LENGTH} bytes, this one has {0}")]
    TooLong(usize),
    /// It does not start with `spiffe://`, in lower case.
    #[error("{0:?} does not start with \"spiffe://\"")]
    Scheme(String),
    /// The part before the path is not a trust domain.
    #[error(transparent)]
    TrustDomain(#[from] ParseTrustDomainError),
    /// `//`, or a slash at the end.
    #[error("the path has an empty segment: no \"//\" and no slash at the end")]
    EmptySegment,
    /// `.` or `..`, which would make the path mean another.
    #[error("the path has the relative segment {0:?}")]
    RelativeSegment(String),
    /// A character outside the standard's set; percent-encoding is not allowed either.
    #[error("{character:?} cannot stand in the path segment {segment:?}: only letters, digits, '.', '-' and '_' can")]
    Character {
        /// The segment as it was given.
        segment: String,
        /// The first character that is wrong.
        character: char,
    },
}

fn check_segment(segment: &str) -> Result<(), ParseSpiffeIdError> {
    if segment.is_empty() {
        return Err(ParseSpiffeIdError::EmptySegment);
    }
    if matches!(segment, "." | "..") {
        return Err(ParseSpiffeIdError::RelativeSegment(segment.to_owned()));
    }
    let wrong = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    match segment.chars().find(wrong) {
        Some(character) => Err(ParseSpiffeIdError::Character { segment: segment.to_owned(), character }),
        None => Ok(()),
    }
}

const SCHEME: &str = "spiffe://";
const MAX_LENGTH: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_ids_of_the_standard_parse() {
        for good in ["spiffe://td", "spiffe://td/a", "spiffe://td.x/ns/a/sa/B_c-9.d", "spiffe://td/.../a"] {
            assert_eq!(good.parse::<SpiffeId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        let long = format!("spiffe://td/{}", "a".repeat(2048));
        for bad in [
            "",
            "td/a",
            "SPIFFE://td/a",
            "spiffe:/td",
            "spiffe://",
            "spiffe:///a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/a/",
            "spiffe://td/./a",
            "spiffe://td/../a",
            "spiffe://td/%41",
            "spiffe://td:80/a",
            "spiffe://u@td/a",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://TD/a",
            "spiffe://td/ä",
            "spiffe://td/a b",
            "https://td/a",
            long.as_str(),
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_says_what_it_names() {
        let kind = |path: &str| {
            let id: SpiffeId = format!("spiffe://td{path}").parse().unwrap();
            format!("{:?}", id.kind())
        };
        assert_eq!(kind("/ns/shop/sa/reviews"), r#"Workload { namespace: "shop", service_account: "reviews" }"#);
        assert_eq!(kind("/node/east/vm-1"), r#"Node { cluster: "east", node: "vm-1" }"#);
        for other in ["", "/ns/shop", "/ns/shop/sa/reviews/x", "/sa/x/ns/y", "/node/east/vm-1/x"] {
            assert_eq!(kind(other), "Other");
        }
    }

    #[test]
    fn a_part_cannot_smuggle_a_segment() {
        let td: TrustDomain = "td".parse().unwrap();
        assert!(SpiffeId::workload(&td, "shop/sa/admin", "x").is_err());
        assert!(SpiffeId::node(&td, "..", "x").is_err());
        assert!(SpiffeId::workload(&td, "", "x").is_err());
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_it_was(text in "spiffe://[a-z.]{1,8}(/[a-zA-Z0-9._-]{1,5}){0,4}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            }
        }
    }
}
