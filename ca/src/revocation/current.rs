//! The present CRL of each intermediate, on record: whoever has its key makes it, and all replicas tell nodes of all.
//!
//! ```text
//! ca/crls/<SHA-256 of the issuer>    the CRL with its issuer's chain, or why there is none
//! ```

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use alcazar_api::ca::v1;
use alcazar_identity::{CertificateDer, Fingerprint, Revocation, verify_crl};
use alcazar_service::process;
use alcazar_store::{Expected, WatchError};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::crl::{CrlError, Made};
use crate::{
    ca::Ca,
    hierarchy::{HierarchyError, blocking},
    records::{RecordError, Stored, family, seconds, text},
};

/// The present CRL of an intermediate. Record `ca/crls/<SHA-256>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CurrentRecord {
    #[serde(with = "text")]
    pub(super) issuer: Fingerprint,
    /// DER, in base64: the issuer's certificate first, the root excluded.
    pub(super) chain: Vec<String>,
    /// DER, in base64; empty: there is none.
    pub(super) crl: String,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trouble: Option<String>,
    #[serde(with = "seconds")]
    pub(super) made: SystemTime,
    /// Until when it is good.
    #[serde(with = "seconds")]
    pub(super) until: SystemTime,
    /// What it says, hashed.
    #[serde(with = "text")]
    pub(super) says: Fingerprint,
    /// Nobody can make another one: the key goes.
    #[serde(default)]
    pub(super) last: bool,
    /// How many revoked certificates there was no room for.
    #[serde(default)]
    pub(super) left_out: usize,
}

impl CurrentRecord {
    /// Whether another is to be made: it says other things, or is no longer young.
    fn is_due(&self, says: Fingerprint, now: SystemTime) -> bool {
        // A clock that is set back makes it one of the future.
        let age = now.duration_since(self.made).ok();
        self.says != says || self.trouble.is_some() || age.is_none_or(|age| age >= RENEW)
    }

    /// Whether nodes are told it no more. They take all back a minute before the first one ends, so this is earlier, and later than
    /// the end of whatever it can be about.
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        self.until <= now + EARLY
    }

    /// As nodes are told it; `None` where there is none that is good.
    pub(super) fn message(&self, now: SystemTime) -> Option<v1::Crl> {
        if self.crl.is_empty() || self.is_over(now) {
            return None;
        }
        let chain = self.chain.iter().map(|one| STANDARD.decode(one)).collect::<Result<_, _>>();
        Some(v1::Crl { crl: STANDARD.decode(&self.crl).ok()?, chain: chain.ok()?, last: self.last })
    }
}

impl Ca {
    /// Makes those CRLs anew that are due, of intermediates whose keys are here.
    pub(super) async fn make_current_crls(&self) -> Result<(), CurrentError> {
        let (now, published) = ((self.0.clock)(), self.follow_revocations().borrow().clone());
        let says = digest(&self.revoked_leaves(&published, now).await?);
        let (hierarchy, known) = (self.hierarchy(), self.current_crls().await?);
        let active = hierarchy.intermediate().info().clone();
        let mut own: BTreeMap<_, _> =
            self.authorities().await?.intermediates.into_iter().map(|info| (info.fingerprint, info)).collect();
        own.insert(active.fingerprint, active.clone());
        // What is over itself vouches for nobody.
        own.retain(|_, info| now <= info.validity.not_after());
        for issuer in own.into_keys() {
            if known.get(&issuer).is_some_and(|found| !found.record.is_due(says, now)) {
                continue;
            }
            let files = self.0.files.clone();
            let chain = match issuer == active.fingerprint {
                true => Ok(hierarchy.upper().to_vec()),
                false => blocking(move || files.load(issuer, now)).await.map(|signing| signing.upper),
            };
            match chain {
                Ok(chain) => self.put_current_crl(issuer, &chain).await?,
                // A replica with a token shares what it cannot open, or a root above it is gone: whoever has it makes it.
                Err(error) => {
                    tracing::debug!(%issuer, reason = %process::chain(&error), "the CRL of an intermediate is not made here");
                }
            }
        }
        self.forget_current_crls(&known).await
    }

