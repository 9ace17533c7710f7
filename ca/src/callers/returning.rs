//! A node that was away until its certificate ended: it comes back by that certificate's key.

use std::time::{Duration, SystemTime};

use alcazar_api::attestation::lineage_proof;
use alcazar_identity::{CertificateDer, SvidLeaf, TrustBundles, rfc3339};
use alcazar_mtls::{PeerIdentity, Side, has_signed, verify_peer};
use thiserror::Error;

use super::{CallerError, Callers};

/// What such a node shows: its certificate, and a signature over a nonce and the request.
pub(crate) struct LineageEvidence<'a> {
    pub(crate) chain: Vec<CertificateDer<'a>>,
    pub(crate) nonce: &'a [u8],
    pub(crate) signature: &'a [u8],
    pub(crate) csr: &'a [u8],
}

impl Callers {
    /// Who the node was while its certificate was good: by the roots that are believed now, as of its last second; and that
    /// whoever shows it holds its key, and asks here and now for this request. Of what came after, the lineage knows.
    pub(crate) fn returning(
        &self,
        evidence: &LineageEvidence<'_>,
        bundles: &TrustBundles,
        within: Duration,
        now: SystemTime,
    ) -> Result<PeerIdentity, CallerError> {
        self.challenges.check(evidence.nonce, now).map_err(CallerError::Challenge)?;
        let leaf = evidence.chain.first().ok_or(CallerError::Returning(ReturnRefusal::NoCertificate))?;
        let validity = SvidLeaf::parse(leaf).map_err(|_reason| ReturnRefusal::Unreadable)?.validity();
        may_return(validity.not_after(), within, now)?;
        let last = validity.not_after().checked_sub(Duration::from_secs(1)).unwrap_or(validity.not_before());
        let peer = verify_peer(&evidence.chain, bundles, Side::Client, now.min(last));
        let peer = peer.map_err(|error| ReturnRefusal::Unverified(Box::new(error)))?;
        let signed = lineage_proof(self.trust_domain.as_str(), &self.cluster, evidence.nonce, evidence.csr);
        if !has_signed(leaf, &signed, evidence.signature) {
            return Err(ReturnRefusal::Signature.into());
        }
        // The key is proved: now, and not before, the nonce is gone.
        self.challenges.spend(evidence.nonce, now).map_err(CallerError::Challenge)?;
        Ok(peer)
    }
}

/// Whether a certificate that ended then still lets its node come back. One that has not ended, by the clock here, does: the
/// node's own clock may be ahead.
fn may_return(ended: SystemTime, within: Duration, now: SystemTime) -> Result<(), ReturnRefusal> {
    if within.is_zero() {
        return Err(ReturnRefusal::Forbidden);
    }
    match now.duration_since(ended) {
        Ok(since) if since >= within => Err(ReturnRefusal::TooLong { ended, now, within }),
        _ => Ok(()),
    }
}

/// Why a node does not come back by its certificate.
#[derive(Debug, Error)]
pub(crate) enum ReturnRefusal {
    #[error("no node comes back here by a certificate that has ended (nodes.reattestWithin in ca.yaml is 0s)")]
    Forbidden,
    #[error("there is no certificate")]
    NoCertificate,
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error(
        "the certificate ended at {}, and the clock here says {}: that is longer ago than {} s (nodes.reattestWithin in ca.yaml)",
        rfc3339(*ended), rfc3339(*now), within.as_secs()
    )]
    TooLong { ended: SystemTime, now: SystemTime, within: Duration },
    #[error("the certificate was never one of this mesh, or is of a root that is trusted no more")]
    Unverified(#[source] Box<alcazar_mtls::VerifyPeerError>),
    #[error("the signature is not of the certificate's key over this request")]
    Signature,
    #[error("the certificate is revoked: {0}")]
    Revoked(String),
}

impl From<ReturnRefusal> for CallerError {
    fn from(refusal: ReturnRefusal) -> Self {
        Self::Returning(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_lets_its_node_come_back_for_as_long_as_is_configured() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let check = |within, now, expected: Option<&str>| {
            let refused =
                may_return(at(1000), Duration::from_secs(within), at(now)).err().map(|error| error.to_string());
            let same = match (&refused, expected) {
                (Some(refused), Some(expected)) => refused.contains(expected),
                (refused, expected) => refused.is_none() && expected.is_none(),
            };
            assert!(same, "{within} {now}: {refused:?}");
        };
        check(60, 1000, None);
        check(60, 1059, None);
        check(60, 1060, Some("ended at 1970-01-01T00:16:40Z, and the clock here says 1970-01-01T00:17:40Z"));
        // It has not ended here, or the clock here has been set back.
        check(60, 999, None);
        check(60, 0, None);
        check(0, 999, Some("reattestWithin"));
        check(0, 1000, Some("reattestWithin"));
    }
}
