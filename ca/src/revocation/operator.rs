//! What an operator takes back, and gives back.

use std::time::{Duration, SystemTime};

use alcazar_api::{ca::v1, revocations::Keeper};
use alcazar_identity::{Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason, SpiffeId, SpiffeIdKind};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Entry, Named,
    entry::SKEW,
    refresh::{RefreshError, SIGNED, SignedRecord},
    sign::sign,
};
use crate::{
    authority::AuthorityInfo,
    ca::Ca,
    hierarchy::HierarchyError,
    ledger::LedgerError,
    records::{Lineage, RecordError, family, seconds},
    signer::SignError,
};

/// What is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Serial(String),
    Identity(SpiffeId),
    Intermediate(Fingerprint),
}

impl Ca {
    /// Takes back a certificate or an identity. It is in force when this returns.
    pub(crate) async fn revoke(
        &self,
        subject: Subject,
        reason: RevocationReason,
        by: &str,
    ) -> Result<Option<Entry>, RevokeError> {
        let (now, life) = ((self.0.clock)(), LONGEST_LIFE);
        let entry = match subject {
            Subject::Intermediate(print) => {
                self.revoke_intermediate(print, reason, by).await?;
                return Ok(None);
            }
            Subject::Serial(text) => {
                let serial = RevocationList::normal_serial(&text).ok_or(RevokeError::Serial(text))?;
                let known = self.certificate_on_record(&serial).await?;
                if let Some((id, not_after)) = &known
                    && now > *not_after + SKEW
                {
                    return Err(RevokeError::Over { serial, id: id.clone(), not_after: *not_after });
                }
                Entry::of_serial(serial, known, reason, life, now, by)
            }
            Subject::Identity(id) => {
                self.check_identity(&id)?;
                Entry::of_identity(id, reason, life, now, by)
            }
        };
        let entry = self.put_entry(entry).await?;
        if let Named::Identity { id, .. } = &entry.named {
            self.end_lineage(id).await?;
        }
        self.refresh_revocations().await?;
        let subject = entry.named.key();
        tracing::warn!(target: "alcazar::revoked", subject, reason = %entry.reason, by, "revoked");
        Ok(Some(entry))
    }

    /// Lifts the hold of a certificate, or reinstates an identity; the entry that stays, if one does.
    pub(crate) async fn unrevoke(&self, subject: Subject, by: &str) -> Result<Option<Entry>, RevokeError> {
        let key = match &subject {
            Subject::Intermediate(_) => return Err(RevokeError::Final),
            Subject::Serial(text) => {
                let serial = RevocationList::normal_serial(text).ok_or_else(|| RevokeError::Serial(text.clone()))?;
                format!("serial/{serial}")
            }
            Subject::Identity(id) => format!("identity/{}", id.principal()),
        };
        let left = loop {
            let found = self.0.records.get::<Entry>(family::REVOCATIONS, &key).await?;
            let Some(found) = found else { return Err(RevokeError::NotRevoked(key)) };
            let next = reinstate(found.record, (self.0.clock)())?;
            let outcome = match &next {
                Some(entry) => {
                    let expected = Expected::At(found.revision);
                    self.0.records.put(family::REVOCATIONS, &key, expected, entry).await.map(drop)
                }
                None => self.0.records.delete(family::REVOCATIONS, &key, found.revision).await,
            };
            match outcome {
                Err(error) if error.is_conflict() => {}
                outcome => {
                    outcome?;
                    break next;
                }
            }
        };
        self.refresh_revocations().await?;
        tracing::warn!(target: "alcazar::revoked", subject = key, by, "given back");
        Ok(left)
    }

    /// Takes over lists that others signed; whose.
    pub(crate) async fn import_revocations(
        &self,
        lists: v1::SignedRevocations,
    ) -> Result<Vec<ListIssuer>, RevokeError> {
        let own = ListIssuer::Cluster(self.0.config.cluster.clone());
        let (hierarchy, now) = (self.hierarchy(), (self.0.clock)());
        let mut taken = Vec::new();
        for signed in lists.lists {
            let mut keeper = self.0.revoking.keeper.lock().await.clone();
            let shown = v1::SignedRevocations { lists: vec![signed.clone()] };
            let outcome = keeper.take(&shown, hierarchy.bundles(), now);
            if let Some(refused) = outcome.refused.into_iter().next() {
                return Err(RevokeError::Import(refused));
            }
            // Nothing new, or what is kept here anyhow.
            let Some(issuer) = outcome.taken.into_iter().next().filter(|issuer| *issuer != own) else { continue };
            self.put_signed(&issuer, &signed).await?;
            tracing::warn!(target: "alcazar::revoked", %issuer, "a list of revocations was imported");
            taken.push(issuer);
        }
        self.refresh_revocations().await?;
        Ok(taken)
    }

