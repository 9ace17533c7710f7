//! Lists that others signed, on record as they were signed: whole, although a store's values are short.
//!
//! ```text
//! signed/<issuer>                  the first part, and the names of those that follow: what is put here is the list, or that it was dropped
//! signed/<trust domain>/<issuer>   the same of another trust domain, whose clusters may have the names of ours
//! parts/<SHA-256>                  a part, under its own hash
//! ```
//!
//! **Invariant**: what is put here was proved at that moment, by the check of everybody who is shown a list. That it can be proved
//! no more, years later, takes nothing back.

use alcazar_api::{ca::v1, revocations::signed_list};
use alcazar_identity::{Fingerprint, ListIssuer, RevocationList, TrustDomain};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::dropped::DroppedRecord;
use crate::{
    ca::Ca,
    records::{RecordError, family},
};

/// A list that somebody signed, on record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SignedRecord {
    /// The beginning of the message, in base64.
    list: String,
    /// The hashes of what follows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<String>,
    /// Where it is held no more: there is no list then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dropped: Option<DroppedRecord>,
}

/// A part of one.
#[derive(Serialize, Deserialize)]
struct PartRecord {
    /// In base64.
    part: String,
}

/// The lists of others on record.
pub(super) struct OnRecord {
    pub(super) signed: v1::SignedRevocations,
    /// Those that are held no more.
    pub(super) dropped: Vec<DroppedRecord>,
}

/// What is on record of one issuer.
pub(super) struct StoredList {
    name: String,
    expected: Expected,
    /// The parts that go when it is replaced.
    parts: Vec<String>,
    pub(super) list: Option<RevocationList>,
}

impl Ca {
    /// The lists of others. What cannot be read whole is left out, and told.
    pub(super) async fn signed_lists(&self) -> Result<OnRecord, RecordError> {
        let (stored, _) =
            self.0.records.list::<SignedRecord>(&format!("{}/{SIGNED}", family::REVOCATION_LISTS)).await?;
        let (mut lists, mut dropped) = (Vec::with_capacity(stored.len()), Vec::new());
        for stored in stored {
            if let Some(record) = stored.record.dropped {
                dropped.push(record);
                continue;
            }
            match self.read_list(&stored.record).await? {
                Some(list) => lists.push(list),
                None => {
                    tracing::error!(target: "alcazar::revoked", "a list of revocations on record is damaged; import it again");
                }
            }
        }
        Ok(OnRecord { signed: v1::SignedRevocations { lists }, dropped })
    }

    /// The list of an issuer on record, and what a write in its place must find there.
    pub(super) async fn stored_list(
        &self,
        trust_domain: &TrustDomain,
        issuer: &ListIssuer,
    ) -> Result<StoredList, RecordError> {
        let name = match trust_domain == self.trust_domain() {
            true => format!("{SIGNED}/{issuer}"),
            false => format!("{SIGNED}/{trust_domain}/{issuer}"),
        };
        let Some(found) = self.0.records.get::<SignedRecord>(family::REVOCATION_LISTS, &name).await? else {
            return Ok(StoredList { name, expected: Expected::Absent, parts: Vec::new(), list: None });
        };
        let list = match found.record.dropped {
            Some(_) => None,
            None => self.read_list(&found.record).await?.and_then(|signed| signed_list(&signed).ok()),
        };
        Ok(StoredList { name, expected: Expected::At(found.revision), parts: found.record.more, list })
    }

    /// Puts a list in the place of the one that was found.
    pub(super) async fn put_signed(
        &self,
        found: StoredList,
        list: &v1::SignedRevocationList,
    ) -> Result<(), RecordError> {
        let bytes = list.encode_to_vec();
        let mut parts = bytes.chunks(PART);
        let first = STANDARD.encode(parts.next().unwrap_or_default());
        let mut more = Vec::new();
        // What is named is there before it is named.
        for part in parts {
            let hash = Fingerprint::of(part).to_string();
            let record = PartRecord { part: STANDARD.encode(part) };
            match self.0.records.put(family::REVOCATION_LISTS, &part_name(&hash), Expected::Absent, &record).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => more.push(hash),
            }
        }
        self.put_record(found, SignedRecord { list: first, more, dropped: None }).await
    }

    /// Puts in the place of the one that was found that it is held no more.
    pub(super) async fn put_drop(&self, found: StoredList, dropped: &DroppedRecord) -> Result<(), RecordError> {
        self.put_record(found, SignedRecord { dropped: Some(dropped.clone()), ..SignedRecord::default() }).await
    }

    async fn put_record(&self, found: StoredList, record: SignedRecord) -> Result<(), RecordError> {
        self.0.records.put(family::REVOCATION_LISTS, &found.name, found.expected, &record).await?;
        for hash in found.parts.iter().filter(|hash| !record.more.contains(hash)) {
            let name = part_name(hash);
            if let Some(part) = self.0.records.get::<PartRecord>(family::REVOCATION_LISTS, &name).await? {
                match self.0.records.delete(family::REVOCATION_LISTS, &name, part.revision).await {
                    Err(error) if !error.is_conflict() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn read_list(&self, record: &SignedRecord) -> Result<Option<v1::SignedRevocationList>, RecordError> {
        let Ok(mut bytes) = STANDARD.decode(&record.list) else { return Ok(None) };
        for hash in &record.more {
            let part = self.0.records.get::<PartRecord>(family::REVOCATION_LISTS, &part_name(hash)).await?;
            match part.and_then(|part| STANDARD.decode(part.record.part).ok()) {
                Some(part) => bytes.extend(part),
                None => return Ok(None),
            }
        }
        Ok(v1::SignedRevocationList::decode(bytes.as_slice()).ok())
    }
}

fn part_name(hash: &str) -> String {
    format!("{PARTS}/{hash}")
}

/// The folder of lists that are kept as they were signed.
const SIGNED: &str = "signed";
const PARTS: &str = "parts";
/// In base64 it fits into one value of every store.
const PART: usize = 40 * 1024;
