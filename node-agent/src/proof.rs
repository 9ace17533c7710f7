use std::fmt;
use std::time::SystemTime;

use alcazar_identity::rfc3339;

use crate::schedule::Life;

/// A way in which the node can prove who it is, and why that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By the certificate it has.
    Svid,
    /// By its join token.
    Token(WhyToken),
}

/// Why the join token is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyToken {
    /// There is no certificate: the node is new, or what was saved is lost.
    NoCertificate,
    /// The certificate has expired.
    Expired {
        /// When.
        expired: SystemTime,
        /// By our clock.
        now: SystemTime,
    },
    /// The CA does not take the certificate any more.
    Refused,
    /// The CA has not answered the certificate several times in a row. It may be down, or may refuse us in a way that
    /// cannot be told from that.
    Unanswered {
        /// How many times.
        attempts: u32,
    },
}

/// The ways to try, in this order; the second only when the first is refused, or as [`WhyToken::Unanswered`] says.
///
/// `life` is that of the certificate held, `attempts` counts those in a row that were not answered.
pub fn ways(life: Option<&Life>, attempts: u32, now: SystemTime) -> (Way, Option<WhyToken>) {
    match life {
        None => (Way::Token(WhyToken::NoCertificate), None),
        Some(life) if life.is_over(now) => (Way::Token(WhyToken::Expired { expired: life.expires(), now }), None),
        Some(_) if attempts >= PATIENCE => (Way::Svid, Some(WhyToken::Unanswered { attempts })),
        Some(_) => (Way::Svid, None),
    }
}

impl fmt::Display for WhyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("no certificate of this node is saved"),
            Self::Expired { expired, now } => {
                write!(
                    f,
                    "the saved certificate expired at {}; this machine's clock says {}",
                    rfc3339(*expired),
                    rfc3339(*now)
                )
            }
            Self::Refused => f.write_str("the CA does not take the saved certificate"),
            Self::Unanswered { attempts } => {
                write!(f, "the CA has not answered the saved certificate {attempts} times in a row")
            }
        }
    }
}

/// How many unanswered attempts by certificate are an outage that may be a refusal.
const PATIENCE: u32 = 3;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_certificate_proves_the_node_while_it_is_good() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let life = Life::new(at(100), at(200), at(100)).unwrap();
        let check = |life: Option<&Life>, attempts, now, expected: (Way, Option<WhyToken>)| {
            assert_eq!(ways(life, attempts, at(now)), expected);
        };
        check(None, 0, 150, (Way::Token(WhyToken::NoCertificate), None));
        check(Some(&life), 0, 150, (Way::Svid, None));
        check(Some(&life), 2, 150, (Way::Svid, None));
        check(Some(&life), 3, 150, (Way::Svid, Some(WhyToken::Unanswered { attempts: 3 })));
        let expired = WhyToken::Expired { expired: at(200), now: at(200) };
        check(Some(&life), 9, 200, (Way::Token(expired), None));
        assert_eq!(
            expired.to_string(),
            "the saved certificate expired at 1970-01-01T00:03:20Z; this machine's clock says 1970-01-01T00:03:20Z"
        );
    }
}
