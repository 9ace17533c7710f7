//! The serial numbers of a revoked identity's certificates, for CRLs: every replica puts those of its own ledger on record while
//! it has them, so that a list made by another replica, or after a ledger has begun anew, names them all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use alcazar_identity::{Fingerprint, SpiffeId};
use alcazar_store::Expected;
use serde::{Deserialize, Serialize};

use super::{Entry, Named, RefreshError, entry::SKEW};
use crate::{
    ca::Ca,
    ledger::RecordedKind,
    records::{family, seconds, text},
};

/// Some certificates of one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Certificates {
    #[serde(with = "text")]
    pub(super) id: SpiffeId,
    pub(super) certificates: Vec<Certificate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Certificate {
    pub(super) serial: String,
    #[serde(with = "seconds")]
    pub(super) not_before: SystemTime,
    #[serde(with = "seconds")]
    pub(super) not_after: SystemTime,
}

impl Certificate {
    /// Whether the entry of its identity means it too.
    pub(super) fn is_meant(&self, entry: &Entry) -> bool {
        match &entry.named {
            Named::Identity { before, reinstated, .. } => reinstated.is_none() || self.not_before < *before,
            Named::Serial { .. } => false,
        }
    }
}

impl Ca {
    /// The living certificates of an identity by this replica's ledger.
    pub(super) async fn certificates_in_ledger(
        &self,
        id: &SpiffeId,
        now: SystemTime,
    ) -> Result<Vec<Certificate>, RefreshError> {
        let living = self.0.ledger.live_of_identity(id, now).await?;
        // A list of certificates names no tokens.
        let certificates = living.into_iter().filter(|record| matches!(record.kind, RecordedKind::Certificate(_)));
        let certificate = |record: crate::ledger::Recorded| Certificate {
            serial: record.serial,
            not_before: record.not_before,
            not_after: record.not_after,
        };
        Ok(certificates.map(certificate).collect())
    }

    /// The living certificates of revoked identities that replicas have put on record.
    pub(super) async fn certificates_on_record(
        &self,
        now: SystemTime,
    ) -> Result<BTreeMap<SpiffeId, Vec<Certificate>>, RefreshError> {
        let mut found: BTreeMap<SpiffeId, Vec<Certificate>> = BTreeMap::new();
        for stored in self.0.records.list::<Certificates>(family::REVOKED_CERTIFICATES).await?.0 {
            let living = stored.record.certificates.into_iter().filter(|certificate| certificate.not_after >= now);
            found.entry(stored.record.id).or_default().extend(living);
        }
        Ok(found)
    }

    /// Puts on record what this replica's ledger has and the records have not; forgets what is over.
    pub(super) async fn keep_serials(&self, known: &mut BTreeSet<(SpiffeId, SystemTime)>) -> Result<(), RefreshError> {
        let (now, entries) = ((self.0.clock)(), self.0.revoking.published.borrow().entries.clone());
        let revoked = entries.iter().filter_map(|entry| match &entry.named {
            Named::Identity { id, before, .. } => Some((entry, (id.clone(), *before))),
            Named::Serial { .. } => None,
        });
        let revoked: Vec<_> = revoked.collect();
        known.retain(|held| revoked.iter().any(|(_, revoked)| revoked == held));
        if revoked.iter().any(|(_, revoked)| !known.contains(revoked)) {
            let on_record = self.certificates_on_record(now).await?;
            for (entry, revoked) in revoked {
                if known.contains(&revoked) {
                    continue;
                }
                let id = &revoked.0;
                let there: BTreeSet<&str> =
                    on_record.get(id).into_iter().flatten().map(|certificate| certificate.serial.as_str()).collect();
                let mut new = self.certificates_in_ledger(id, now).await?;
                new.retain(|certificate| certificate.is_meant(entry) && !there.contains(certificate.serial.as_str()));
                self.put_certificates(id, &new).await?;
                known.insert(revoked);
            }
        }
        self.forget_certificates(now).await
    }

    /// Puts certificates of a revoked identity on record, under names that are those of their serial numbers: replicas do not get
    /// in each other's way.
    pub(super) async fn put_certificates(
        &self,
        id: &SpiffeId,
        certificates: &[Certificate],
    ) -> Result<(), RefreshError> {
        for some in certificates.chunks(CHUNK) {
            let record = Certificates { id: id.clone(), certificates: some.to_vec() };
            let serials: Vec<_> = some.iter().map(|certificate| certificate.serial.as_str()).collect();
            let name = Fingerprint::of(format!("{id} {}", serials.join(",")).as_bytes()).to_string();
            match self.0.records.put(family::REVOKED_CERTIFICATES, &name, Expected::Absent, &record).await {
                Err(error) if !error.is_conflict() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn forget_certificates(&self, now: SystemTime) -> Result<(), RefreshError> {
        let prefix = crate::records::prefix(family::REVOKED_CERTIFICATES)?;
        let mut over = BTreeMap::new();
        for entry in self.0.records.store().list(&prefix).await.map_err(crate::records::RecordError::from)?.entries {
            let stored = crate::records::read::<Certificates>(&entry)?;
            if stored.record.certificates.iter().all(|certificate| now > certificate.not_after + SKEW) {
                over.insert(entry.key().name().to_owned(), stored.revision);
            }
        }
        for name in self.0.revoking.certificates_over.over(over.keys().cloned(), now) {
            let Some(revision) = over.get(&name) else { continue };
            match self.0.records.delete(family::REVOKED_CERTIFICATES, &name, *revision).await {
                Err(error) if !error.is_conflict() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// So many fit into one value of every store.
const CHUNK: usize = 400;
