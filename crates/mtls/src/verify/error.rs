use std::fmt;
use std::time::{Duration, SystemTime};

use alcazar_identity::{
    CertificateDer, Fingerprint, ParseSvidError, Revoked, SpiffeId, TrustBundle, Validity, rfc3339,
};

use super::parts::Prints;
use super::{IssuerFault, Link, Presented, Roots, Side, TrustDomains};
use crate::Expected;

/// Why a peer is not believed.
///
/// Each names the peer as far as it can be known, the rule, and what would have been believed instead;
/// where time is the reason, the certificate's dates and our clock.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VerifyPeerError {
    /// Nothing was presented.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// More certificates than a path can have.
    #[error("{peer} presented {count} certificates, more than any path needs")]
    LongChain {
        /// Who was presented.
        peer: Box<Presented>,
        /// How many certificates came.
        count: usize,
    },
    /// The leaf breaks a rule of X509-SVID: the source says which.
    #[error("{peer} is not a workload's X509-SVID")]
    Form {
        /// Who was presented.
        peer: Box<Presented>,
        /// The rule.
        source: ParseSvidError,
    },
    /// We hold no bundle for the leaf's trust domain.
    #[error(
        "{peer} is of a trust domain that we do not trust; we trust {trusted} (federate with its trust domain to change that)"
    )]
    ForeignTrustDomain {
        /// Who was presented.
        peer: Box<Presented>,
        /// The trust domains that we hold bundles for.
        trusted: TrustDomains,
    },
    /// A certificate's time is over.
    #[error(
        "{peer}: its {link} expired at {}, {} before our clock's {}{}",
        rfc3339(validity.not_after()), gap(validity.not_after(), *now), rfc3339(*now), named(*link, certificate)
    )]
    Expired {
        /// Who was presented.
        peer: Box<Presented>,
        /// Which certificate of the path it is.
        link: Link,
        /// The certificate itself; the peer's own for [`Link::Leaf`].
        certificate: Box<Presented>,
        /// The certificate's dates.
        validity: Validity,
        /// Our clock.
        now: SystemTime,
    },
    /// A certificate's time has not come: often one of two clocks is wrong.
    #[error(
        "{peer}: its {link} is not good before {}, {} after our clock's {}; is one of the clocks wrong?{}",
        rfc3339(validity.not_before()), gap(*now, validity.not_before()), rfc3339(*now), named(*link, certificate)
    )]
    NotYetValid {
        /// Who was presented.
        peer: Box<Presented>,
        /// Which certificate of the path it is.
        link: Link,
        /// The certificate itself; the peer's own for [`Link::Leaf`].
        certificate: Box<Presented>,
        /// The certificate's dates.
        validity: Validity,
        /// Our clock.
        now: SystemTime,
    },
    /// No path leads to a root that we trust for the leaf's trust domain.
    #[error("{peer} was issued by \"{}\"{}, which leads to none of the roots that we trust for {roots}", peer.issuer(), Issuers(issuers))]
    UnknownIssuer {
        /// Who was presented.
        peer: Box<Presented>,
        /// The issuers that came with it.
        issuers: Vec<Presented>,
        /// The roots that would have been believed.
        roots: Roots,
    },
    /// A signature is not by the key of the issuer that the certificate names.
    #[error(
        "{peer} was issued by \"{}\"{}, and a signature on the way is not by the key of the issuer it names: damaged, forged, or by an older or newer root of the same name; we trust for {roots}",
        peer.issuer(), Issuers(issuers)
    )]
    Signature {
        /// Who was presented.
        peer: Box<Presented>,
        /// The issuers that came with it.
        issuers: Vec<Presented>,
        /// The roots that would have been believed.
        roots: Roots,
    },
    /// The extended key usage does not allow this side of a connection.
    #[error("{peer} may not be a TLS {side}: the extended key usage of its certificate, or of an issuer, lacks it")]
    WrongUsage {
        /// Who was presented.
        peer: Box<Presented>,
        /// The side that it took.
        side: Side,
    },
    /// An issuer on the path may not be one.
    #[error("{peer} was issued through {issuer}, {fault}")]
    Issuer {
        /// Who was presented.
        peer: Box<Presented>,
        /// The issuer.
        issuer: Box<Presented>,
        /// What is wrong with it.
        fault: IssuerFault,
    },
    /// It leads to a root, and was taken back: by its serial number, its identity or an intermediate.
    #[error("{peer} is believed no more: {revoked}")]
    Revoked {
        /// Who was presented.
        peer: Box<Presented>,
        /// The rule, the reason, and since when.
        revoked: Box<Revoked>,
    },
    /// Any other rule of X.509 paths: the source says which.
    #[error("{peer}: its chain breaks a rule of X.509")]
    Path {
        /// Who was presented.
        peer: Box<Presented>,
        /// The rule, as the path builder names it.
        source: webpki::Error,
    },
    /// The root that a token pins was not among the certificates.
    #[error(
        "{peer} did not present the pinned root, SHA-256 {pin}; it presented {}: wrong address, or the root was replaced since the token was made",
        Prints(presented)
    )]
    PinnedRootMissing {
        /// Who was presented.
        peer: Box<Presented>,
        /// The fingerprint that was looked for.
        pin: Fingerprint,
        /// The fingerprints of what came after the leaf.
        presented: Vec<Fingerprint>,
    },
    /// The certificate with the pinned fingerprint cannot be a root.
    #[error("the pinned certificate, SHA-256 {pin}, is not a CA certificate")]
    PinnedRootUnusable {
        /// The fingerprint.
        pin: Fingerprint,
    },
    /// Verified, and somebody else than was looked for (secure naming).
    #[error("the peer is {id}, and we expected {expected}")]
    Unexpected {
        /// Who it is, beyond doubt.
        id: SpiffeId,
        /// Who would have done.
        expected: Expected,
    },
}