    /// Puts the CRL of an intermediate on record as it is now, or why there is none.
    pub(super) async fn put_current_crl(
        &self,
        issuer: Fingerprint,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), CurrentError> {
        let until = (self.0.clock)() + self.longest_life().await? + RENEW + SLACK;
        let made = self.make_crl(issuer, Some(until)).await.map_err(|error| process::chain(&error));
        self.put_crl_on_record(issuer, chain, made, until, false).await
    }

    /// Puts those of the roots on record. Who has no CRL at all checks nothing: where every intermediate is revoked, this has verifiers
    /// refuse what those signed, of which there is none.
    pub(super) async fn put_root_crls(&self) -> Result<(), CurrentError> {
        let now = (self.0.clock)();
        for root in self.hierarchy().roots() {
            let until = now + self.longest_life().await? + RENEW + SLACK;
            let (made, until) = match self.make_crl(root.fingerprint, Some(until)).await {
                Ok(made) => (made, until),
                Err(error) => {
                    let brought = self.brought_crl(root.fingerprint).await?.and_then(ended);
                    let Some((crl, until)) = brought.filter(|(_, until)| *until > now + EARLY) else {
                        tracing::debug!(root = %root.fingerprint, reason = %process::chain(&error), "there is no CRL of a root");
                        continue;
                    };
                    (Made { crl, left_out: 0 }, until)
                }
            };
            let chain = std::slice::from_ref(&root.certificate);
            // Nodes would withhold all for the sake of one that they do not take.
            let bundle = self.own_bundle();
            let good = bundle.as_ref().map(|bundle| verify_crl(&made.crl, chain, bundle, now));
            if let Some(Err(error)) = good {
                tracing::warn!(root = %root.fingerprint, reason = %process::chain(&error), "the CRL of a root is none that nodes take: make it anew, and import it");
                continue;
            }
            self.put_crl_on_record(root.fingerprint, chain, Ok(made), until, false).await?;
        }
        Ok(())
    }

