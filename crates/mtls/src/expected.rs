use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use alcazar_identity::{SpiffeId, TrustDomain};

/// Whom a client is willing to find at the other end (secure naming).
///
/// Checked inside the handshake: a server that is somebody else never gets a byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Anybody whom our bundles vouch for.
    Any,
    /// One of these; none of them means that nobody will do.
    Ids(Arc<BTreeSet<SpiffeId>>),
    /// Anybody of this trust domain.
    TrustDomain(TrustDomain),
}

impl Expected {
    /// Exactly this identity.
    pub fn id(id: SpiffeId) -> Self {
        Self::Ids(Arc::new(BTreeSet::from([id])))
    }

    /// Whether this identity will do.
    pub fn allows(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Any => true,
            Self::Ids(ids) => ids.contains(id),
            Self::TrustDomain(trust_domain) => id.trust_domain() == trust_domain,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anybody"),
            Self::TrustDomain(trust_domain) => write!(f, "anybody of the trust domain {trust_domain}"),
            Self::Ids(ids) if ids.is_empty() => f.write_str("nobody (the list of expected identities is empty)"),
            Self::Ids(ids) => {
                for (n, id) in ids.iter().take(SHOWN).enumerate() {
                    write!(f, "{}{id}", if n == 0 { "" } else { " or " })?;
                }
                match ids.len().saturating_sub(SHOWN) {
                    0 => Ok(()),
                    more => write!(f, " or {more} more"),
                }
            }
        }
    }
}

/// As many identities as a person reads in one message.
const SHOWN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_is_nobody_and_not_anybody() {
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let other: SpiffeId = "spiffe://other/ns/a/sa/b".parse().unwrap();
        let check = |expected: Expected, allowed: [bool; 2], text: &str| {
            assert_eq!([expected.allows(&id), expected.allows(&other)], allowed, "{expected}");
            assert_eq!(expected.to_string(), text);
        };
        check(Expected::Any, [true, true], "anybody");
        check(Expected::id(id.clone()), [true, false], "spiffe://td/ns/a/sa/b");
        check(Expected::TrustDomain("td".parse().unwrap()), [true, false], "anybody of the trust domain td");
        check(Expected::Ids(Arc::default()), [false, false], "nobody (the list of expected identities is empty)");
        let many = (0..6).map(|n| format!("spiffe://td/{n}").parse().unwrap()).collect();
        let text = "spiffe://td/0 or spiffe://td/1 or spiffe://td/2 or spiffe://td/3 or 2 more";
        check(Expected::Ids(Arc::new(many)), [false, false], text);
    }
}
