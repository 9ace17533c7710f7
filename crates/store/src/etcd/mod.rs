//! The store in an etcd cluster: every value a key of its own, every write one transaction.
//!
//! ```text
//!  put_if ──▶ Txn( mod_revision = expected ? Put : Range ) ──▶ header.revision, or who was there
//!  page   ──▶ Range, Range, … all at the revision of the first
//!  watch  ──▶ Watch from revision + 1; taken up again where it broke off; compacted: Lagged
//! ```
//!
//! Revisions are etcd's own (`mod_revision`; that of a deletion is the transaction's). Reads are linearizable: etcd's
//! default, and never given up here. A write whose answer is lost is not made again: its error says that nobody knows.

mod cluster;
mod config;
mod watching;
mod wire;

use std::sync::Arc;

pub use self::config::{EtcdConfig, EtcdConfigError, EtcdTls, EtcdUser};
use self::{
    cluster::{Cluster, Repeat},
    watching::Follower,
    wire::{RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_client::KvClient},
};
use crate::{
    Answer, Entry, Expected, Key, Listing, Prefix, Revision, Store, StoreError, Watch, WriteError, record,
    store::MAX_VALUE, tasks::Tasks,
};

/// A [`Store`] in an etcd cluster, shared by every process that has the same prefix.
///
/// Dropping it, or closing it, ends its watches.
#[derive(Debug)]
pub struct EtcdStore {
    cluster: Arc<Cluster>,
    space: Space,
    tasks: Tasks,
}

impl EtcdStore {
    /// Opens the store, and asks etcd once, so that a wrong setting is found here.
    ///
    /// # Errors
    /// When the configuration cannot be used, or etcd does not answer.
    pub async fn open(config: EtcdConfig) -> Result<Self, OpenEtcdError> {
        let space = Space(config.prefix.clone());
        let store = Self { cluster: Arc::new(Cluster::new(config)?), space, tasks: Tasks::new() };
        store.range(RangeRequest { key: store.space.bytes(""), limit: 1, ..RangeRequest::default() }).await?;
        Ok(store)
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.tasks.are_open()?;
        let call = |channel, request| async move {
            KvClient::new(channel).max_decoding_message_size(LARGEST_ANSWER).range(request).await
        };
        self.cluster.call("read", Repeat::Freely, request, call).await
    }

