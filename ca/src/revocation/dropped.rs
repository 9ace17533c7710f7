//! Lists of clusters that are gone: nobody signs them anew, so a person says that they are not held any more.
//!
//! Nothing is given back by it. What such a list bars is barred by this cluster's own from then on, which can be proved to everybody, and
//! which `alcazar unrevoke` takes it off.

use std::time::SystemTime;

use alcazar_identity::{ListIssuer, RevocationList, SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{RevokeError, refresh::RefreshError};
use crate::{
    ca::Ca,
    records::{RecordError, seconds, text},
};

/// A list that is held no more, as the store has it in the list's own place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DroppedRecord {
    #[serde(with = "text")]
    pub(super) trust_domain: TrustDomain,
    #[serde(with = "text")]
    pub(super) issuer: ListIssuer,
    /// One that is newer is no longer the one that was meant.
    pub(super) version: u64,
    by: String,
    #[serde(with = "seconds")]
    at: SystemTime,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Dropped {
    /// The identities that this cluster bars in its place.
    pub(crate) barred: Vec<SpiffeId>,
    /// What the operator should know besides.
    pub(crate) notes: Vec<String>,
}

impl Ca {
    /// Holds the list of another cluster no more: of one that is gone, or of any where it is `forced`.
    pub(crate) async fn drop_list(
        &self,
        trust_domain: &TrustDomain,
        cluster: &str,
        forced: bool,
        by: &str,
    ) -> Result<Dropped, DropError> {
        let (is_home, now) = (trust_domain == self.trust_domain(), (self.0.clock)());
        if is_home && cluster == self.config().cluster {
            return Err(DropError::Own);
        }
        let issuer = ListIssuer::Cluster(cluster.to_owned());
        let name = if is_home { issuer.to_string() } else { format!("{issuer} of {trust_domain}") };
        // Nobody imports meanwhile.
        let turn = self.0.revoking.roots.lock().await;
        let (held, unproved) = {
            let keeper = &self.0.revoking.refreshing.lock().await.keeper;
            let (_, unproved) = keeper.to_show(&self.trust_bundles(), now, |_| false);
            (keeper.current().list(trust_domain, &issuer).cloned(), unproved)
        };
        let held = held.ok_or_else(|| DropError::NotHeld(name.clone()))?;
        if !forced {
            let is_it = |list: &RevocationList| list.trust_domain() == trust_domain && *list.issuer() == issuer;
            if !unproved.iter().any(|unproved| is_it(&unproved.list)) {
                return Err(DropError::Proved(name));
            }
            if is_home && self.config().clusters.iter().any(|known| known.name == cluster) {
                return Err(DropError::Known(cluster.to_owned()));
            }
        }
        let mut barred = Vec::new();
        let instead = format!("{by}, from the list of {name}");
        for (id, revoked) in held.identities().filter(|(_, revoked)| !revoked.reinstated) {
            // An own list is about identities of its own trust domain.
            if self.check_identity(id).is_ok() {
                self.put_identity(id.clone(), revoked.revocation.reason, now, &instead).await?;
                barred.push(id.clone());
            }
        }
        barred.sort();
        let (version, at) = (held.version(), crate::issue::whole_seconds(now));
        let record = DroppedRecord { trust_domain: trust_domain.clone(), issuer, version, by: by.to_owned(), at };
        self.put_dropped(record).await?;
        drop(turn);
        self.refresh_revocations().await?;
        tracing::warn!(target: "alcazar::revoked", issuer = name, by, forced, barred = barred.len(), "a list of revocations is held no more; the identities that it barred are barred here");
        Ok(Dropped { barred, notes: notes(&held, is_home, now) })
    }

    async fn put_dropped(&self, record: DroppedRecord) -> Result<(), RecordError> {
        loop {
            let found = self.stored_list(&record.trust_domain, &record.issuer).await?;
            match self.put_drop(found, &record).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome,
            }
        }
    }
}

/// What a list said that is said by nobody in its place.
fn notes(list: &RevocationList, is_home: bool, now: SystemTime) -> Vec<String> {
    let living = list.serials().filter(|serial| now <= serial.revocation.until).count();
    let barred = list.identities().filter(|(_, revoked)| !revoked.reinstated).count();
    let mut notes = Vec::new();
    if living > 0 {
        notes.push(format!(
            "{living} certificates that it revoked by their serial numbers may be good yet, and are believed here"
        ));
    }
    if !is_home && barred > 0 {
        notes.push(format!("{barred} identities of another trust domain that it barred are barred here no more"));
    }
    notes
}

/// Why a list is held on.
#[derive(Debug, Error)]
pub(crate) enum DropError {
    #[error("the list of this cluster is its own; `alcazar unrevoke` takes off it what is to be given back")]
    Own,
    #[error("no list of {0} is held here; `alcazar revocations` shows whose are")]
    NotHeld(String),
    #[error(
        "the list of {0} can be proved: who signed it is trusted here, so the cluster is heard from, and the list stands in nobody's way. Where the cluster is gone all the same, add --force"
    )]
    Proved(String),
    #[error(
        "the cluster {0} stands in `clusters:` of ca.yaml: rotations wait to hear from it. Where it is gone, take it out there first; or add --force"
    )]
    Known(String),
    #[error("the identities that the list bars cannot be barred here, so it is held on")]
    Bar(#[from] RevokeError),
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error("it is on record, and will be in force once this is mended")]
    Refresh(#[from] RefreshError),
}
