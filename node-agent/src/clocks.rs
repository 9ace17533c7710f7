//! This machine's clock and the CA's, where they are not one: what both say, for whoever has to set one of them.

use std::fmt;
use std::time::{Duration, SystemTime};

use alcazar_identity::{Validity, rfc3339};
use alcazar_mtls::{Link, VerifyPeerError};

/// Two clocks that differ by more than a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Skew {
    ca: SystemTime,
    own: SystemTime,
}

impl Skew {
    /// From the moment at which the CA says that it answered, and the one at which the answer came.
    pub(crate) fn between(ca: SystemTime, own: SystemTime) -> Option<Self> {
        let skew = Self { ca, own };
        (skew.apart() > TOLERATED).then_some(skew)
    }

    fn apart(&self) -> Duration {
        self.own.duration_since(self.ca).unwrap_or_else(|behind| behind.duration())
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.own < self.ca { "behind" } else { "ahead of" };
        write!(
            f,
            "this machine's clock says {}, {} s {direction} the CA's, which says {}: set the one that is wrong; certificates of either may look expired, or not yet good, to the other",
            rfc3339(self.own),
            self.apart().as_secs(),
            rfc3339(self.ca)
        )
    }
}

/// What the dates of the certificate that the CA serves with tell of its clock, where nothing but they refuses it: it has said
/// nothing yet, but it holds that certificate for good now.
pub(crate) struct Dates {
    validity: Validity,
    own: SystemTime,
}

impl Dates {
    pub(crate) fn of(refused: &VerifyPeerError) -> Option<Self> {
        match refused {
            VerifyPeerError::Expired { link: Link::Leaf, validity, now, .. }
            | VerifyPeerError::NotYetValid { link: Link::Leaf, validity, now, .. } => {
                Some(Self { validity: *validity, own: *now })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Dates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this machine's clock says {}; if that is the CA, its clock is between {} and {}, or else it could not serve with this certificate: set the clock that is wrong",
            rfc3339(self.own),
            rfc3339(self.validity.not_before()),
            rfc3339(self.validity.not_after())
        )
    }
}

/// A request and its answer take less; and certificates start two minutes in the past.
const TOLERATED: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn both_clocks_are_said_where_they_differ() {
        let said = |ca: u64, own: u64| {
            let at = |seconds| noon() + Duration::from_secs(seconds);
            Skew::between(at(ca), at(own)).map(|skew| skew.to_string())
        };
        assert_eq!((said(0, 0), said(0, 60), said(60, 0)), (None, None, None));
        let (ahead, behind) = (said(0, 3600).unwrap(), said(61, 0).unwrap());
        assert!(
            ahead.starts_with(
                "this machine's clock says 2027-01-15T09:00:00Z, 3600 s ahead of the CA's, which says 2027-01-15T08:00:00Z:"
            ),
            "{ahead}"
        );
        assert!(behind.contains("08:00:00Z, 61 s behind the CA's, which says 2027-01-15T08:01:01Z"), "{behind}");
    }
}