impl VerifyPeerError {
    /// Finds the reason for a refusal in the chain of causes of a larger error, such as tonic's.
    pub fn find<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

pub(super) fn unknown_issuer(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    bundle: &TrustBundle,
) -> VerifyPeerError {
    VerifyPeerError::UnknownIssuer {
        peer: Presented::boxed(leaf),
        issuers: issuers.iter().map(Presented::read).collect(),
        roots: Roots::of(bundle),
    }
}

/// Holds one certificate's dates against our clock.
pub(super) fn check_dates(
    leaf: &CertificateDer<'_>,
    link: Link,
    der: &CertificateDer<'_>,
    validity: Validity,
    now: SystemTime,
) -> Result<(), VerifyPeerError> {
    if validity.contains(now) {
        return Ok(());
    }
    let (peer, certificate) = (Presented::boxed(leaf), Presented::boxed(der));
    match now < validity.not_before() {
        true => Err(VerifyPeerError::NotYetValid { peer, link, certificate, validity, now }),
        false => Err(VerifyPeerError::Expired { peer, link, certificate, validity, now }),
    }
}

/// The span between two moments as people say it: its two largest units.
fn gap(from: SystemTime, to: SystemTime) -> String {
    span(to.duration_since(from).unwrap_or_default())
}

fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, 0) => "less than a second".to_owned(),
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

/// Names a certificate that is not the peer's own.
fn named(link: Link, certificate: &Presented) -> String {
    match link {
        Link::Leaf => String::new(),
        Link::Intermediate | Link::Root => {
            format!(" (\"{}\", SHA-256 {})", certificate.subject(), certificate.fingerprint())
        }
    }
}

/// The issuers that came along, in a sentence.
struct Issuers<'a>(&'a [Presented]);

impl fmt::Display for Issuers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(" (whose certificate it did not present)");
        }
        for (n, issuer) in self.0.iter().enumerate() {
            f.write_str(if n == 0 { " (it presented " } else { ", " })?;
            write!(f, "\"{}\" issued by \"{}\", SHA-256 {}", issuer.subject(), issuer.issuer(), issuer.fingerprint())?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_as_people_say_it() {
        let check = |seconds, text: &str| assert_eq!(span(Duration::from_secs(seconds)), text);
        check(0, "less than a second");
        check(59, "59 s");
        check(61, "1 min 1 s");
        check(7_260, "2 h 1 min");
        check(90_000, "1 d 1 h");
    }

    #[test]
    fn errors_stay_small_enough_to_return() {
        assert!(size_of::<VerifyPeerError>() <= 128, "{}", size_of::<VerifyPeerError>());
    }
}
