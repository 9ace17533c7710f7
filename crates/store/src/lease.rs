//! What one party at a time may do: a lease is a record that is taken and kept by compare-and-swap.

use std::time::{Duration, SystemTime};

use thiserror::Error;

use crate::{Expected, Key, ParseKeyError, Revision, Store, StoreError, WriteError};

/// A lease that this party holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    key: Key,
    holder: String,
    expires: SystemTime,
    revision: Revision,
}

impl Lease {
    /// Who holds it.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// When it ends, to the millisecond. Two parties compare it with their own clocks: choose a life much longer than
    /// their clocks differ, and stop work before it ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Rises each time the lease is taken or renewed: give it along with what is done under the lease, so that
    /// work of an earlier holder can be told and refused.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether it still holds at `now`.
    pub fn holds(&self, now: SystemTime) -> bool {
        now < self.expires
    }
}

/// Why a lease was not had.
#[derive(Clone, Debug, Error)]
pub enum LeaseError {
    /// Another party holds it.
    #[error("the lease {name} is held by {holder}")]
    Held {
        /// The lease's name.
        name: String,
        /// Who holds it.
        holder: String,
        /// Until when, at the latest.
        until: SystemTime,
    },
    /// Another party has taken it since, or it was given back.
    #[error("the lease {name} was lost to another holder")]
    Lost {
        /// The lease's name.
        name: String,
    },
    /// The name cannot be part of a key.
    #[error("not a lease name")]
    Name(#[from] ParseKeyError),
    /// What is stored under the lease's key is not a lease.
    #[error("the record {0} is not a lease")]
    Malformed(Key),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(crate) async fn acquire<S: Store + ?Sized>(
    store: &S,
    name: &str,
    holder: &str,
    ttl: Duration,
    now: SystemTime,
) -> Result<Lease, LeaseError> {
    let key: Key = format!("leases/{name}").parse()?;
    loop {
        let expected = match store.get(&key).await? {
            None => Expected::Absent,
            Some(entry) => {
                let (until, other) = decode(entry.value()).ok_or_else(|| LeaseError::Malformed(key.clone()))?;
                if other != holder && now < until {
                    return Err(LeaseError::Held { name: name.into(), holder: other.into(), until });
                }
                Expected::At(entry.revision())
            }
        };
        match put(store, &key, expected, holder, ttl, now).await {
            // Somebody was quicker: look again at who holds it now.
            Err(WriteError::Conflict { .. }) => {}
            outcome => return outcome.map_err(|error| unexpected(error, &key)),
        }
    }
}

pub(crate) async fn renew<S: Store + ?Sized>(
    store: &S,
    lease: &Lease,
    ttl: Duration,
    now: SystemTime,
) -> Result<Lease, LeaseError> {
    match put(store, &lease.key, Expected::At(lease.revision), &lease.holder, ttl, now).await {
        Err(WriteError::Conflict { .. }) => Err(LeaseError::Lost { name: lease.key.name().into() }),
        outcome => outcome.map_err(|error| unexpected(error, &lease.key)),
    }
}

pub(crate) async fn release<S: Store + ?Sized>(store: &S, lease: &Lease) -> Result<(), LeaseError> {
    match store.delete_if(&lease.key, lease.revision).await {
        Ok(_) | Err(WriteError::Conflict { .. }) => Ok(()),
        Err(error) => Err(unexpected(error, &lease.key)),
    }
}

async fn put<S: Store + ?Sized>(
    store: &S,
    key: &Key,
    expected: Expected,
    holder: &str,
    ttl: Duration,
    now: SystemTime,
) -> Result<Lease, WriteError> {
    let end = now.checked_add(ttl).map(|end| end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    // An end beyond all time is the last one that a record can hold.
    let millis = end.and_then(|end| u64::try_from(end.as_millis()).ok()).unwrap_or(u64::MAX);
    let revision = store.put_if(key, expected, encode(millis, holder)).await?;
    Ok(Lease {
        key: key.clone(),
        holder: holder.into(),
        expires: SystemTime::UNIX_EPOCH + Duration::from_millis(millis),
        revision,
    })
}

fn unexpected(error: WriteError, key: &Key) -> LeaseError {
    match error {
        WriteError::Store(error) => LeaseError::Store(error),
        WriteError::Conflict { .. } => LeaseError::Lost { name: key.name().into() },
        WriteError::TooLarge { .. } => LeaseError::Malformed(key.clone()),
    }
}

/// Version 1: the version, the end in milliseconds since 1970 (big endian), the holder.
fn encode(millis: u64, holder: &str) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&millis.to_be_bytes());
    bytes.extend_from_slice(holder.as_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(SystemTime, &str)> {
    let (&version, rest) = bytes.split_first()?;
    let (millis, holder) = rest.split_first_chunk::<8>()?;
    let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(u64::from_be_bytes(*millis)))?;
    (version == 1).then_some((until, std::str::from_utf8(holder).ok()?))
}
