//! What an operator takes back, and gives back.

use std::time::{Duration, SystemTime};

use alcazar_api::revocations::{MAX_ENTRIES, MAX_LIST};
use alcazar_identity::{Fingerprint, RevocationList, RevocationReason, SpiffeId, SpiffeIdKind};
use alcazar_store::Expected;

use super::{Entry, Named, RevokeError, entry::SKEW, serials::Certificate};
use crate::{
    ca::Ca,
    ledger::{Filter, RecordedKind},
    records::{Lineage, RecordError, family},
};

/// What is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Serial(String),
    Identity(SpiffeId),
    Intermediate {
        print: Fingerprint,
        /// Also where a replica signs with it.
        force: bool,
    },
}

impl Ca {
    /// Takes back a certificate or an identity. It is in force when this returns.
    pub(crate) async fn revoke(
        &self,
        subject: Subject,
        reason: RevocationReason,
        by: &str,
    ) -> Result<Revoked, RevokeError> {
        let now = (self.0.clock)();
        let mut notes = Vec::new();
        let (entry, already) = match subject {
            Subject::Intermediate { print, force } => {
                let notes = self.revoke_intermediate(print, reason, force, by).await?;
                return Ok(Revoked { entry: None, already: false, notes });
            }
            Subject::Serial(text) => {
                let serial = RevocationList::normal_serial(&text).ok_or(RevokeError::Serial(text))?;
                let known = self.certificate_on_record(&serial).await?;
                // A node comes back by a certificate that has ended, but not by one that was revoked.
                let within = self.0.config.nodes.forget_after;
                let after = |id: &SpiffeId| match id.kind() {
                    SpiffeIdKind::Node { .. } => within,
                    _ => Duration::ZERO,
                };
                if let Some((id, not_after)) = &known
                    && now > *not_after + after(id) + SKEW
                {
                    return Err(RevokeError::Over { serial, id: id.clone(), not_after: *not_after });
                }
                let known = known.map(|(id, not_after)| (id.clone(), not_after + after(&id)));
                self.put_entry(Entry::of_serial(serial, known, reason, LONGEST_LIFE + within, now, by)).await?
            }
            Subject::Identity(id) => {
                self.check_identity(&id)?;
                let any = Filter { identity: Some(id.clone()), ..Filter::default() };
                if self.0.ledger.list(any, 1).await?.is_empty() {
                    notes.push(format!(
                        "this replica of the CA has never issued anything to {id}; is it spelled as it should be?"
                    ));
                }
                self.put_identity(id, reason, now, by).await?
            }
        };
        self.refresh_revocations().await?;
        let subject = entry.named.key();
        tracing::warn!(target: "alcazar::revoked", subject, reason = %entry.reason, by, already, "revoked");
        Ok(Revoked { entry: Some(entry), already, notes })
    }

