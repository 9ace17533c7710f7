//! The trait that every back end implements.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{Key, Lease, LeaseError, Prefix, StoreError, Watch, WriteError, lease};

/// The largest value, in bytes.
pub const MAX_VALUE: usize = 64 * 1024;

/// A future as the trait returns it.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Shared state. Used as `Arc<dyn Store>`.
///
/// Reads see durable values only, and every read sees all writes acknowledged before it began.
pub trait Store: Send + Sync + 'static {
    /// The value at `key`, when there is one.
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Result<Option<Entry>, StoreError>>;

    /// Puts `value` at `key` if the key is as `expected`; its new revision, once durable.
    fn put_if<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected,
        value: Vec<u8>,
    ) -> Answer<'a, Result<Revision, WriteError>>;

    /// Deletes `key` if it is at `expected`; the revision of the deletion, once durable.
    fn delete_if<'a>(&'a self, key: &'a Key, expected: Revision) -> Answer<'a, Result<Revision, WriteError>>;

    /// At most `limit` entries under `prefix`, in key order, after the key `after` when one is given: all
    /// of them as they were at one moment. Later pages are of later moments.
    fn page<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> Answer<'a, Result<Listing, StoreError>>;

    /// Every entry under `prefix`, in key order, as of one moment. For families of keys known to be small.
    fn list<'a>(&'a self, prefix: &'a Prefix) -> Answer<'a, Result<Listing, StoreError>> {
        self.page(prefix, None, usize::MAX)
    }

    /// Every change under `prefix` with a revision above `after`, in order, without a gap:
    /// list, then watch from the listing's revision. When the store no longer remembers that far back, or
    /// the watcher falls too far behind, the watch ends with [`WatchError::Lagged`](crate::WatchError::Lagged): list again.
    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Result<Watch, StoreError>>;

    /// Returns when the store will not answer any more until it is opened again, and why. A server that is away comes back.
    fn stopped(&self) -> Answer<'_, StoreError> {
        Box::pin(std::future::pending())
    }

    /// Lets go of what the store holds of this machine: files, connections, watches. When this returns, another process may
    /// open it; what is asked later gets [`StoreError::Closed`].
    fn close(&self) -> Answer<'_, ()>;

    /// Takes the lease `name` for `holder` until `now + ttl`, if it is free, expired, or this holder's already.
    fn acquire_lease<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        ttl: Duration,
        now: SystemTime,
    ) -> Answer<'a, Result<Lease, LeaseError>> {
        Box::pin(lease::acquire(self, name, holder, ttl, now))
    }

    /// Extends `lease` to `now + ttl`, if nobody else has taken it. Even an expired lease can be renewed while it is untaken.
    fn renew_lease<'a>(
        &'a self,
        lease: &'a Lease,
        ttl: Duration,
        now: SystemTime,
    ) -> Answer<'a, Result<Lease, LeaseError>> {
        Box::pin(lease::renew(self, lease, ttl, now))
    }

    /// Gives `lease` back. Giving back what is already somebody else's does nothing.
    fn release_lease<'a>(&'a self, lease: &'a Lease) -> Answer<'a, Result<(), LeaseError>> {
        Box::pin(lease::release(self, lease))
    }
}

/// A place in the store's history. Each write has its own, and they only rise; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// The revision with this number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a writer expects to find at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// The value written at this revision.
    At(Revision),
}

/// A value with its key and the revision that wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    key: Key,
    value: Arc<[u8]>,
    revision: Revision,
}

impl Entry {
    /// An entry, as a back end makes it.
    pub fn new(key: Key, value: impl Into<Arc<[u8]>>, revision: Revision) -> Self {
        Self { key, value: value.into(), revision }
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The revision that wrote the value.
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

/// Values may be secrets: only their size is shown.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("revision", &self.revision.0)
            .finish()
    }
}

/// Entries under a prefix as of one moment.
#[derive(Clone, Debug)]
pub struct Listing {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The store's revision at that moment: watch from here to miss nothing.
    pub revision: Revision,
    /// Whether more entries come after the last one here.
    pub more: bool,
}
