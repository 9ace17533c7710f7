//! The numbers of CRLs: of two of one issuer, the later one has the higher number, whichever replica made it and whatever its
//! clock says.
//!
//! **Source**: RFC 5280 §5.2.3.

use std::time::SystemTime;

use alcazar_identity::Fingerprint;
use alcazar_service::process;
use alcazar_store::Expected;
use serde::{Deserialize, Serialize};

use crate::{
    ca::Ca,
    records::{RecordError, family, seconds},
};

/// The number of the last CRL of an issuer. Record `ca/revocation-lists/numbers/<SHA-256>`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct NumberRecord {
    last: u64,
}

impl Ca {
    /// The number of the next CRL of an issuer. While the store takes nothing it is not on record: nothing is revoked meanwhile
    /// either, and a list that ends while verifiers wait for the next one would cut off everybody.
    pub(super) async fn next_crl_number(&self, issuer: Fingerprint, now: SystemTime) -> u64 {
        let (name, mut known) = (name_of(issuer), None);
        loop {
            let recorded = async {
                let found = self.0.records.get::<NumberRecord>(family::REVOCATION_LISTS, &name).await?;
                known = found.as_ref().map(|found| found.record.last);
                let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
                let last = next(known, now);
                self.0.records.put(family::REVOCATION_LISTS, &name, expected, &NumberRecord { last }).await?;
                Ok::<_, RecordError>(last)
            };
            match recorded.await {
                Ok(number) => return number,
                Err(error) if error.is_conflict() => {}
                Err(error) => {
                    tracing::warn!(reason = %process::chain(&error), "the number of a CRL is not on record: a later one may have the same");
                    return next(known, now);
                }
            }
        }
    }

    /// Forgets the number of an issuer of whom there will be no CRL any more.
    pub(super) async fn forget_crl_number(&self, issuer: Fingerprint) -> Result<(), RecordError> {
        let name = name_of(issuer);
        let Some(found) = self.0.records.get::<NumberRecord>(family::REVOCATION_LISTS, &name).await? else {
            return Ok(());
        };
        match self.0.records.delete(family::REVOCATION_LISTS, &name, found.revision).await {
            Err(error) if !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}

/// By the clock, so that it goes on from before also where the store has begun anew; but higher than the last.
fn next(last: Option<u64>, now: SystemTime) -> u64 {
    seconds::of(now).max(last.map_or(0, |last| last.saturating_add(1)))
}

fn name_of(issuer: Fingerprint) -> String {
    format!("numbers/{issuer}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_later_list_has_a_higher_number_whatever_the_clock_does() {
        let check = |last, second, expected| {
            assert_eq!(next(last, SystemTime::UNIX_EPOCH + Duration::from_secs(second)), expected);
        };
        check(None, 1000, 1000);
        check(Some(1000), 2000, 2000);
        check(Some(2000), 2000, 2001);
        check(Some(2001), 1500, 2002);
        check(Some(u64::MAX), 1500, u64::MAX);
    }
}
