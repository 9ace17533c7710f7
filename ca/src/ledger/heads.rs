//! The last signed head of each ledger, in the store: what is opened must go on from there.

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, TrustDomain};
use alcazar_ledger::merkle::Hash;
use alcazar_service::{Shutdown, process};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{Ledger, LedgerError, OpenLedgerError, SignedHead, TreeHead};
use crate::{
    ca::Ca,
    records::{Records, family, seconds, text},
};

/// A signed head, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadRecord {
    #[serde(with = "text")]
    trust_domain: TrustDomain,
    cluster: String,
    size: u64,
    root: [u8; 32],
    #[serde(with = "seconds")]
    at: SystemTime,
    chain: Vec<String>,
    signature: String,
}

impl HeadRecord {
    pub(crate) fn of(signed: &SignedHead) -> Self {
        let TreeHead { trust_domain, cluster, size, root, at, .. } = signed.head.clone();
        Self {
            trust_domain,
            cluster,
            size,
            root: *root.as_bytes(),
            at,
            chain: signed.chain.iter().map(|certificate| STANDARD.encode(certificate)).collect(),
            signature: STANDARD.encode(&signed.signature),
        }
    }

    /// `None` where a part of it cannot be read.
    pub(crate) fn signed(self, ledger: &str) -> Option<SignedHead> {
        let chain = self.chain.iter().map(|text| STANDARD.decode(text).map(CertificateDer::from));
        let chain = chain.collect::<Result<_, _>>().ok()?;
        let signature = STANDARD.decode(&self.signature).ok()?;
        let Self { trust_domain, cluster, size, root, at, .. } = self;
        let head = TreeHead { trust_domain, cluster, ledger: ledger.into(), size, root: root.into(), at };
        Some(SignedHead { head, chain, signature })
    }
}

/// Compares a ledger that was opened with the head that was last signed for it.
pub(super) async fn compare(ledger: &Ledger, records: &Records) -> Result<(), OpenLedgerError> {
    let name = ledger.name();
    let Some(known) = records.get::<HeadRecord>(family::HEADS, &name).await? else {
        let (others, _) = records.list::<HeadRecord>(family::HEADS).await?;
        if !others.is_empty() && ledger.head().size == 0 {
            tracing::warn!(
                ledger = name,
                others = others.len(),
                "a new ledger begins, and the store knows heads of others; where they are not those of other replicas, the ledger of this one was lost or moved away"
            );
        }
        return Ok(());
    };
    let known = known.record;
    let (size, signed) = (ledger.head().size, Hash::from(known.root));
    if size < known.size {
        return Err(OpenLedgerError::Shrunk { ledger: name, size, signed: known.size });
    }
    let found = ledger.root(known.size).await.map_err(|error| match error {
        LedgerError::Read(error) => OpenLedgerError::Read(error),
        _ => OpenLedgerError::Interrupted,
    })?;
    if found != signed {
        return Err(OpenLedgerError::Changed { ledger: name, size: known.size, found, signed });
    }
    Ok(())
}

impl Ca {
    /// The ledger's head, signed now.
    ///
    /// # Errors
    /// When the signer does not sign.
    pub async fn tree_head(&self) -> Result<SignedHead, LedgerError> {
        let found = self.0.ledger.head();
        let head = TreeHead {
            trust_domain: self.trust_domain().clone(),
            cluster: self.0.config.cluster.clone(),
            ledger: self.0.ledger.name(),
            size: found.size,
            root: found.root,
            at: crate::issue::whole_seconds((self.0.clock)()),
        };
        let hierarchy = self.hierarchy();
        if hierarchy.intermediate().signer().is_remote() {
            let signed = tokio::task::spawn_blocking(move || head.sign(&hierarchy)).await;
            return Ok(signed.map_err(|_panic| LedgerError::Interrupted)??);
        }
        Ok(head.sign(&hierarchy)?)
    }

    /// The head that was last signed and kept, of this CA's ledger.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn kept_head(&self) -> Result<Option<SignedHead>, LedgerError> {
        let name = self.0.ledger.name();
        let found = self.0.records.get::<HeadRecord>(family::HEADS, &name).await?;
        Ok(found.and_then(|stored| stored.record.signed(&name)))
    }

    /// Signs the head and keeps it in the store, where it is not there yet.
    ///
    /// # Errors
    /// When the signer does not sign, or the store does not answer.
    pub async fn keep_head(&self) -> Result<(), LedgerError> {
        let name = self.0.ledger.name();
        loop {
            let found = self.0.records.get::<HeadRecord>(family::HEADS, &name).await?;
            let size = self.0.ledger.head().size;
            let expected = match &found {
                Some(stored) if stored.record.size >= size => return Ok(()),
                Some(stored) => Expected::At(stored.revision),
                None => Expected::Absent,
            };
            let record = HeadRecord::of(&self.tree_head().await?);
            match self.0.records.put(family::HEADS, &name, expected, &record).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome.map(drop)?),
            }
        }
    }

    /// Keeps the head now and then, until the end.
    pub(crate) async fn keep_heads(self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            if let Err(error) = self.keep_head().await {
                tracing::warn!(reason = %process::chain(&error), "the ledger's head was not kept; the next one is");
            }
        }
    }
}

const EVERY: Duration = Duration::from_secs(60);