    async fn revoke_intermediate(
        &self,
        intermediate: Fingerprint,
        reason: RevocationReason,
        by: &str,
    ) -> Result<(), RevokeError> {
        let (hierarchy, now) = (self.hierarchy(), (self.0.clock)());
        if hierarchy.intermediate().info().fingerprint == intermediate {
            return Err(RevokeError::Signs(intermediate));
        }
        let (files, root) = (self.0.files.clone(), hierarchy.root().fingerprint);
        let opened = tokio::task::spawn_blocking(move || {
            let known = files.load(intermediate, now).ok();
            let root = known.as_ref().map_or(root, |signing| signing.root.fingerprint);
            let known = known.map(|signing| signing.authority.info().clone());
            files.root_signer(root).map(|authority| (authority, known))
        });
        let opened = opened.await.map_err(|_ending| RevokeError::Interrupted)?;
        let (root, known) = opened.map_err(|source| RevokeError::RootKey { intermediate, source: Box::new(source) })?;
        let issuer = ListIssuer::Root(root.info().fingerprint);
        let keeper = self.0.revoking.keeper.lock().await;
        let held = keeper.current().list(self.trust_domain(), &issuer).cloned();
        drop(keeper);
        let until = known.as_ref().unwrap_or(root.info()).validity.not_after() + SKEW;
        let list = with_intermediate(
            held.as_ref(),
            RevocationList::new(
                self.trust_domain().clone(),
                issuer.clone(),
                held.as_ref().map_or(0, RevocationList::version).saturating_add(1).max(seconds::of(now)),
            ),
            intermediate,
            Revocation { reason, since: crate::issue::whole_seconds(now), until },
        );
        let chain = [root.info().certificate.clone()];
        let signed = sign(&list, now, root.signer().clone(), &chain).await?;
        // By the same check as everybody's: what no one would take is not put on record.
        let shown = v1::SignedRevocations { lists: vec![signed.clone()] };
        let outcome = Keeper::default().take(&shown, hierarchy.bundles(), now);
        if let Some(refused) = outcome.refused.into_iter().next() {
            return Err(RevokeError::Import(refused));
        }
        if let Some(known) = known {
            self.remember_intermediate(&known).await?;
        }
        self.put_signed(&issuer, &signed).await?;
        self.refresh_revocations().await?;
        tracing::warn!(target: "alcazar::revoked", %intermediate, %reason, by, "an intermediate was revoked");
        Ok(())
    }

    /// An identity that a verifier here would meet, and whose revocation does not lock the operator out.
    fn check_identity(&self, id: &SpiffeId) -> Result<(), RevokeError> {
        if id.trust_domain() != self.trust_domain() || id.path().is_empty() {
            return Err(RevokeError::Foreign(id.clone()));
        }
        if crate::serving::is_the_cas(id) {
            return Err(RevokeError::OurOwn(id.clone()));
        }
        Ok(())
    }

    /// Whom a certificate on record names, and when it ends.
    async fn certificate_on_record(&self, serial: &str) -> Result<Option<(SpiffeId, SystemTime)>, LedgerError> {
        // Here without the zeros that certificates of ours have before it, if any.
        let found = self.0.ledger.find_serial(&format!("{serial:0>32}")).await?;
        Ok(found.map(|record| (record.spiffe_id, record.not_after)))
    }

