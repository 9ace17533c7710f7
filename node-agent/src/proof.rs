//! By what the node proves who it is: the ways in their order, and when the next one is tried.

use std::fmt;
use std::time::SystemTime;

use alcazar_identity::rfc3339;

use crate::schedule::Life;

/// A way in which the node can prove who it is. They are tried in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By the certificate it has, over mutual TLS.
    Svid,
    /// By the key of the certificate it has, although that has ended or is not taken.
    Lineage,
    /// By the token of a service account, or of an OIDC issuer.
    BearerToken,
    /// By the certificate that the enterprise gave to the machine.
    Machine,
    /// By its join token, which is good once.
    JoinToken,
}

/// The ways to try, in this order, and why the certificate is none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// At least one, or nothing proves this node.
    pub ways: Vec<Way>,
    /// Why not by the certificate.
    pub not_by_svid: Option<NotBySvid>,
}

/// Why the certificate does not renew itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBySvid {
    /// There is none: the node is new, or what was saved is lost.
    None,
    /// It has expired.
    Expired {
        /// When.
        expired: SystemTime,
        /// By our clock.
        now: SystemTime,
    },
}

/// How a way came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// The CA does not take it, or what it needs is not there.
    Refused,
    /// No answer, or none that can be used. The CA may be down, or may refuse us in a way that cannot be told from that.
    Unanswered,
    /// The CA wants to be asked later.
    Later,
    /// The node itself cannot ask: no key, no disk.
    Ours,
}

/// The ways to try of a node whose certificate has this life, where these others are configured.
pub fn plan(life: Option<&Life>, configured: &[Way], now: SystemTime) -> Plan {
    let (held, not_by_svid) = match life {
        None => (&[][..], Some(NotBySvid::None)),
        Some(life) if life.is_over(now) => {
            (&[Way::Lineage][..], Some(NotBySvid::Expired { expired: life.expires(), now }))
        }
        Some(_) => (&[Way::Svid, Way::Lineage][..], None),
    };
    let mut ways: Vec<_> = held.iter().chain(configured).copied().collect();
    ways.sort();
    ways.dedup();
    Plan { ways, not_by_svid }
}

/// Whether the next way is tried after one that failed so. `unanswered` counts the attempts in a row before this one that
/// came to nothing: a CA that is away is away for every way, until that looks like a refusal.
pub fn goes_on(failed: Failed, unanswered: u32) -> bool {
    match failed {
        Failed::Refused => true,
        Failed::Unanswered => unanswered >= PATIENCE,
        Failed::Later | Failed::Ours => false,
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Svid => "its certificate",
            Self::Lineage => "the key of its last certificate",
            Self::BearerToken => "its bearer token",
            Self::Machine => "its machine certificate",
            Self::JoinToken => "its join token",
        })
    }
}

impl fmt::Display for NotBySvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no certificate of this node is saved"),
            Self::Expired { expired, now } => {
                let (expired, now) = (rfc3339(*expired), rfc3339(*now));
                write!(f, "the saved certificate expired at {expired}; this machine's clock says {now}")
            }
        }
    }
}

/// How many unanswered attempts are an outage that may be a refusal.
const PATIENCE: u32 = 3;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_certificate_proves_the_node_while_it_is_good_and_its_key_afterwards() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let life = Life::new(at(100), at(200), at(100)).unwrap();
        let check = |life: Option<&Life>, configured: &[Way], now, ways: &[Way], not_by_svid| {
            assert_eq!(plan(life, configured, at(now)), Plan { ways: ways.to_vec(), not_by_svid });
        };
        let all = [Way::JoinToken, Way::Machine, Way::BearerToken];
        check(None, &[], 150, &[], Some(NotBySvid::None));
        check(None, &all, 150, &[Way::BearerToken, Way::Machine, Way::JoinToken], Some(NotBySvid::None));
        check(Some(&life), &[], 150, &[Way::Svid, Way::Lineage], None);
        let expired = NotBySvid::Expired { expired: at(200), now: at(200) };
        check(Some(&life), &[Way::JoinToken], 200, &[Way::Lineage, Way::JoinToken], Some(expired));
        assert_eq!(
            expired.to_string(),
            "the saved certificate expired at 1970-01-01T00:03:20Z; this machine's clock says 1970-01-01T00:03:20Z"
        );
    }

    #[test]
    fn a_refusal_is_followed_by_the_next_way_and_an_outage_by_patience() {
        let check = |failed, expected: [bool; 3]| {
            assert_eq!([0, PATIENCE - 1, PATIENCE].map(|before| goes_on(failed, before)), expected, "{failed:?}");
        };
        check(Failed::Refused, [true; 3]);
        check(Failed::Unanswered, [false, false, true]);
        check(Failed::Later, [false; 3]);
        check(Failed::Ours, [false; 3]);
    }
}
