//! The last signed head of each ledger, in the store: what is opened must go on from there, and what runs, too.

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, TrustDomain};
use alcazar_ledger::merkle::Hash;
use alcazar_service::{Shutdown, process};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{Ledger, LedgerError, SignedHead, TreeHead};
use crate::{
    ca::Ca,
    records::{family, seconds, text},
};

/// A signed head, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadRecord {
    #[serde(with = "text")]
    pub(super) trust_domain: TrustDomain,
    pub(super) cluster: String,
    pub(super) size: u64,
    pub(super) root: [u8; 32],
    #[serde(with = "seconds")]
    pub(super) at: SystemTime,
    chain: Vec<String>,
    signature: String,
    /// Where the ledger was lost, and another goes on after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replaced: Option<Replaced>,
}

/// What goes on after a ledger that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replaced {
    pub(super) by: String,
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
            replaced: None,
        }
    }

    /// Whether it was signed by the first of these, below the others.
    fn is_signed_by(&self, chain: &[CertificateDer<'_>]) -> bool {
        chain.iter().map(|certificate| STANDARD.encode(certificate)).eq(self.chain.iter().cloned())
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

/// Whether a key of the family is that of a ledger's last head.
pub(super) fn is_ledger_name(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Ledger {
    /// Whether it goes on from what somebody kept under its name. A copy of the data folder that runs elsewhere has the same name.
    async fn holds(&self, kept: &HeadRecord) -> Result<(), LedgerError> {
        let (name, size, theirs) = (self.name(), self.head().size, Hash::from(kept.root));
        let fork = if kept.size > size {
            Some(format!("has {size} entries here and {} there", kept.size))
        } else {
            let ours = self.root(kept.size).await?;
            (ours != theirs).then(|| format!("has the root {ours} after {} entries here and {theirs} there", kept.size))
        };
        let Some(fork) = fork else {
            self.fork.send_if_modified(|known| known.take().is_some());
            return Ok(());
        };
        let fork = format!(
            "two processes go on with the ledger {name}: it {fork}, as the store has it; find the copy of this CA's data folder and stop one of the two"
        );
        self.fork.send_if_modified(|known| known.replace(fork.clone()).as_ref() != Some(&fork));
        Err(LedgerError::Forked(fork))
    }
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
            return Ok(self.0.signing.with(move || head.sign(&hierarchy)).await??);
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

    /// Signs the head and keeps it in the store, where it is not there yet, or is signed by what does not sign any more.
    ///
    /// # Errors
    /// When the signer does not sign, the store does not answer, or what is there is not what this ledger was.
    pub async fn keep_head(&self) -> Result<(), LedgerError> {
        let ledger = &self.0.ledger;
        let name = ledger.name();
        loop {
            // In this order: whatever we kept, we have.
            let found = self.0.records.get::<HeadRecord>(family::HEADS, &name).await?;
            let size = ledger.head().size;
            if let Some(stored) = &found {
                ledger.holds(&stored.record).await?;
            }
            let expected = match &found {
                Some(stored) if stored.record.size == size && stored.record.is_signed_by(self.hierarchy().upper()) => {
                    return Ok(());
                }
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

    /// Keeps the head now and then, and when another authority signs: once its root is trusted no more, whoever witnesses this ledger
    /// would believe nothing that the one before it has signed. Until the end.
    pub(crate) async fn keep_heads(self, shutdown: Shutdown) {
        let mut hierarchy = self.0.hierarchy.subscribe();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
                _ = hierarchy.changed() => {}
            }
            match self.keep_head().await {
                Ok(()) => {}
                Err(LedgerError::Forked(reason)) => tracing::error!(reason, "the ledger is forked"),
                Err(error) => {
                    tracing::warn!(reason = %process::chain(&error), "the ledger's head was not kept; the next one is");
                }
            }
        }
    }
}

const EVERY: Duration = Duration::from_secs(60);