    /// Puts an entry in place of any before it. What is revoked already stays as it was, but for a hold that becomes final.
    async fn put_entry(&self, entry: Entry) -> Result<Entry, RecordError> {
        let key = entry.named.key();
        loop {
            let found = self.0.records.get::<Entry>(family::REVOCATIONS, &key).await?;
            let expected = match &found {
                Some(found) if stays(&found.record, &entry) => return Ok(found.record.clone()),
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            };
            match self.0.records.put(family::REVOCATIONS, &key, expected, &entry).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(|_| entry),
            }
        }
    }

    async fn put_signed(&self, issuer: &ListIssuer, list: &v1::SignedRevocationList) -> Result<(), RecordError> {
        let name = format!("{SIGNED}/{issuer}");
        loop {
            let found = self.0.records.get::<SignedRecord>(family::REVOCATION_LISTS, &name).await?;
            let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
            let put = self.0.records.put(family::REVOCATION_LISTS, &name, expected, &SignedRecord::new(list)).await;
            match put {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// Keeps the certificate of a revoked intermediate, whose serial number the root's CRL names.
    async fn remember_intermediate(&self, info: &AuthorityInfo) -> Result<(), RecordError> {
        let (name, record) = (format!("{CERTIFICATES}/{}", info.fingerprint), CertificateRecord::new(info));
        match self.0.records.put(family::REVOCATION_LISTS, &name, Expected::Absent, &record).await {
            Err(error) if !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// The certificate of an intermediate that was revoked.
    pub(super) async fn intermediate_on_record(
        &self,
        print: Fingerprint,
    ) -> Result<Option<AuthorityInfo>, RecordError> {
        let name = format!("{CERTIFICATES}/{print}");
        let found = self.0.records.get::<CertificateRecord>(family::REVOCATION_LISTS, &name).await?;
        Ok(found.and_then(|found| found.record.read()))
    }

    /// A revoked node has no lineage any more: once it is reinstated, it must attest anew.
    async fn end_lineage(&self, id: &SpiffeId) -> Result<(), RecordError> {
        if !matches!(id.kind(), SpiffeIdKind::Node { .. }) {
            return Ok(());
        }
        while let Some(found) = self.0.records.get::<Lineage>(family::NODES, id.principal()).await? {
            match self.0.records.delete(family::NODES, id.principal(), found.revision).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome,
            }
        }
        Ok(())
    }
}

/// What becomes of an entry that is given back: of an identity it stays, for its old certificates.
pub(super) fn reinstate(entry: Entry, now: SystemTime) -> Result<Option<Entry>, RevokeError> {
    match entry.named {
        Named::Serial { .. } if entry.reason == RevocationReason::CertificateHold => Ok(None),
        Named::Serial { serial, .. } => Err(RevokeError::NotOnHold { serial, reason: entry.reason }),
        Named::Identity { id, before, .. } => {
            let named = Named::Identity { id, before, reinstated: Some(now) };
            Ok(Some(Entry { named, ..entry }))
        }
    }
}

/// Whether a revocation on record already says what this one would.
pub(super) fn stays(held: &Entry, new: &Entry) -> bool {
    let barred = match &held.named {
        Named::Serial { .. } => true,
        Named::Identity { reinstated, .. } => reinstated.is_none(),
    };
    let was_on_hold = held.reason == RevocationReason::CertificateHold && new.reason != held.reason;
    barred && !was_on_hold
}

fn with_intermediate(
    held: Option<&RevocationList>,
    mut list: RevocationList,
    intermediate: Fingerprint,
    revocation: Revocation,
) -> RevocationList {
    for (print, earlier) in held.into_iter().flat_map(RevocationList::intermediates) {
        list.revoke_intermediate(print, earlier);
    }
    if list.intermediate(intermediate).is_none() {
        list.revoke_intermediate(intermediate, revocation);
    }
    list
}

/// Why nothing was revoked, or given back.
#[derive(Debug, Error)]
pub enum RevokeError {
    /// Not a serial number.
    #[error(
        "{0:?} is not a serial number: at most 40 hexadecimal digits, as in `alcazar ledger list` or openssl's output"
    )]
    Serial(String),
    /// Its time is over anyhow.
    #[error(
        "the certificate {serial} of {id} expired at {}: nobody believes it any more", alcazar_identity::rfc3339(*not_after)
    )]
    Over {
        /// Which.
        serial: String,
        /// Whose.
        id: SpiffeId,
        /// When.
        not_after: SystemTime,
    },
    /// Another trust domain's.
    #[error("{0} is not the identity of a workload or node of this trust domain")]
    Foreign(SpiffeId),
    /// The CA itself.
    #[error(
        "{0} is the CA's own identity: without it no node could hear of any revocation; revoke its intermediate, or one of its certificates by serial number"
    )]
    OurOwn(SpiffeId),
    /// Nothing to give back.
    #[error("{0} is not revoked here; `alcazar revocations` shows what is")]
    NotRevoked(String),
    /// RFC 5280 §5.3.1.
    #[error(
        "the certificate {serial} was revoked for {reason}, which is final; only certificateHold can be lifted. Its holder gets a new certificate by renewing"
    )]
    NotOnHold {
        /// Which.
        serial: String,
        /// Why it was revoked.
        reason: RevocationReason,
    },
    /// An intermediate stays revoked.
    #[error("the revocation of an intermediate is final; make another one")]
    Final,
    /// It signs.
    #[error("the intermediate {0} is the one that signs here; replace it first (`alcazar ca rotate`), then revoke it")]
    Signs(Fingerprint),
    /// The root is offline.
    #[error(
        "the intermediate {intermediate} can be revoked by its root alone, whose key is not here; revoke it at a CA that has the key, and carry the list over: `alcazar revocations export FILE` there, `alcazar revocations import FILE` here"
    )]
    RootKey {
        /// Which.
        intermediate: Fingerprint,
        /// What is missing.
        source: Box<HierarchyError>,
    },
    /// A list that nobody would take.
    #[error("the list is not taken")]
    Import(#[source] alcazar_api::revocations::ListError),
    /// The key did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It is on record, and not in force yet.
    #[error("it is on record, and will be in force once this is mended")]
    Refresh(#[from] RefreshError),
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The ledger cannot be read.
    #[error("the ledger cannot be asked for the certificate")]
    Ledger(#[from] LedgerError),
    /// The process is ending.
    #[error("interrupted")]
    Interrupted,
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

/// No profile gives a longer one.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
