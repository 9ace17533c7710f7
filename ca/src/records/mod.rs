//! What the CA remembers, and the decisions that follow from it.
//!
//! Each kind of record is plain data with a pure decision beside it; `Records` moves them in and out of the store.
//!
//! ```text
//! ca/trust/state                the trusted roots and the sequence of the set: a lost root file is noticed
//! ca/trust/active-<replica>     the intermediate that each replica signs with
//! ca/replicas/<replica>         how each replica is, as it says itself
//! ca/joining/requests/<replica> a replica asks the others for an intermediate; beside it the answers
//! ca/hierarchy/root             the fingerprint of the root, as earlier versions wrote it
//! ca/tokens/<sha-256>           join tokens
//! ca/nodes/<td>/node/<c>/<n>    the lineage of each node
//! ca/registrations/<id>         which workloads a node may ask for
//! ca/heads/<ledger>             the last signed head of each replica's ledger
//! ca/witnesses/<ledger>/<replica> how much of it another replica has seen, signed
//! ca/proofs/<ledger>            that the head goes on from what the witnesses have seen
//! ca/federation/<trust domain>  the bundles of other trust domains
//! ca/rotation/current           the rotation that is under way, or the last one; beside it its fence, and how long leaves may live
//! ca/adoption/<td>/node/<c>/<n> what each node enforces, as it said last
//! ca/clusters/<name>            how far another cluster under the root is with its rotation
//! ca/revocations/<kind>/<what>  what was taken back
//! ca/revocation-lists/<which>   the version of our list, and lists that others signed
//! ca/crls/<sha-256>             the present CRL of each intermediate
//! ```

mod lineage;
mod mirror;
mod pending;
mod registration;
mod token;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_store::{Entry, Expected, Key, ParseKeyError, Prefix, Revision, Store, StoreError, WriteError};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use self::mirror::Mirrors;
pub use self::registration::{ParseRegistrationError, Registration, RegistrationId};
pub(crate) use self::{
    lineage::{KeyTag, Leaf, Lineage, LineageRefusal, Mark, Renewal},
    pending::{Dropped, Pending, Settlement, is_younger},
    token::{Attestation, Consumed, TokenRecord, TokenRefusal},
};
use crate::replicas::ReplicaId;

/// The families of keys.
pub(crate) mod family {
    pub(crate) const HIERARCHY: &str = "ca/hierarchy";
    pub(crate) const TRUST: &str = "ca/trust";
    pub(crate) const TOKENS: &str = "ca/tokens";
    pub(crate) const NODES: &str = "ca/nodes";
    pub(crate) const REGISTRATIONS: &str = "ca/registrations";
    pub(crate) const HEADS: &str = "ca/heads";
    pub(crate) const WITNESSES: &str = "ca/witnesses";
    pub(crate) const PROOFS: &str = "ca/proofs";
    pub(crate) const FEDERATION: &str = "ca/federation";
    pub(crate) const ROTATION: &str = "ca/rotation";
    pub(crate) const ADOPTION: &str = "ca/adoption";
    pub(crate) const CLUSTERS: &str = "ca/clusters";
    pub(crate) const REPLICAS: &str = "ca/replicas";
    pub(crate) const JOINING_REQUESTS: &str = "ca/joining/requests";
    pub(crate) const JOINING_ANSWERS: &str = "ca/joining/answers";
    pub(crate) const REVOCATIONS: &str = "ca/revocations";
    pub(crate) const REVOCATION_LISTS: &str = "ca/revocation-lists";
    pub(crate) const REVOKED_CERTIFICATES: &str = "ca/revoked-certificates";
    pub(crate) const CRLS: &str = "ca/crls";
}

/// The store, with records for values.
#[derive(Clone)]
pub(crate) struct Records {
    store: Arc<dyn Store>,
    /// Whose records these are, where each replica has its own.
    replica: ReplicaId,
    mirrors: Arc<Mirrors>,
    /// Reading the registrations anew.
    listing: Arc<mirror::Listing>,
}

/// A record and the revision that wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    pub(crate) record: T,
    pub(crate) revision: Revision,
}

impl Records {
    pub(crate) fn new(store: Arc<dyn Store>, replica: ReplicaId) -> Self {
        Self { store, replica, mirrors: Arc::default(), listing: Arc::default() }
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// This replica.
    pub(crate) fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        family: &str,
        name: &str,
    ) -> Result<Option<Stored<T>>, RecordError> {
        self.store.get(&key(family, name)?).await?.map(|entry| read(&entry)).transpose()
    }

