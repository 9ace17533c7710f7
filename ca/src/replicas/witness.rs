//! Each replica witnesses the ledgers of the others: that they only grow.
//!
//! ```text
//! keeps the ledger   ca/heads/<ledger>                signed, every minute
//!                    ca/proofs/<ledger>               from what each witness has seen, to that head
//! witness            ca/witnesses/<ledger>/<replica>  the last head that fits what it saw before, signed by the witness
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use alcazar_identity::TrustBundle;
use alcazar_ledger::merkle::Hash;
use alcazar_service::{Part, Shutdown, process};
use alcazar_store::Expected;
use serde::{Deserialize, Serialize};

use crate::{
    ca::Ca,
    ledger::{HeadRecord, LedgerError, SignedHead, TreeHead, Verdict, Witness, judge},
    records::{RecordError, Stored, family, prefix, read},
};

/// That the head of a ledger goes on from earlier ones. Record `ca/proofs/<ledger>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Proofs {
    /// The size of the head.
    to: u64,
    from: Vec<Proof>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    size: u64,
    hashes: Vec<[u8; 32]>,
}

impl Proofs {
    fn of(&self, from: u64, to: u64) -> Option<Vec<Hash>> {
        let found = self.from.iter().find(|proof| proof.size == from).filter(|_| self.to == to)?;
        Some(found.hashes.iter().map(|hash| Hash::from(*hash)).collect())
    }
}

