//! Telling nodes the CRLs of everybody who may have signed what is in use, for verifiers that go by those: all of them, or none and why.
//!
//! **Invariant**: no intermediate begins to sign before its CRL was on its way for [`SETTLE`]. A verifier that has the CRLs of
//! the others alone would refuse everybody whom it certifies.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_api::ca::v1;
use alcazar_identity::{Fingerprint, ListIssuer};
use alcazar_service::{Part, Shutdown, process};
use tokio::{sync::watch, time::Instant};

use super::{
    crl::MOST,
    current::{CurrentError, CurrentRecord, LATE},
    whole::{Needed, Whole, needed, whole},
};
use crate::{
    ca::Ca,
    hierarchy::{HierarchyError, Signing, blocking},
    records::{RecordError, Stored, family, prefix},
    replicas::ReplicaState,
};

/// What is told; `None` until it is known.
pub(crate) type Told = watch::Receiver<Option<Arc<v1::Crls>>>;

/// The intermediates whose CRLs are not there, and since when.
type Lacking = BTreeMap<Fingerprint, Instant>;

impl Ca {
    /// The CRLs as nodes are told them.
    pub(crate) fn follow_crls(&self) -> Told {
        self.0.revoking.crls.subscribe()
    }

    /// Makes this replica's, and tells of all, at each change until the end.
    pub(crate) async fn keep_crls(self, part: Part, shutdown: Shutdown) {
        let mut said = None;
        let kept = async {
            loop {
                let error = match self.follow_current_crls(&part).await {
                    Ok(()) => return,
                    Err(error) => process::chain(&error),
                };
                if said.as_ref() != Some(&error) {
                    tracing::warn!(target: "alcazar::revoked", reason = error, "the CRLs for nodes cannot be kept; what was told stays");
                    said = Some(error);
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = kept => {}
        }
    }

    /// Before anybody is served: has an intermediate that was not there yet announced, where nodes go by CRLs.
    pub(crate) async fn announce_at_start(&self, shutdown: &Shutdown) {
        let announced = async {
            let (hierarchy, known) = (self.hierarchy(), self.current_crls().await?);
            let issuer = hierarchy.intermediate().info().fingerprint;
            if known.is_empty() || is_told(&known, issuer, (self.0.clock)()) {
                return Ok(());
            }
            self.put_current_crl(issuer, hierarchy.upper()).await?;
            tokio::time::sleep(SETTLE).await;
            Ok::<_, CurrentError>(())
        };
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = announced => outcome,
        };
        if let Err(error) = outcome {
            tracing::warn!(target: "alcazar::revoked", reason = %process::chain(&error), "the CRL of this replica's intermediate was not announced before it signs: who checks by CRLs may refuse what it signs for a moment");
        }
    }

    /// Has an intermediate announced that is about to sign. Returns when everybody has had the time to hear of its CRL.
    pub(crate) async fn announce(&self, signing: &Signing) -> Result<(), HierarchyError> {
        let issuer = signing.authority.info().fingerprint;
        if issuer == self.hierarchy().intermediate().info().fingerprint {
            return Ok(());
        }
        let told = self.0.revoking.crls.borrow().clone();
        let announced = async {
            let known = self.current_crls().await?;
            // Right after a start it is not known what is told: others may tell what is on record.
            let Some(goes_by) = told.map(|told| told.complete).or((!known.is_empty()).then_some(true)) else {
                return Ok(false);
            };
            if !is_told(&known, issuer, (self.0.clock)()) {
                self.put_current_crl(issuer, &signing.upper).await?;
            }
            Ok::<_, CurrentError>(goes_by)
        };
        let goes_by = announced.await.map_err(|error| match error {
            CurrentError::Records(error) => error.into(),
            CurrentError::Hierarchy(error) => error,
            error => HierarchyError::Announce { intermediate: issuer, reason: process::chain(&error) },
        })?;
        if goes_by {
            tracing::info!(target: "alcazar::rotation", intermediate = %issuer, "the CRL of the next intermediate is told to all before it signs");
            tokio::time::sleep(SETTLE).await;
        }
        Ok(())
    }

    async fn follow_current_crls(&self, part: &Part) -> Result<(), CurrentError> {
        let (mut hierarchy, mut revocations) = (self.0.hierarchy.subscribe(), self.follow_revocations());
        let mut lacking = Lacking::new();
        let (crls, certificates) = (prefix(family::CRLS)?, prefix(family::REVOKED_CERTIFICATES)?);
        let store = self.0.records.store();
        // From before what is read, so that no change falls between.
        let revision = store.page(&crls, None, 1).await.map_err(RecordError::from)?.revision;
        let mut crls = store.watch(&crls, revision).await.map_err(RecordError::from)?;
        let mut certificates = store.watch(&certificates, revision).await.map_err(RecordError::from)?;
        loop {
            hierarchy.mark_unchanged();
            revocations.mark_unchanged();
            self.make_current_crls().await?;
            self.tell_crls(&mut lacking, part).await?;
            tokio::select! {
                event = crls.next() => drop(event?),
                event = certificates.next() => drop(event?),
                change = hierarchy.changed() => if change.is_err() { return Ok(()) },
                change = revocations.changed() => if change.is_err() { return Ok(()) },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn tell_crls(&self, lacking: &mut Lacking, part: &Part) -> Result<(), CurrentError> {
        let (now, mut known, replicas) = ((self.0.clock)(), self.current_crls().await?, self.replicas().await?);
        // With the CRLs of others and none of its own everybody under it is refused, as is to be.
        let is_revoked = |issuer: &Fingerprint| self.revoked_intermediate(*issuer).is_some();
        let messages = |known: &BTreeMap<Fingerprint, Stored<CurrentRecord>>| -> BTreeMap<Fingerprint, v1::Crl> {
            let all = known.iter().filter(|(issuer, _)| !is_revoked(issuer));
            all.filter_map(|(issuer, found)| Some((*issuer, found.record.message(now)?))).collect()
        };
        let mut there = messages(&known);
        let life = self.longest_life().await? + LATE;
        let mut needed = needed(&replicas, life, now);
        // One whose key is gone, of which there was none to keep.
        needed.extend(known.values().filter(|found| !found.record.is_over(now)).filter_map(|found| {
            let whose = format!("nobody any more ({})", found.record.trouble.as_ref()?);
            Some(Needed { issuer: found.record.issuer, whose, signs: true })
        }));
        needed.retain(|one| !is_revoked(&one.issuer));
        if needed.is_empty() && there.is_empty() {
            self.put_root_crls().await?;
            known = self.current_crls().await?;
            there = messages(&known);
        }
        // Those of roots are for where there is nothing else.
        let roots: BTreeSet<_> = self.hierarchy().roots().iter().map(|root| root.fingerprint).collect();
        if !needed.is_empty() || there.keys().any(|issuer| !roots.contains(issuer)) {
            there.retain(|issuer, _| !roots.contains(issuer));
        }
        let there_now: BTreeSet<_> = there.keys().copied().collect();
        lacking.retain(|issuer, _| !there_now.contains(issuer) && needed.iter().any(|one| one.issuer == *issuer));
        let was_whole = self.0.revoking.crls.borrow().as_ref().is_some_and(|told| told.complete);
        for one in needed.iter().filter(|one| was_whole && !there_now.contains(&one.issuer)) {
            lacking.entry(one.issuer).or_insert_with(Instant::now);
        }
        let is_new = |issuer| lacking.get(&issuer).is_some_and(|since| since.elapsed() < GRACE);
        let whole = whole(&needed, &there_now, &self.authorities_elsewhere(&replicas).await?, is_new);
        match &whole {
            Whole::Lacks(reason) => part.degraded(format!(
                "nodes are told no CRLs, so whoever checks by them, as stock Envoy does, lets in what is revoked: {reason}"
            )),
            Whole::Yes => match shortened(&known, &there_now) {
                Some(reason) => part.degraded(reason),
                None => part.ready(),
            },
            Whole::Never(_) => part.ready(),
        }
        let told = match whole {
            Whole::Yes => v1::Crls { crls: there.into_values().collect(), complete: true, ..v1::Crls::default() },
            Whole::Lacks(reason) => v1::Crls { reason, ..v1::Crls::default() },
            Whole::Never(reason) => v1::Crls { reason, by_setup: true, ..v1::Crls::default() },
        };
        self.0.revoking.crls.send_if_modified(|held| {
            if held.as_deref() == Some(&told) {
                return false;
            }
            let before = held.as_ref().map(|held| (held.complete, held.reason.clone()));
            if before.as_ref() != Some(&(told.complete, told.reason.clone())) {
                let v1::Crls { complete, reason, crls, .. } = &told;
                tracing::info!(target: "alcazar::revoked", complete, reason, crls = crls.len(), "what nodes are told of CRLs has changed");
            }
            *held = Some(Arc::new(told));
            true
        });
        Ok(())
    }

    /// Who may have signed what is in use, and whose CRLs never come here; in words.
    async fn authorities_elsewhere(&self, replicas: &[ReplicaState]) -> Result<Vec<String>, CurrentError> {
        let config = self.config();
        let mut clusters: BTreeSet<&str> = config.clusters.iter().map(|known| known.name.as_str()).collect();
        let revocations = self.revocations();
        for list in revocations.lists().filter(|list| list.trust_domain() == self.trust_domain()) {
            match list.issuer() {
                ListIssuer::Cluster(name) if *name != config.cluster => drop(clusters.insert(name)),
                _ => {}
            }
        }
        let mut all: Vec<_> = clusters
            .into_iter()
            .map(|name| format!("the cluster {name} stands under the root too, and its CRLs do not come here"))
            .collect();
        if config.revocation.sole_cluster {
            return Ok(all);
        }
        let files = self.0.files.clone();
        let (own, plugged) = blocking(move || Ok((files.own_roots()?, files.plugged.folder()?.is_some()))).await?;
        let made_here = |root: Fingerprint| {
            let with = |state: &ReplicaState| !state.here && state.presence.roots.contains(&root);
            own.iter().any(|info| info.fingerprint == root) || (!plugged && replicas.iter().any(with))
        };
        for root in self.hierarchy().roots().iter().filter(|root| !made_here(root.fingerprint)) {
            all.push(format!(
                "the root {} was not made by this CA, and other clusters may stand under it; where none does, say `revocation: {{soleCluster: true}}` in ca.yaml",
                root.fingerprint
            ));
        }
        Ok(all)
    }
}

/// Which of these CRLs do not name all that is revoked, in words.
fn shortened(known: &BTreeMap<Fingerprint, Stored<CurrentRecord>>, there: &BTreeSet<Fingerprint>) -> Option<String> {
    let all = known.iter().filter(|(issuer, found)| found.record.left_out > 0 && there.contains(issuer));
    let all: Vec<_> =
        all.map(|(issuer, found)| format!("{} in that of the intermediate {issuer}", found.record.left_out)).collect();
    (!all.is_empty()).then(|| {
        format!(
            "a CRL has room for {MOST} certificates, and more are revoked: whoever checks by CRLs, as stock Envoy does, lets in those that are left out, {}",
            all.join(", ")
        )
    })
}

/// Whether nodes are told the CRL of an intermediate. One on record may have been over for long: of a replica that was away.
fn is_told(known: &BTreeMap<Fingerprint, Stored<CurrentRecord>>, issuer: Fingerprint, now: SystemTime) -> bool {
    known.get(&issuer).is_some_and(|found| found.record.message(now).is_some())
}

/// How long the CRL of an intermediate is on its way before that signs: from replica to replica, to the agents, to who verifies.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a CRL may take to be on record of an intermediate that nothing signs with.
const GRACE: Duration = Duration::from_secs(60);
/// How often the clock and the replicas are looked at.
const LOOK: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