    /// When the record was written last; what is in it is not looked at.
    pub(crate) async fn revision_of(&self, family: &str, name: &str) -> Result<Option<Revision>, RecordError> {
        Ok(self.store.get(&key(family, name)?).await?.map(|entry| entry.revision()))
    }

    pub(crate) async fn put<T: Serialize>(
        &self,
        family: &str,
        name: &str,
        expected: Expected,
        record: &T,
    ) -> Result<Revision, RecordError> {
        let key = key(family, name)?;
        let value = serde_json::to_vec(record).map_err(|source| RecordError::Encode { key: key.clone(), source })?;
        let revision = self.store.put_if(&key, expected, value.clone()).await?;
        self.mirrors.note(family, name, &Entry::new(key, value, revision))?;
        Ok(revision)
    }

    fn mirrors(&self) -> &Mirrors {
        &self.mirrors
    }

    fn listing(&self) -> &mirror::Listing {
        &self.listing
    }

    pub(crate) async fn delete(&self, family: &str, name: &str, expected: Revision) -> Result<(), RecordError> {
        let revision = self.store.delete_if(&key(family, name)?, expected).await?;
        self.mirrors.note_deleted(family, name, revision);
        Ok(())
    }

    /// Every record of a family known to be small.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        family: &str,
    ) -> Result<(Vec<Stored<T>>, Revision), RecordError> {
        let listing = self.store.list(&prefix(family)?).await?;
        let records = listing.entries.iter().map(read).collect::<Result<_, _>>()?;
        Ok((records, listing.revision))
    }
}

pub(crate) fn prefix(family: &str) -> Result<Prefix, RecordError> {
    family.parse().map_err(RecordError::Key)
}

fn key(family: &str, name: &str) -> Result<Key, RecordError> {
    prefix(family)?.key(name).map_err(RecordError::Key)
}

/// The record in an entry.
pub(crate) fn read<T: DeserializeOwned>(entry: &Entry) -> Result<Stored<T>, RecordError> {
    let record = decode(entry.value()).map_err(|source| RecordError::Decode { key: entry.key().clone(), source })?;
    Ok(Stored { record, revision: entry.revision() })
}

fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(value)
}

/// Reads a value as each kind of record that the CA keeps; for the fuzzer, which finds inputs that panic.
pub fn decode_any(value: &[u8]) -> usize {
    [
        decode::<TokenRecord>(value).is_ok(),
        decode::<Lineage>(value).is_ok(),
        decode::<Pending>(value).is_ok(),
        decode::<Registration>(value).is_ok(),
        decode::<crate::ledger::HeadRecord>(value).is_ok(),
        decode::<crate::revocation::Entry>(value).is_ok(),
        decode::<crate::replicas::Presence>(value).is_ok(),
    ]
    .into_iter()
    .filter(|read| *read)
    .count()
}

/// Why a record could not be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The name cannot be part of a key.
    #[error("the name cannot be kept in the store")]
    Key(#[source] ParseKeyError),
    /// What is stored is not such a record.
    #[error("the record {key} in the store cannot be read; it was written by another version of this program")]
    Decode {
        /// The record.
        key: Key,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A record has no JSON form.
    #[error("the record {key} cannot be written")]
    Encode {
        /// The record.
        key: Key,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The write was not made.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RecordError {
    /// Whether nobody answered, so that the record is neither known nor denied; a write may have been made.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            Self::Write(error) => error.is_away(),
            Self::Store(error) => error.is_away(),
            _ => false,
        }
    }

    /// Whether somebody else changed the record first.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Write(WriteError::Conflict { .. }))
    }
}

/// Moments in records are whole seconds since 1970, as in certificates.
pub(crate) mod seconds {
    use super::{Duration, SystemTime};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn of(at: SystemTime) -> u64 {
        at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    pub(crate) fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(of(*at))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let seconds = u64::deserialize(deserializer)?;
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        at.ok_or_else(|| serde::de::Error::custom("a moment beyond all time"))
    }
}

/// Values that have a text form, stored as that text.
pub(crate) mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Sets of values that have a text form, stored as those texts.
pub(crate) mod texts {
    use std::{collections::BTreeSet, fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(values: &BTreeSet<T>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<BTreeSet<T>, D::Error>
    where
        T: FromStr<Err: Display> + Ord,
        D: Deserializer<'de>,
    {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
    }
}
