//! Lists that roots sign, about intermediates, and lists of other clusters: on record as they were signed.

use std::time::SystemTime;

use alcazar_api::{
    ca::v1,
    revocations::{Keeper, MAX_LIST, signed_list},
};
use alcazar_identity::{Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{RefreshError, RevokeError, entry::SKEW, error::MAX_ALL, sign::sign};
use crate::{
    authority::{Authority, AuthorityInfo},
    ca::Ca,
    hierarchy::{HierarchyError, blocking},
    ledger::LedgerError,
    records::{RecordError, family, seconds},
};

impl Ca {
    /// Takes over lists that others signed; whose. By `force` also one that revokes an intermediate that still signs.
    pub(crate) async fn import_revocations(
        &self,
        lists: v1::SignedRevocations,
        force: bool,
    ) -> Result<Vec<String>, RevokeError> {
        let own = ListIssuer::Cluster(self.0.config.cluster.clone());
        let mut taken = Vec::new();
        let turn = self.0.revoking.roots.lock().await;
        for signed in lists.lists {
            let now = (self.0.clock)();
            let mut keeper = self.0.revoking.refreshing.lock().await.keeper.clone();
            let shown = v1::SignedRevocations { lists: vec![signed.clone()] };
            let outcome = keeper.take(&shown, &self.trust_bundles(), now);
            let changed = outcome.is_change();
            if let Some(refused) = outcome.refused.into_iter().next() {
                return Err(RevokeError::Import(refused));
            }
            let list = signed_list(&signed).map_err(RevokeError::Import)?;
            let (bytes, all) = (signed.list.len(), keeper.current().evidence().len());
            if bytes > MAX_LIST || all > MAX_ALL {
                return Err(RevokeError::LongImport { bytes, all });
            }
            let is_own = list.trust_domain() == self.trust_domain() && *list.issuer() == own;
            // Nothing new, or what is kept here anyhow.
            if !changed || is_own {
                continue;
            }
            let says = |print| keeper.current().of_intermediate(self.trust_domain(), print).is_some();
            if !force {
                self.check_that_none_signs(|print| says(print) && self.revoked_intermediate(print).is_none()).await?;
            }
            self.put_imported(&list, &signed).await?;
            let name = match list.trust_domain() == self.trust_domain() {
                true => list.issuer().to_string(),
                false => format!("{} of {}", list.issuer(), list.trust_domain()),
            };
            tracing::warn!(target: "alcazar::revoked", issuer = name, "a list of revocations was imported");
            taken.push(name);
        }
        drop(turn);
        self.refresh_by(force).await?;
        Ok(taken)
    }

    /// By force also what signs here is revoked: then this cluster's own list can be told once another one signs, and not before.
    async fn refresh_by(&self, force: bool) -> Result<(), RefreshError> {
        match self.refresh_revocations().await {
            Err(error) if force && error.is_of_the_list() => Ok(()),
            outcome => outcome,
        }
    }

    /// Never in place of a newer one.
    async fn put_imported(&self, list: &RevocationList, signed: &v1::SignedRevocationList) -> Result<(), RecordError> {
        loop {
            let found = self.stored_list(list.trust_domain(), list.issuer()).await?;
            if found.list.as_ref().is_some_and(|stored| stored.version() > list.version()) {
                return Ok(());
            }
            match self.put_signed(found, signed).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome,
            }
        }
    }

    /// Whoever has a certificate of one that signs would be cut off: it is to be replaced first.
    async fn check_that_none_signs(&self, revoked: impl Fn(Fingerprint) -> bool) -> Result<(), RevokeError> {
        let now = (self.0.clock)();
        for state in self.replicas().await? {
            let intermediate = state.presence.signing.intermediate;
            match revoked(intermediate) {
                true if state.here => return Err(RevokeError::Signs(intermediate)),
                true if state.signs_elsewhere(now) => {
                    return Err(RevokeError::SignsElsewhere { intermediate, replica: state.name() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the root that signed an intermediate take it back; what the operator should know besides.
    pub(super) async fn revoke_intermediate(
        &self,
        intermediate: Fingerprint,
        reason: RevocationReason,
        force: bool,
        by: &str,
    ) -> Result<Vec<String>, RevokeError> {
        if !force {
            self.check_that_none_signs(|signing| signing == intermediate).await?;
        }
        // One after the other: each list says what the one before it says.
        let turn = self.0.revoking.roots.lock().await;
        let (hierarchy, now) = (self.hierarchy(), (self.0.clock)());
        if hierarchy.roots().iter().any(|root| root.fingerprint == intermediate) {
            return Err(RevokeError::Root(intermediate));
        }
        let known = self.known_intermediate(intermediate).await?;
        let (files, roots) = (self.0.files.clone(), hierarchy.roots().to_vec());
        let default = hierarchy.root().fingerprint;
        let opened = tokio::task::spawn_blocking(move || {
            let signer = known.as_ref().and_then(|known| roots.iter().find(|root| known.is_signed_by(root)));
            let root = signer.map_or(default, |root| root.fingerprint);
            files.root_signer(root, now).map(|authority| (authority, known))
        });
        let opened = opened.await.map_err(|_ending| RevokeError::Interrupted)?;
        let (root, known) = opened.map_err(|source| RevokeError::RootKey { intermediate, source: Box::new(source) })?;
        let until = known.as_ref().unwrap_or(root.info()).validity.not_after() + SKEW;
        let revocation = Revocation { reason, since: crate::issue::whole_seconds(now), until };
        if let Some(known) = &known {
            self.remember_intermediate(known).await?;
        }
        self.extend_list_of(&root, intermediate, revocation, now).await?;
        drop(turn);
        self.refresh_by(force).await?;
        tracing::warn!(target: "alcazar::revoked", %intermediate, %reason, by, "an intermediate was revoked");
        Ok(match known {
            Some(_) => Vec::new(),
            None => vec![format!(
                "the certificate {intermediate} is not known here: nodes and proxies refuse it, and the root's CRL, which names \
                 certificates by their serial number, does not. Compare the fingerprint if the intermediate was one of this cluster"
            )],
        })
    }

    /// Puts a list of the root on record that says one intermediate more than the newest, wherever that is.
    pub(super) async fn extend_list_of(
        &self,
        root: &Authority,
        intermediate: Fingerprint,
        revocation: Revocation,
        now: SystemTime,
    ) -> Result<(), RevokeError> {
        let issuer = ListIssuer::Root(root.info().fingerprint);
        loop {
            let found = self.stored_list(self.trust_domain(), &issuer).await?;
            let in_force = self.revocations();
            let earlier = [found.list.as_ref(), in_force.list(self.trust_domain(), &issuer)];
            let list = with_intermediate(
                &earlier.into_iter().flatten().collect::<Vec<_>>(),
                |version| RevocationList::new(self.trust_domain().clone(), issuer.clone(), version),
                (intermediate, revocation),
                now,
            );
            let chain = [root.info().certificate.clone()];
            let signed = sign(&list, now, root.signer().clone(), &chain).await?;
            // By the same check as everybody's: what no one would take is not put on record.
            let shown = v1::SignedRevocations { lists: vec![signed.clone()] };
            let outcome = Keeper::default().take(&shown, self.hierarchy().bundles(), now);
            if let Some(refused) = outcome.refused.into_iter().next() {
                return Err(RevokeError::Import(refused));
            }
            match self.put_signed(found, &signed).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Keeps the certificate of an intermediate, whose serial number the root's CRL names once it is revoked.
    pub(crate) async fn remember_intermediate(&self, info: &AuthorityInfo) -> Result<(), RecordError> {
        let (name, record) = (format!("{CERTIFICATES}/{}", info.fingerprint), CertificateRecord::new(info));
        match self.0.records.put(family::REVOCATION_LISTS, &name, Expected::Absent, &record).await {
            Err(error) if !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// The certificate of an intermediate: one that was kept, whose key is here, or that is in this replica's ledger, where also
    /// those are that it gave to others.
    pub(super) async fn known_intermediate(&self, print: Fingerprint) -> Result<Option<AuthorityInfo>, UnknownError> {
        let name = format!("{CERTIFICATES}/{print}");
        let found = self.0.records.get::<CertificateRecord>(family::REVOCATION_LISTS, &name).await?;
        if let Some(kept) = found.and_then(|found| found.record.read()) {
            return Ok(Some(kept));
        }
        let files = self.0.files.clone();
        if let Some(here) = blocking(move || files.intermediate_certificate(print)).await? {
            return Ok(Some(here));
        }
        Ok(self.0.ledger.authority(print, self.trust_domain()).await?)
    }
}

/// Why it is not known whether an intermediate is known.
#[derive(Debug, Error)]
pub enum UnknownError {
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The certificates on the disk cannot be read.
    #[error("the certificates on the disk cannot be read")]
    Files(#[from] HierarchyError),
    /// The ledger cannot be read.
    #[error("the ledger cannot be asked for the certificate")]
    Ledger(#[from] LedgerError),
}

/// The list that says this besides all that those before it say, newer than each of them.
pub(crate) fn with_intermediate(
    earlier: &[&RevocationList],
    empty: impl FnOnce(u64) -> RevocationList,
    (intermediate, revocation): (Fingerprint, Revocation),
    now: SystemTime,
) -> RevocationList {
    let newest = earlier.iter().map(|list| list.version()).max().unwrap_or_default();
    let mut list = empty(newest.saturating_add(1).max(seconds::of(now)));
    list.revoke_intermediate(intermediate, revocation);
    for (print, revocation) in earlier.iter().flat_map(|list| list.intermediates()) {
        list.revoke_intermediate(print, revocation);
    }
    list
}

/// A certificate on record.
#[derive(Serialize, Deserialize)]
struct CertificateRecord {
    /// DER, in base64.
    certificate: String,
}

impl CertificateRecord {
    fn new(info: &AuthorityInfo) -> Self {
        Self { certificate: STANDARD.encode(&info.certificate) }
    }

    fn read(&self) -> Option<AuthorityInfo> {
        AuthorityInfo::parse(STANDARD.decode(&self.certificate).ok()?.into()).ok()
    }
}

const CERTIFICATES: &str = "certificates";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_list_of_a_root_forgets_nothing_that_one_before_it_said() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let print = |text: &str| Fingerprint::of(text.as_bytes());
        let why = |reason| Revocation { reason, since: now, until: now + SKEW };
        let (first, later) = (why(RevocationReason::CaCompromise), why(RevocationReason::Superseded));
        let empty =
            |version| RevocationList::new("td".parse().unwrap(), ListIssuer::Root(Fingerprint::of(b"root")), version);
        let one = with_intermediate(&[], empty, (print("one"), first), now);
        assert_eq!((one.version(), one.len()), (1_000, 1));
        // On record and in force may differ: by another replica, or by an import.
        let two = with_intermediate(&[], |_| empty(2_000), (print("two"), first), now);
        let all = with_intermediate(&[&one, &two], empty, (print("three"), later), now);
        assert_eq!((all.version(), all.len()), (2_001, 3));
        let again = with_intermediate(&[&all], empty, (print("one"), later), now);
        assert_eq!(again.intermediate(print("one")), Some(first), "the first time stays");
    }
}