    async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.tasks.are_open()?;
        let call = |channel, request| async move { KvClient::new(channel).txn(request).await };
        self.cluster.call("write", Repeat::Unsent, request, call).await
    }

    /// Does `operation` if `key` is at `expected` (0: absent); the new revision, or the one found.
    async fn swap(&self, key: &Key, expected: i64, operation: wire::RequestOp) -> Result<Revision, WriteError> {
        let place = self.space.bytes(key.as_str());
        let request = TxnRequest {
            compare: vec![wire::at_revision(place.clone(), expected)],
            success: vec![operation],
            failure: vec![wire::get(place)],
        };
        let response = self.transact(request).await?;
        if !response.succeeded {
            return Err(WriteError::Conflict { key: key.clone(), found: wire::found(&response) });
        }
        Ok(wire::revision(response.header.map_or(0, |header| header.revision)))
    }

    /// A write that expects a revision that no key can be at.
    async fn never(&self, key: &Key) -> Result<Revision, WriteError> {
        let found = self.get(key).await?.map(|entry| entry.revision());
        Err(WriteError::Conflict { key: key.clone(), found })
    }

    async fn read_page(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Listing, StoreError> {
        let mut tries = 1;
        loop {
            match self.read_page_at_once(prefix, after, limit).await {
                // The moment of the first part was compacted away before the last was read: begin again.
                Err(StoreError::Remote { source, .. }) if is_compacted(&source) && tries < PAGE_TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }

    async fn read_page_at_once(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        let start = self.space.bytes(prefix.as_str());
        let end = wire::end_of(&start);
        // The key right behind another is that other with a zero byte.
        let mut from = after.map_or_else(|| start.clone(), |after| behind(self.space.bytes(after.as_str()))).max(start);
        let (mut entries, mut at) = (Vec::new(), None);
        loop {
            let wanted = limit.saturating_sub(entries.len()).clamp(1, PART);
            let response = self
                .range(RangeRequest {
                    key: from,
                    range_end: end.clone(),
                    limit: i64::try_from(wanted).unwrap_or(i64::MAX),
                    revision: at.unwrap_or_default(),
                })
                .await?;
            let revision = *at.get_or_insert(response.header.map_or(0, |header| header.revision));
            if limit == 0 {
                return Ok(Listing { entries, revision: wire::revision(revision), more: !response.kvs.is_empty() });
            }
            from = behind(response.kvs.last().map_or_else(Vec::new, |kv| kv.key.clone()));
            for kv in response.kvs {
                entries.push(self.entry(kv)?);
            }
            if !response.more || entries.len() >= limit {
                return Ok(Listing { entries, revision: wire::revision(revision), more: response.more });
            }
        }
    }

    fn entry(&self, kv: wire::KeyValue) -> Result<Entry, StoreError> {
        let place = || format!("the key {:?} of etcd", String::from_utf8_lossy(&kv.key));
        let key = self.space.key(&kv.key).ok_or_else(|| StoreError::Foreign { place: place() })?;
        let entry = record::decode(&key, &kv.value).map_err(|source| StoreError::Record { place: place(), source })?;
        Ok(Entry::new(key, entry.value(), wire::revision(kv.mod_revision)))
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            let request = RangeRequest { key: self.space.bytes(key.as_str()), ..RangeRequest::default() };
            self.range(request).await?.kvs.into_iter().next().map(|kv| self.entry(kv)).transpose()
        })
    }

    fn put_if<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected,
        value: Vec<u8>,
    ) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(async move {
            if value.len() > MAX_VALUE {
                return Err(WriteError::TooLarge { key: key.clone(), size: value.len() });
            }
            let Some(at) = number(expected) else { return self.never(key).await };
            // The revision in the record stays 0: etcd keeps the real one beside it.
            let record = record::encode(&Entry::new(key.clone(), value, Revision::default()));
            self.swap(key, at, wire::put(self.space.bytes(key.as_str()), record)).await
        })
    }

    fn delete_if<'a>(&'a self, key: &'a Key, expected: Revision) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(async move {
            let Some(at) = number(Expected::At(expected)) else { return self.never(key).await };
            self.swap(key, at, wire::delete(self.space.bytes(key.as_str()))).await
        })
    }

    fn page<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> Answer<'a, Result<Listing, StoreError>> {
        Box::pin(self.read_page(prefix, after, limit))
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Result<Watch, StoreError>> {
        Box::pin(async move {
            self.tasks.are_open()?;
            let (feed, watch) = Watch::channel(prefix.clone(), WATCH_CAPACITY);
            let follower = Follower {
                cluster: self.cluster.clone(),
                space: self.space.clone(),
                range: self.space.bytes(prefix.as_str()),
                seen: after,
                feed,
            };
            let stream = follower.begin().await?;
            self.tasks.spawn(follower.run(stream))?;
            Ok(watch)
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(self.tasks.close())
    }
}

/// The place of a store in etcd: what its keys begin with there.
#[derive(Clone, Debug)]
struct Space(Prefix);

impl Space {
    fn bytes(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.0).into_bytes()
    }

    fn key(&self, bytes: &[u8]) -> Option<Key> {
        std::str::from_utf8(bytes).ok()?.strip_prefix(self.0.as_str())?.parse().ok()
    }
}

/// Why the store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenEtcdError {
    /// The configuration cannot be used.
    #[error("the store in etcd is not set up rightly")]
    Config(#[from] EtcdConfigError),
    /// etcd does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// etcd's number for an expectation; `None` where no key can be as expected.
fn number(expected: Expected) -> Option<i64> {
    match expected {
        Expected::Absent => Some(0),
        Expected::At(revision) => i64::try_from(revision.get()).ok().filter(|number| *number > 0),
    }
}

fn behind(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

fn is_compacted(error: &crate::RemoteError) -> bool {
    // An answer that is too large has the same code.
    let is =
        |status: &tonic::Status| status.code() == tonic::Code::OutOfRange && status.message().contains("compacted");
    error.downcast_ref().is_some_and(is)
}

/// Whether an error says that no member answered, and not that one refused.
pub(crate) fn is_away(error: &crate::RemoteError) -> bool {
    error.downcast_ref().is_some_and(cluster::is_passing)
}

/// How often a page is begun again.
const PAGE_TRIES: usize = 5;

/// Entries in one answer: at most 16 MiB of values.
const PART: usize = 256;
const LARGEST_ANSWER: usize = 32 << 20;
/// Unread events a watcher may have.
const WATCH_CAPACITY: usize = 1024;
