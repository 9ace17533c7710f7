//! A store with somebody who watches each call, and may answer in its place.

use std::sync::Arc;

use alcazar_store::{Answer, Entry, Expected, Key, Listing, Prefix, Revision, Store, StoreError, Watch, WriteError};

/// A call, as it comes in, and a write once it was made.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    Get(&'a Key),
    Put(&'a Key),
    Made(&'a Key),
    List(&'a Prefix),
}

/// Says nothing, or what is answered instead.
type Watcher = Box<dyn Fn(Call<'_>) -> Result<(), StoreError> + Send + Sync>;

pub struct Watched {
    store: Arc<dyn Store>,
    watcher: Watcher,
}

impl Watched {
    pub fn over(
        store: Arc<dyn Store>,
        watcher: impl Fn(Call<'_>) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Arc<dyn Store> {
        Arc::new(Self { store, watcher: Box::new(watcher) })
    }
}

impl Store for Watched {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            (self.watcher)(Call::Get(key))?;
            self.store.get(key).await
        })
    }

    fn put_if<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected,
        value: Vec<u8>,
    ) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(async move {
            (self.watcher)(Call::Put(key))?;
            let made = self.store.put_if(key, expected, value).await;
            (self.watcher)(Call::Made(key))?;
            made
        })
    }

    fn delete_if<'a>(&'a self, key: &'a Key, expected: Revision) -> Answer<'a, Result<Revision, WriteError>> {
        self.store.delete_if(key, expected)
    }

    fn page<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> Answer<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            (self.watcher)(Call::List(prefix))?;
            self.store.page(prefix, after, limit).await
        })
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Result<Watch, StoreError>> {
        self.store.watch(prefix, after)
    }

    fn stopped(&self) -> Answer<'_, StoreError> {
        self.store.stopped()
    }

    fn close(&self) -> Answer<'_, ()> {
        self.store.close()
    }
}
