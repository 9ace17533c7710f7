//! A node that was away until its certificate ended renews by it all the same: its lineage goes on.

use std::net::IpAddr;

use alcazar_identity::SpiffeId;

use super::{Reply, callers::is_expected, nodes::Held};
use crate::{
    ca::Ca,
    callers::{LineageEvidence, Plug, ReturnRefusal},
    csr::Csr,
    refusal::RequestError,
};

impl Ca {
    /// A node's next certificate, for its latest one, whose key signed a nonce of ours and this request: what it could have had
    /// over mutual TLS while that was good. Where somebody else has renewed it, the lineage ends, as at any renewal.
    pub(crate) async fn attest_returning(
        &self,
        from: Option<IpAddr>,
        evidence: &LineageEvidence<'_>,
        expects: Option<&SpiffeId>,
    ) -> Result<Reply, RequestError> {
        let refused = |source| RequestError::Caller { plug: Plug::Lineage, source };
        let stranger = self.door(from).stranger()?;
        let (now, within) = ((self.0.clock)(), self.0.config.nodes.reattest_within());
        let bundles = self.trust_bundles();
        let peer = self.0.callers.returning(evidence, &bundles, within, now).map_err(refused)?;
        if let Some(revoked) = peer.revoked_by(&self.revocations()) {
            return Err(refused(ReturnRefusal::Revoked(revoked.to_string()).into()));
        }
        stranger.proved();
        is_expected(peer.id(), expects)?;
        let node = match self.node(Some(&peer)).await {
            Err(refusal) => return Err(self.refused_at_renewal(Some(&peer), refusal).await),
            Ok(node) => node,
        };
        // On record alone: what another replica has given is told by that one.
        if matches!(node.lineage, Held::Younger(_)) {
            return Err(RequestError::Untold(node.id));
        }
        if !self.permits(&node.id)?.covers(node.presented.issued) {
            return Err(refused(ReturnRefusal::Revoked("it was issued before its node was reinstated".into()).into()));
        }
        let _pass = self.admit(node.id.as_str(), Some(node.not_after())).await?;
        let csr = Csr::from_der(evidence.csr)?;
        tracing::info!(node = %node.id, serial = node.presented.mark.serial, ended = alcazar_identity::rfc3339(node.not_after()), "a node comes back by a certificate that has ended");
        self.renew(node, &csr, self.0.profiles.node().default_ttl()).await
    }
}