impl Ca {
    /// What other replicas have seen of a ledger, each with its signature, which is not checked here.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn witnesses(&self, ledger: &str) -> Result<Vec<Witness>, RecordError> {
        let family = prefix(&format!("{}/{ledger}", family::WITNESSES))?;
        let mut witnesses = Vec::new();
        for entry in self.0.records.store().list(&family).await?.entries {
            let signed = read::<HeadRecord>(&entry)?.record.signed(ledger);
            witnesses.extend(signed.map(|signed| Witness { replica: entry.key().name().to_owned(), signed }));
        }
        Ok(witnesses)
    }

    /// Looks at the ledgers of the other replicas, signs for those that only grew, and offers the proof that this one's did. What is
    /// wrong with a ledger, by its name. A running CA does it by itself, every minute.
    ///
    /// # Errors
    /// When the store does not answer, or the signer does not sign.
    pub async fn witness_ledgers(&self) -> Result<BTreeMap<String, String>, LedgerError> {
        self.offer_proofs().await?;
        let own = self.0.ledger.name();
        let mut wrong = BTreeMap::new();
        let hierarchy = self.hierarchy();
        let Some(bundle) = hierarchy.bundles().get(self.trust_domain()) else { return Ok(wrong) };
        for entry in self.0.records.store().list(&prefix(family::HEADS)?).await.map_err(RecordError::from)?.entries {
            let ledger = entry.key().name();
            if ledger == own {
                continue;
            }
            let outcome = match read::<HeadRecord>(&entry)?.record.signed(ledger) {
                Some(signed) => self.witness(ledger, &signed, bundle).await?,
                None => Err("its head in the store cannot be read".to_owned()),
            };
            if let Err(what) = outcome {
                wrong.insert(ledger.to_owned(), what);
            }
        }
        Ok(wrong)
    }

    /// Signs for one ledger, or says what is wrong with it.
    async fn witness(
        &self,
        ledger: &str,
        signed: &SignedHead,
        bundle: &TrustBundle,
    ) -> Result<Result<(), String>, LedgerError> {
        if let Err(error) = signed.verify(bundle) {
            // One that has not grown since a rotation is of a root that is believed no more: nothing new is signed for.
            return Ok(if self.has_gone_on(ledger).await? { Err(process::chain(&error)) } else { Ok(()) });
        }
        let (family, name) = (format!("{}/{ledger}", family::WITNESSES), self.replica().as_str());
        let known = self.0.records.get::<HeadRecord>(&family, name).await?;
        let revision = known.as_ref().map(|stored| stored.revision);
        let seen = known.and_then(|Stored { record, .. }| record.signed(ledger));
        let seen = seen.map(|signed| signed.head);
        let proofs = self.0.records.get::<Proofs>(family::PROOFS, ledger).await?;
        let proof = seen.as_ref().and_then(|seen| proofs?.record.of(seen.size, signed.head.size));
        match judge(seen.as_ref(), &signed.head, proof.as_deref()) {
            Ok(Verdict::Grown) => {}
            Ok(Verdict::Same | Verdict::Unproven) => return Ok(Ok(())),
            Err(fork) => return Ok(Err(process::chain(&fork))),
        }
        let head = TreeHead { at: crate::issue::whole_seconds((self.0.clock)()), ..signed.head.clone() };
        let (hierarchy, replica) = (self.hierarchy(), self.replica().clone());
        // A signer may wait for a token.
        let made = tokio::task::spawn_blocking(move || Witness::sign(replica.as_str(), head, &hierarchy)).await;
        let made = made.map_err(|_ending| LedgerError::Interrupted)??;
        let expected = revision.map_or(Expected::Absent, Expected::At);
        match self.0.records.put(&family, name, expected, &HeadRecord::of(&made.signed)).await {
            Err(error) if !error.is_conflict() => Err(error.into()),
            _ => Ok(Ok(())),
        }
    }

    /// Whether the replica that keeps a ledger is at work.
    async fn has_gone_on(&self, ledger: &str) -> Result<bool, RecordError> {
        let now = (self.0.clock)();
        let states = self.replicas().await?;
        Ok(states.iter().any(|state| state.presence.ledger == ledger && !state.is_gone(now)))
    }

    /// Puts the proofs that this replica's kept head goes on from what each witness has seen.
    async fn offer_proofs(&self) -> Result<(), LedgerError> {
        let ledger = self.0.ledger.name();
        let Some(kept) = self.kept_head().await? else { return Ok(()) };
        let to = kept.head.size;
        let witnesses = self.witnesses(&ledger).await?;
        let sizes: BTreeSet<_> = witnesses.iter().map(|witness| witness.signed.head.size).collect();
        let mut proofs = Proofs { to, from: Vec::new() };
        for size in sizes.into_iter().filter(|size| (1..to).contains(size)) {
            let hashes = self.0.ledger.consistency(size, to).await?;
            proofs.from.push(Proof { size, hashes: hashes.iter().map(|hash| *hash.as_bytes()).collect() });
        }
        let known = self.0.records.get::<Proofs>(family::PROOFS, &ledger).await?;
        let expected = match known {
            Some(known) if known.record == proofs => return Ok(()),
            Some(known) => Expected::At(known.revision),
            None => Expected::Absent,
        };
        match self.0.records.put(family::PROOFS, &ledger, expected, &proofs).await {
            Err(error) if !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Witnesses the ledgers of the others now and then, until the end.
    pub(crate) async fn keep_witness(self, part: Part, shutdown: Shutdown) {
        if !self.0.config.store.is_shared() {
            return;
        }
        let mut said = BTreeMap::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let wrong = match self.witness_ledgers().await {
                Ok(wrong) => wrong,
                Err(error) => {
                    tracing::debug!(reason = %process::chain(&error), "the ledgers of the other replicas were not looked at");
                    continue;
                }
            };
            for (ledger, what) in wrong.iter().filter(|(ledger, what)| said.get(*ledger) != Some(*what)) {
                tracing::error!(
                    ledger,
                    what,
                    "the ledger of another replica is not to be believed: it was changed or rolled back, or two processes keep copies of it; keep its files, and ask who had access to them"
                );
            }
            let told: Vec<_> = wrong.iter().map(|(ledger, what)| format!("the ledger {ledger}: {what}")).collect();
            if told.is_empty() {
                part.ready();
            } else {
                part.degraded(told.join("; "));
            }
            said = wrong;
        }
    }
}

const EVERY: Duration = Duration::from_secs(30);