    /// Lifts the hold of a certificate, or reinstates an identity; the entry that stays, if one does.
    pub(crate) async fn unrevoke(&self, subject: Subject, by: &str) -> Result<Option<Entry>, RevokeError> {
        let key = match &subject {
            Subject::Intermediate { .. } => return Err(RevokeError::Final),
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

    /// Puts on record that an identity gets nothing more; whether that was so before.
    pub(super) async fn put_identity(
        &self,
        id: SpiffeId,
        reason: RevocationReason,
        now: SystemTime,
        by: &str,
    ) -> Result<(Entry, bool), RevokeError> {
        let living = self.certificates_in_ledger(&id, now).await?;
        let entry = Entry::of_identity(id.clone(), newest(&living), reason, LONGEST_LIFE, now, by);
        let put = self.put_entry(entry).await?;
        self.end_lineage(&id).await?;
        self.put_certificates(&id, &living).await?;
        Ok(put)
    }

    /// An identity that a verifier here would meet, and whose revocation does not lock the operator out.
    pub(super) fn check_identity(&self, id: &SpiffeId) -> Result<(), RevokeError> {
        if id.trust_domain() != self.trust_domain() || id.path().is_empty() {
            return Err(RevokeError::Foreign(id.clone()));
        }
        if crate::serving::is_the_cas(id) {
            return Err(RevokeError::OurOwn(id.clone()));
        }
        Ok(())
    }

    /// Whom a certificate on record names, and when it ends.
    async fn certificate_on_record(&self, serial: &str) -> Result<Option<(SpiffeId, SystemTime)>, RevokeError> {
        // Here without the zeros that certificates of ours have before it, if any.
        let found = self.0.ledger.find_serial(&format!("{serial:0>32}")).await?;
        if let Some(record) = found.as_ref().filter(|record| record.kind.is_authority())
            && let Some(certificate) = record.kind.certificate()
        {
            let fingerprint = Fingerprint::of(certificate);
            return Err(RevokeError::Authority { serial: record.serial.clone(), fingerprint });
        }
        match found {
            Some(record) if !matches!(record.kind, RecordedKind::Certificate(_)) => {
                Err(RevokeError::Token { id: record.serial, of: record.spiffe_id, expires: record.not_after })
            }
            found => Ok(found.map(|record| (record.spiffe_id, record.not_after))),
        }
    }

    /// Puts an entry on record, or adds what it says to the one that is; whether that said it all before.
    async fn put_entry(&self, entry: Entry) -> Result<(Entry, bool), RevokeError> {
        let key = entry.named.key();
        loop {
            let found = self.0.records.get::<Entry>(family::REVOCATIONS, &key).await?;
            let (next, expected) = match &found {
                Some(found) => (found.record.again(&entry), Expected::At(found.revision)),
                None => {
                    self.check_room()?;
                    (entry.clone(), Expected::Absent)
                }
            };
            if found.as_ref().is_some_and(|found| found.record == next) {
                return Ok((next, true));
            }
            match self.0.records.put(family::REVOCATIONS, &key, expected, &next).await {
                Err(error) if error.is_conflict() => {}
                outcome => {
                    outcome?;
                    return Ok((next, false));
                }
            }
        }
    }

    /// A list that is longer than verifiers read would freeze what they hold.
    fn check_room(&self) -> Result<(), RevokeError> {
        let published = self.0.revoking.published.borrow();
        let (entries, bytes) = (published.entries.len(), published.bytes);
        if entries < MAX_ENTRIES && bytes < MAX_LIST { Ok(()) } else { Err(RevokeError::Full { entries, bytes }) }
    }

    /// A revoked node has no lineage any more: once it is reinstated, it must attest anew.
    pub(crate) async fn end_lineage(&self, id: &SpiffeId) -> Result<(), RecordError> {
        if !matches!(id.kind(), SpiffeIdKind::Node { .. }) {
            return Ok(());
        }
        self.0.records.forget_adopted(id).await?;
        while let Some(found) = self.0.records.get::<Lineage>(family::NODES, id.principal()).await? {
            match self.0.records.delete(family::NODES, id.principal(), found.revision).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome,
            }
        }
        Ok(())
    }
}

/// What came of a revocation.
#[derive(Debug)]
pub(crate) struct Revoked {
    /// As it is on record; an intermediate is on the list of its root.
    pub(crate) entry: Option<Entry>,
    /// Whether all of it was said before.
    pub(crate) already: bool,
    /// What the operator should know besides.
    pub(crate) notes: Vec<String>,
}

/// The last not-before and the last not-after of these.
fn newest(certificates: &[Certificate]) -> Option<(SystemTime, SystemTime)> {
    let dates = certificates.iter().map(|certificate| (certificate.not_before, certificate.not_after));
    dates.reduce(|(from, end), (another, its_end)| (from.max(another), end.max(its_end)))
}

/// What becomes of an entry that is given back: of an identity it stays, for its old certificates, and for those that somebody
/// issued meanwhile who had not heard: a replica that was cut off, another cluster.
pub(super) fn reinstate(entry: Entry, now: SystemTime) -> Result<Option<Entry>, RevokeError> {
    match entry.named {
        Named::Serial { .. } if entry.reason == RevocationReason::CertificateHold => Ok(None),
        Named::Serial { serial, .. } => Err(RevokeError::NotOnHold { serial, reason: entry.reason }),
        Named::Identity { id, reinstated: Some(at), .. } => Err(RevokeError::Reinstated { id, at }),
        Named::Identity { id, before, reinstated: None } => {
            let before = before.max(crate::issue::whole_seconds(now) + Duration::from_secs(1));
            let until = entry.until.max(now + LONGEST_LIFE + SKEW);
            let named = Named::Identity { id, before, reinstated: Some(now) };
            Ok(Some(Entry { named, until, ..entry }))
        }
    }
}

/// No profile gives a longer one.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