    /// Puts one on record that was made.
    pub(super) async fn put_crl_on_record(
        &self,
        issuer: Fingerprint,
        chain: &[CertificateDer<'static>],
        made: Result<Made, String>,
        until: SystemTime,
        last: bool,
    ) -> Result<(), CurrentError> {
        let (now, published) = ((self.0.clock)(), self.follow_revocations().borrow().clone());
        let made = made.and_then(|made| match made.crl.len() {
            bytes if bytes > LONGEST => Err(format!("it is too long to be told to nodes: {bytes} bytes")),
            _ => Ok(made),
        });
        let record = CurrentRecord {
            issuer,
            chain: chain.iter().map(|der| STANDARD.encode(der)).collect(),
            crl: made.as_ref().map(|made| STANDARD.encode(&made.crl)).unwrap_or_default(),
            left_out: made.as_ref().map_or(0, |made| made.left_out),
            trouble: made.err(),
            made: now,
            until,
            says: digest(&self.revoked_leaves(&published, now).await?),
            last,
        };
        let name = issuer.to_string();
        let found = self.0.records.get::<CurrentRecord>(family::CRLS, &name).await?;
        // That there is still none is no news.
        let told = |found: &Stored<CurrentRecord>| record.trouble.is_some() && found.record.trouble == record.trouble;
        if found.as_ref().is_some_and(told) {
            return Ok(());
        }
        let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
        match self.0.records.put(family::CRLS, &name, expected, &record).await {
            // By another replica that has the same intermediate: the next look compares.
            Err(error) if !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What is on record, by issuer.
    pub(super) async fn current_crls(&self) -> Result<BTreeMap<Fingerprint, Stored<CurrentRecord>>, RecordError> {
        let (stored, _) = self.0.records.list::<CurrentRecord>(family::CRLS).await?;
        Ok(stored.into_iter().map(|stored| (stored.record.issuer, stored)).collect())
    }

    /// Forgets what was over long ago, whosever it was.
    async fn forget_current_crls(
        &self,
        known: &BTreeMap<Fingerprint, Stored<CurrentRecord>>,
    ) -> Result<(), CurrentError> {
        let now = (self.0.clock)();
        for (issuer, found) in known {
            let over = now.duration_since(found.record.until).unwrap_or_default();
            if over < FORGET {
                continue;
            }
            match self.0.records.delete(family::CRLS, &issuer.to_string(), found.revision).await {
                Err(error) if !error.is_conflict() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A CRL with its nextUpdate.
fn ended(crl: Vec<u8>) -> Option<(Vec<u8>, SystemTime)> {
    let (_, list) = CertificateRevocationList::from_der(&crl).ok()?;
    let end = u64::try_from(list.next_update()?.timestamp()).ok()?;
    Some((crl, SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end))?))
}

/// What a CRL says, hashed.
fn digest(revoked: &[(Vec<u8>, Revocation)]) -> Fingerprint {
    // Whichever come first where there is no room for all, it is the same that is said.
    let by_serial: BTreeMap<_, _> = revoked.iter().map(|(serial, revocation)| (serial, revocation)).collect();
    let line = |(serial, revocation): (&Vec<u8>, &Revocation)| {
        format!("{serial:02x?} {} {}\n", revocation.reason.code(), seconds::of(revocation.since))
    };
    Fingerprint::of(by_serial.into_iter().map(line).collect::<String>().as_bytes())
}

/// Why the CRLs on record are not what they should be.
#[derive(Debug, Error)]
pub(super) enum CurrentError {
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// What is revoked is not known.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// The certificates on the disk cannot be read.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// Changes cannot be followed.
    #[error("the records of CRLs cannot be watched")]
    Watch(#[from] WatchError),
}

/// How old one becomes of which nothing changes.
const RENEW: Duration = Duration::from_secs(6 * 3600);
/// Clocks differ.
pub(super) const SLACK: Duration = Duration::from_secs(600);
/// How long before its end one is told no more; less than [`SLACK`], by which that is after all that it is about.
const EARLY: Duration = Duration::from_secs(300);
/// How long beyond its longest life a leaf counts: no longer than there is a CRL for it.
pub(super) const LATE: Duration = Duration::from_secs(240);
const _: () = assert!(LATE.as_secs() + EARLY.as_secs() < SLACK.as_secs());
const FORGET: Duration = Duration::from_secs(24 * 3600);
/// In base64, with its chain, it fits into one value of every store.
const LONGEST: usize = 40 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_made_anew_that_is_old_or_says_something_else() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second);
        let says = Fingerprint::of(b"this");
        let record = CurrentRecord {
            issuer: Fingerprint::of(b"issuer"),
            chain: vec![STANDARD.encode(b"certificate")],
            crl: STANDARD.encode(b"crl"),
            trouble: None,
            made: at(0),
            until: at(1_000),
            says,
            last: true,
            left_out: 0,
        };
        assert!(!record.is_due(says, at(0)) && !record.is_due(says, at(RENEW.as_secs() - 1)));
        assert!(record.is_due(says, at(RENEW.as_secs())));
        assert!(record.is_due(Fingerprint::of(b"that"), at(0)));
        assert!(record.is_due(says, SystemTime::UNIX_EPOCH), "the clock was set back");
        let told = record.message(at(699)).unwrap();
        assert_eq!((told.crl, told.chain, told.last), (b"crl".to_vec(), vec![b"certificate".to_vec()], true));
        // While no agent has to take it back yet.
        assert!(record.message(at(700)).is_none());
        let none = CurrentRecord { crl: String::new(), trouble: Some("too long".into()), ..record };
        assert!(none.is_due(says, at(0)) && none.message(at(0)).is_none());
    }
}
