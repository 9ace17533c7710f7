//! The last CRL of an intermediate that a rotation has replaced: its key goes with the rotation, and what it has signed may be looked at
//! for a while.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;
use alcazar_service::process;
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::crl::{CrlError, Made};
use crate::{
    ca::Ca,
    hierarchy::blocking,
    records::{RecordError, family, seconds, text},
};

/// A CRL that nobody can make anew.
#[derive(Serialize, Deserialize)]
struct LastRecord {
    #[serde(with = "text")]
    issuer: Fingerprint,
    /// DER, in base64.
    crl: String,
    /// Nothing that its issuer has signed is good any more then.
    #[serde(with = "seconds")]
    until: SystemTime,
}

impl Ca {
    /// Keeps what an intermediate's CRL says now, good until its last leaf is over. It is about to go: where that does not succeed, the log
    /// says so, and nodes and proxies, which do not go by it, lose nothing.
    pub(crate) async fn keep_last_crl(&self, issuer: Fingerprint) -> Result<(), RecordError> {
        let (now, files) = ((self.0.clock)(), self.0.files.clone());
        let until = now + self.longest_life().await? + SLACK;
        let made = self.make_crl(issuer, Some(until)).await;
        // For nodes, who are told all CRLs or none.
        let told = made.as_ref().map(Made::clone).map_err(|error| process::chain(error));
        let kept = async {
            let chain = blocking(move || files.load(issuer, now)).await?.upper;
            self.put_crl_on_record(issuer, &chain, told, until, true).await
        };
        if let Err(error) = kept.await {
            tracing::warn!(target: "alcazar::revoked", %issuer, reason = %process::chain(&error), "an intermediate is removed, and nodes are not told its last CRL");
        }
        let crl = match made {
            Ok(made) if made.crl.len() <= LONGEST => made.crl,
            Ok(made) => {
                tracing::warn!(target: "alcazar::revoked", %issuer, bytes = made.crl.len(), "the last CRL of an intermediate that is removed is too long to be kept");
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(target: "alcazar::revoked", %issuer, reason = %process::chain(&error), "an intermediate is removed, and its last CRL was not made");
                return Ok(());
            }
        };
        self.forget_last_crls().await?;
        let record = LastRecord { issuer, crl: STANDARD.encode(crl), until };
        let name = name_of(issuer);
        loop {
            let found = self.0.records.get::<LastRecord>(family::REVOCATION_LISTS, &name).await?;
            let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
            match self.0.records.put(family::REVOCATION_LISTS, &name, expected, &record).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// The last CRL of an intermediate whose key is gone.
    pub(super) async fn last_crl(&self, issuer: Fingerprint) -> Result<Option<Vec<u8>>, CrlError> {
        let found = self.0.records.get::<LastRecord>(family::REVOCATION_LISTS, &name_of(issuer)).await?;
        let good = found.map(|found| found.record).filter(|record| record.until > (self.0.clock)());
        Ok(good.and_then(|record| STANDARD.decode(record.crl).ok()))
    }

    /// Whose last CRLs there are.
    pub(super) async fn issuers_of_last_crls(&self) -> Result<BTreeSet<Fingerprint>, RecordError> {
        let (stored, _) = self.0.records.list::<LastRecord>(&format!("{}/{LAST}", family::REVOCATION_LISTS)).await?;
        Ok(stored.into_iter().map(|stored| stored.record.issuer).collect())
    }

    async fn forget_last_crls(&self) -> Result<(), RecordError> {
        let (stored, _) = self.0.records.list::<LastRecord>(&format!("{}/{LAST}", family::REVOCATION_LISTS)).await?;
        let now = (self.0.clock)();
        for over in stored.into_iter().filter(|stored| stored.record.until <= now) {
            match self.0.records.delete(family::REVOCATION_LISTS, &name_of(over.record.issuer), over.revision).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => self.forget_crl_number(over.record.issuer).await?,
            }
        }
        Ok(())
    }
}

fn name_of(issuer: Fingerprint) -> String {
    format!("{LAST}/{issuer}")
}

const LAST: &str = "last";
/// Clocks differ.
const SLACK: Duration = Duration::from_secs(600);
/// In base64 it fits into one value of every store.
const LONGEST: usize = 40 * 1024;
