//! Every certificate that was issued.

use std::time::{Duration, SystemTime};

use alcazar_identity::SpiffeId;
use alcazar_store::Expected;
use serde::{Deserialize, Serialize};

use super::{RecordError, Records, family, prefix, read, seconds, text};
use crate::{issue::Issued, jwt_authority::JwtFacts};

/// A certificate on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedRecord {
    /// The serial number, in lower-case hexadecimal.
    pub serial: String,
    /// Whom it names.
    #[serde(with = "text")]
    pub spiffe_id: SpiffeId,
    /// When it was issued.
    #[serde(with = "seconds")]
    pub issued_at: SystemTime,
    /// From when it is good.
    #[serde(with = "seconds")]
    pub not_before: SystemTime,
    /// Until when it is good.
    #[serde(with = "seconds")]
    pub not_after: SystemTime,
    /// Who asked for it: a SPIFFE ID, a join token's hash, or the CA itself.
    pub caller: String,
    /// The SHA-256 of its public key.
    pub key: String,
}

impl IssuedRecord {
    fn new(issued: &Issued, caller: &str) -> Self {
        Self {
            serial: issued.serial.to_string(),
            spiffe_id: issued.id.clone(),
            issued_at: issued.issued_at,
            not_before: issued.validity.not_before(),
            not_after: issued.validity.not_after(),
            caller: caller.into(),
            key: issued.key_hash.to_string(),
        }
    }
}

/// How many records are read at a time.
const PAGE: usize = 500;

impl Records {
    /// Puts a certificate on record; durable when it returns. Nobody gets a certificate before that.
    pub(crate) async fn record(&self, issued: &Issued, caller: &str) -> Result<(), RecordError> {
        let name = format!("{}/{}", newest_first(issued.issued_at), issued.serial);
        self.put(family::ISSUED, &name, Expected::Absent, &IssuedRecord::new(issued, caller)).await?;
        Ok(())
    }

    /// The newest `limit` certificates, of `id` alone where it is given.
    pub(crate) async fn issued(&self, id: Option<&SpiffeId>, limit: usize) -> Result<Vec<IssuedRecord>, RecordError> {
        let prefix = prefix(family::ISSUED)?;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.store().page(&prefix, after.as_ref(), PAGE).await?;
            for entry in &page.entries {
                let record: IssuedRecord = read(entry)?.record;
                if id.is_none_or(|id| record.spiffe_id == *id) {
                    found.push(record);
                }
                if found.len() >= limit {
                    return Ok(found);
                }
            }
            after = page.entries.last().map(|entry| entry.key().clone());
            if !page.more {
                return Ok(found);
            }
        }
    }

    /// Forgets certificates and JWT-SVIDs that were issued before `before`; how many.
    pub(crate) async fn forget_issued(&self, before: SystemTime) -> Result<usize, RecordError> {
        let certificates = self.forget_family(family::ISSUED, before).await?;
        Ok(certificates + self.forget_family(family::ISSUED_JWT, before).await?)
    }

    async fn forget_family(&self, family: &str, before: SystemTime) -> Result<usize, RecordError> {
        let prefix = prefix(family)?;
        let mut after = Some(prefix.key(&newest_first(before)).map_err(RecordError::Key)?);
        let mut forgotten = 0;
        loop {
            let page = self.store().page(&prefix, after.as_ref(), PAGE).await?;
            for entry in &page.entries {
                match self.store().delete_if(entry.key(), entry.revision()).await {
                    // Another replica was quicker.
                    Ok(_) | Err(alcazar_store::WriteError::Conflict { .. }) => forgotten += 1,
                    Err(error) => return Err(error.into()),
                }
            }
            after = page.entries.last().map(|entry| entry.key().clone());
            if !page.more {
                return Ok(forgotten);
            }
        }
    }
}

/// A JWT-SVID on record: all but the token, which is a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IssuedJwtRecord {
    #[serde(with = "text")]
    subject: SpiffeId,
    audience: Vec<String>,
    jti: String,
    key_id: String,
    #[serde(with = "seconds")]
    issued_at: SystemTime,
    #[serde(with = "seconds")]
    expires: SystemTime,
    caller: String,
}

impl Records {
    /// Puts a JWT-SVID on record; durable when it returns. Nobody gets a token before that.
    pub(crate) async fn record_jwt(&self, facts: &JwtFacts, caller: &str) -> Result<(), RecordError> {
        let name = format!("{}/{}", newest_first(facts.issued_at), facts.id);
        let facts = facts.clone();
        let record = IssuedJwtRecord {
            subject: facts.subject,
            audience: facts.audience,
            jti: facts.id,
            key_id: facts.key_id,
            issued_at: facts.issued_at,
            expires: facts.expires,
            caller: caller.into(),
        };
        self.put(family::ISSUED_JWT, &name, Expected::Absent, &record).await?;
        Ok(())
    }
}

/// A text that sorts the later before the earlier.
fn newest_first(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    format!("{:010x}", (1u64 << 40).saturating_sub(1).saturating_sub(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_sorts_before_earlier() {
        let at = |seconds| newest_first(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert!(at(2_000_000_001) < at(2_000_000_000));
        assert!(at(1_999_999_999) > at(2_000_000_000));
        assert_eq!(at(0).len(), at(4_000_000_000).len());
    }
}
