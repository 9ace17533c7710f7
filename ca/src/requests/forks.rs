//! A renewal by a certificate that somebody else has renewed: it has two holders, and its lineage ends.
//!
//! Whoever renews first, the thief or the node, has the latest certificate. Which of the two it was cannot be told, so neither
//! goes on: both attest again, and one of them cannot.

use alcazar_identity::SpiffeId;
use alcazar_mtls::PeerIdentity;
use alcazar_service::process;

use super::nodes::Presented;
use crate::{
    ca::Ca,
    csr::KeyHash,
    records::{LineageRefusal, RecordError, family},
    refusal::RequestError,
};

impl Ca {
    /// What is said to somebody whose certificate spoke for no node when it would have renewed itself.
    pub(crate) async fn refused_at_renewal(&self, peer: Option<&PeerIdentity>, refusal: RequestError) -> RequestError {
        match (peer, refusal) {
            (Some(peer), RequestError::Lineage { node, source }) => {
                self.refused_renewal(node, &Presented::from(peer), None, source).await
            }
            (_, refusal) => refusal,
        }
    }

    /// What is said to the holder of a certificate that does not renew. Where there is another holder, the lineage is ended.
    pub(super) async fn refused_renewal(
        &self,
        node: SpiffeId,
        presented: &Presented,
        key: Option<KeyHash>,
        refusal: LineageRefusal,
    ) -> RequestError {
        let ended = self.end_if_forked(&node, presented, key).await;
        let source = ended.unwrap_or_else(|error| {
            tracing::warn!(%node, reason = %process::chain(&error), "it cannot be told whether this node's certificate has two holders; its next renewal tells");
            None
        });
        RequestError::Lineage { node, source: source.unwrap_or(refusal) }
    }

    /// Ends the node's lineage, if the store has it as one that this renewal shows to have two holders.
    async fn end_if_forked(
        &self,
        node: &SpiffeId,
        presented: &Presented,
        key: Option<KeyHash>,
    ) -> Result<Option<LineageRefusal>, RecordError> {
        let (records, name) = (&self.0.records, node.principal());
        // The store is about to be told how far it has come: until then nothing is proved.
        if self.0.renewals.of(name).is_some() {
            return Ok(None);
        }
        let Some(found) = records.lineage(name).await? else { return Ok(None) };
        if !found.record.is_forked_by(&presented.mark, presented.issued, key) {
            return Ok(None);
        }
        records.delete(family::NODES, name, found.revision).await?;
        self.0.metrics.forked_lineages.inc();
        let (serial, latest) = (&presented.mark.serial, &found.record.latest.serial);
        tracing::error!(target: "alcazar::refused", %node, serial, latest, "a certificate that somebody has renewed was to be renewed by another holder: the node's key was copied. Its lineage is ended, and neither renews any more; look at the node, then have it attest again with a new join token. Certificates that were issued are good until they end: revoke them by their serials");
        records.forget_adopted(node).await?;
        Ok(Some(found.record.forked(&presented.mark)))
    }
}
