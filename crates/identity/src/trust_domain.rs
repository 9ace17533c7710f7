use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a trust domain: what stands between `spiffe://` and the path.
///
/// **Shape**: 1 to 255 bytes of `a-z`, `0-9`, `.`, `-`, `_`.
///
/// **Source**: SPIFFE-ID §2.1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// `cluster.local`, which is Istio's where nobody named one.
    pub fn cluster_local() -> Self {
        Self("cluster.local".into())
    }

    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain as a URI, `spiffe://<name>`: the URI SAN of a CA certificate.
    pub fn to_uri(&self) -> String {
        format!("spiffe://{}", self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = ParseTrustDomainError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() {
            return Err(ParseTrustDomainError::Empty);
        }
        if name.len() > MAX_LENGTH {
            return Err(ParseTrustDomainError::TooLong(name.len()));
        }
        match name.chars().find(|&c| !is_allowed(c)) {
            Some(character) => Err(ParseTrustDomainError::Character { name: name.to_owned(), character }),
            None => Ok(Self(name.into())),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

/// Why a text is not the name of a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTrustDomainError {
    /// Nothing at all.
    #[error("a trust domain name cannot be empty")]
    Empty,
    /// Longer than the standard allows.
    #[error("a trust domain name has at most {MAX_LENGTH} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that the standard does not allow; upper case is the usual one.
    #[error("{character:?} cannot stand in the trust domain name {name:?}: only a-z, 0-9, '.', '-' and '_' can")]
    Character {
        /// The text as it was given.
        name: String,
        /// The first character that is wrong.
        character: char,
    },
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_')
}

const MAX_LENGTH: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_standard_parse() {
        for good in ["cluster.local", "a", "x_y-z.0", &"a".repeat(255)] {
            assert_eq!(good.parse::<TrustDomain>().map(|t| t.to_string()), Ok(good.to_owned()));
        }
        assert_eq!("cluster.local".parse(), Ok(TrustDomain::cluster_local()));
        for bad in ["", "Cluster.local", "a/b", "a:80", "spiffe://a", "ä", "a b", &"a".repeat(256)] {
            assert!(bad.parse::<TrustDomain>().is_err(), "{bad:?}");
        }
    }
}
