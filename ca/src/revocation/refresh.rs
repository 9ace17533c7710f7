//! From the records to what is in force and told: after each change, here or by another replica.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_api::{ca::v1, revocations::encode_list};
use alcazar_identity::{Fingerprint, RevocationList};
use alcazar_service::{Shutdown, process};
use alcazar_store::{Expected, Prefix, WatchError};
use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Entry, Published, entry, entry::Version, sign::sign};
use crate::{
    ca::Ca,
    records::{RecordError, Stored, family, prefix},
    signer::SignError,
};

/// A list that somebody signed, on record.
#[derive(Serialize, Deserialize)]
pub(super) struct SignedRecord {
    /// The message, in base64.
    list: String,
}

impl SignedRecord {
    pub(super) fn new(list: &v1::SignedRevocationList) -> Self {
        Self { list: STANDARD.encode(list.encode_to_vec()) }
    }

    fn read(&self) -> Option<v1::SignedRevocationList> {
        let bytes = STANDARD.decode(&self.list).ok()?;
        v1::SignedRevocationList::decode(bytes.as_slice()).ok()
    }
}

impl Ca {
    /// Makes what is on record be in force and told.
    ///
    /// # Errors
    /// When the store does not answer, or the list cannot be signed.
    pub(crate) async fn refresh_revocations(&self) -> Result<(), RefreshError> {
        let mut keeper = self.0.revoking.keeper.lock().await;
        let now = (self.0.clock)();
        let entries = self.present_entries(now).await?;
        let list = |version| entry::list(self.trust_domain(), &self.0.config.cluster, version, &entries);
        let version = self.version_of(&list(0), now).await?;
        let (hierarchy, list) = (self.hierarchy(), list(version.version));
        let held = keeper.current().list(list.trust_domain(), list.issuer()).map(RevocationList::version);
        let signer = hierarchy.intermediate();
        let own = sign(&list, version.changed_at, signer.signer().clone(), hierarchy.upper()).await?;
        let mut shown = self.signed_lists().await?;
        shown.lists.push(own.clone());
        let outcome = keeper.take(&shown, hierarchy.bundles(), now);
        for refused in &outcome.refused {
            tracing::warn!(target: "alcazar::revoked", reason = %process::chain(refused), "a list of revocations on record is not taken");
        }
        // The same list by a newer intermediate: whoever starts later may not trust the root of the older.
        let mut signed = keeper.signed();
        if let Some(place) = signed.lists.iter_mut().find(|signed| signed.list == own.list) {
            *place = own;
        }
        if held.is_some_and(|held| held > version.version) {
            tracing::error!(target: "alcazar::revoked", version = version.version, "the list on record is older than the one in force: was the store put back to an older state? The next revocation makes it newer");
        }
        let revocations = keeper.current().clone();
        let entries = Arc::new(entries);
        let published = Published { revocations: revocations.clone(), signed, entries, version: version.version };
        self.0.revoking.published.send_replace(Arc::new(published));
        let serving = &self.0.serving;
        if serving.borrow().revocations() != &revocations {
            serving.send_modify(|credentials| {
                *credentials = Arc::new((**credentials).clone().with_revocations(revocations));
            });
        }
        Ok(())
    }

    /// Follows changes by other replicas, of the hierarchy and of time, until the end.
    pub(crate) async fn keep_revocations(self, shutdown: Shutdown) {
        let mut hierarchy = self.0.hierarchy.subscribe();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.change_of_revocations() => {}
                change = hierarchy.changed() => if change.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Err(error) = self.refresh_revocations().await {
                tracing::error!(target: "alcazar::revoked", reason = %process::chain(&error), "the revocations on record cannot be used; those in force stay");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }

    /// Completes when a record may be different from what is published.
    async fn change_of_revocations(&self) {
        let watched = async {
            let under: Prefix = prefix(family::REVOCATIONS)?;
            let lists: Prefix = prefix(family::REVOCATION_LISTS)?;
            let revision = self.0.records.store().list(&lists).await?.revision;
            let published = self.0.revoking.published.borrow().version;
            let known = self.0.records.get::<Version>(family::REVOCATION_LISTS, OWN).await?;
            // A change between the last refresh and this watch.
            if known.is_some_and(|known| known.record.version != published) {
                return Ok(());
            }
            let store = self.0.records.store();
            let (mut entries, mut lists) = (store.watch(&under, revision).await?, store.watch(&lists, revision).await?);
            let event = tokio::select! {
                event = entries.next() => event,
                event = lists.next() => event,
            };
            match event {
                Ok(_) | Err(WatchError::Lagged) => Ok::<_, RecordError>(()),
                Err(WatchError::Closed) => std::future::pending().await,
            }
        };
        if watched.await.is_err() {
            // The next look tells what is wrong with the store.
            std::future::pending::<()>().await;
        }
    }

    /// The entries that count, after those whose time is over were forgotten.
    async fn present_entries(&self, now: SystemTime) -> Result<Vec<Entry>, RecordError> {
        let (stored, _) = self.0.records.list::<Entry>(family::REVOCATIONS).await?;
        let mut entries = Vec::with_capacity(stored.len());
        for Stored { record, revision } in stored {
            if !record.is_over(now) {
                entries.push(record);
                continue;
            }
            match self.0.records.delete(family::REVOCATIONS, &record.named.key(), revision).await {
                Err(error) if !error.is_conflict() => return Err(error),
                // Renewed by another replica: the next look finds it.
                _ => {}
            }
        }
        Ok(entries)
    }

    /// The version that this content has, raised in the store where it is new.
    async fn version_of(&self, list: &RevocationList, now: SystemTime) -> Result<Version, RecordError> {
        let digest = Fingerprint::of(&encode_list(list, SystemTime::UNIX_EPOCH));
        loop {
            let present = self.0.records.get::<Version>(family::REVOCATION_LISTS, OWN).await?;
            let version = Version::of(present.as_ref().map(|stored| &stored.record), digest, now);
            let expected = match present {
                Some(stored) if stored.record == version => return Ok(version),
                Some(stored) => Expected::At(stored.revision),
                None => Expected::Absent,
            };
            match self.0.records.put(family::REVOCATION_LISTS, OWN, expected, &version).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(|_| version),
            }
        }
    }

    /// The lists of others.
    async fn signed_lists(&self) -> Result<v1::SignedRevocations, RecordError> {
        let (stored, _) =
            self.0.records.list::<SignedRecord>(&format!("{}/{SIGNED}", family::REVOCATION_LISTS)).await?;
        Ok(v1::SignedRevocations { lists: stored.iter().filter_map(|stored| stored.record.read()).collect() })
    }
}

/// Why the revocations on record are not in force.
#[derive(Debug, Error)]
pub enum RefreshError {
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The intermediate's key did not sign.
    #[error("the list of revocations could not be signed")]
    Sign(#[from] SignError),
}

/// The record of this cluster's version.
const OWN: &str = "own";
/// The folder of lists that are kept as they were signed.
pub(super) const SIGNED: &str = "signed";
/// How often the clock is looked at for entries whose time is over.
const LOOK: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(5);
