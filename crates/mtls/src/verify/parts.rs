//! What an error about a peer is made of: which link, which fault, what is trusted instead.

use std::fmt;

use alcazar_identity::{Fingerprint, TrustBundle, TrustDomain};

use super::Side;

/// Which certificate of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The peer's own.
    Leaf,
    /// One between the peer's own and the root.
    Intermediate,
    /// The root.
    Root,
}

/// Why an issuer may not have issued a leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssuerFault {
    /// It cannot be read by the rules.
    #[error("whose extensions or dates cannot be read")]
    Unreadable,
    /// It lacks `keyCertSign`.
    #[error("whose key usage lacks keyCertSign, so it may not issue certificates")]
    NoKeyCertSign,
    /// Its URI SAN is not in the leaf's trust domain.
    #[error("which is not a CA of the trust domain {0}")]
    OtherTrustDomain(TrustDomain),
}

/// The trust domains that somebody trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomains(Vec<TrustDomain>);

impl TrustDomains {
    /// The trust domains, by name.
    pub fn iter(&self) -> impl Iterator<Item = &TrustDomain> {
        self.0.iter()
    }
}

impl FromIterator<TrustDomain> for TrustDomains {
    fn from_iter<I: IntoIterator<Item = TrustDomain>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

/// The roots that somebody trusts for one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    trust_domain: TrustDomain,
    fingerprints: Vec<Fingerprint>,
}

impl Roots {
    /// The trust domain that they vouch for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(super) fn of(bundle: &TrustBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().clone(),
            fingerprints: bundle.roots().map(|root| Fingerprint::of(root)).collect(),
        }
    }

    /// Their SHA-256 fingerprints.
    pub fn fingerprints(&self) -> &[Fingerprint] {
        &self.fingerprints
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaf => "certificate",
            Self::Intermediate => "intermediate",
            Self::Root => "root",
        })
    }
}

impl fmt::Display for TrustDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("none"),
            names => f.write_str(&names.iter().map(TrustDomain::as_str).collect::<Vec<_>>().join(", ")),
        }
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SHA-256 {})", self.trust_domain, Prints(&self.fingerprints))
    }
}

/// Fingerprints in a row.
pub(super) struct Prints<'a>(pub(super) &'a [Fingerprint]);

impl fmt::Display for Prints<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no issuer at all");
        }
        self.0.iter().enumerate().try_for_each(|(n, print)| write!(f, "{}{print}", if n == 0 { "" } else { ", " }))
    }
}
