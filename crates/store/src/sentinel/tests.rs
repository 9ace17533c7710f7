use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::*;
use crate::SledStore;

/// A store on sled whose server a test takes away.
struct Server {
    store: SledStore,
    how: Mutex<How>,
    changed: Notify,
    asked: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    There,
    /// It refuses connections.
    Gone,
    /// It takes the question, and says nothing.
    Mute,
    /// It answers, and refuses.
    Forbids,
}

impl Server {
    fn is(&self, how: How) {
        *self.how.lock().unwrap_or_else(PoisonError::into_inner) = how;
        self.changed.notify_waiters();
    }

    async fn ask<T, E: From<StoreError>>(&self, call: Answer<'_, Result<T, E>>) -> Result<T, E> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        loop {
            let changed = self.changed.notified();
            let how = *self.how.lock().unwrap_or_else(PoisonError::into_inner);
            let refused = |source| StoreError::Remote { doing: "test", server: "here".into(), source };
            match how {
                How::There => return call.await,
                How::Gone => return Err(refused(Arc::new(tonic::Status::unavailable("gone"))).into()),
                How::Forbids => return Err(refused(Arc::new(tonic::Status::permission_denied("no"))).into()),
                How::Mute => changed.await,
            }
        }
    }
}

impl Store for Server {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(self.ask(self.store.get(key)))
    }

    fn put_if<'a>(&'a self, key: &'a Key, at: Expected, value: Vec<u8>) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(self.ask(self.store.put_if(key, at, value)))
    }

    fn delete_if<'a>(&'a self, key: &'a Key, at: Revision) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(self.ask(self.store.delete_if(key, at)))
    }

    fn page<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> Answer<'a, Result<Listing, StoreError>> {
        Box::pin(self.ask(self.store.page(prefix, after, limit)))
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Result<Watch, StoreError>> {
        Box::pin(self.ask(self.store.watch(prefix, after)))
    }

    fn close(&self) -> Answer<'_, ()> {
        Store::close(&self.store)
    }
}

fn open(folder: &tempfile::TempDir) -> (Arc<Server>, Sentinel, Key) {
    let store = SledStore::open(folder.path().join("store")).unwrap();
    let (how, changed) = (Mutex::new(How::There), Notify::new());
    let server = Arc::new(Server { store, how, changed, asked: AtomicUsize::default() });
    (server.clone(), Sentinel::new(server).unwrap(), "a/key".parse().unwrap())
}

async fn becomes(sentinel: &Sentinel, is: impl Fn(&State) -> bool) {
    let mut state = sentinel.shared.state.subscribe();
    timeout(Duration::from_secs(30), state.wait_for(|state| is(state))).await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_asks_a_store_that_is_away_until_it_answers_again() {
    let folder = tempfile::tempdir().unwrap();
    let (server, sentinel, key) = open(&folder);
    let first = sentinel.put_if(&key, Expected::Absent, b"1".to_vec()).await.unwrap();
    server.is(How::Gone);
    assert!(sentinel.get(&key).await.unwrap_err().is_away());
    becomes(&sentinel, |state| matches!(state, State::Away(_))).await;
    let asked = server.asked.load(Ordering::SeqCst);
    for _ in 0..100 {
        assert!(matches!(sentinel.get(&key).await, Err(StoreError::Away { .. })));
        let write = sentinel.put_if(&key, Expected::At(first), b"2".to_vec()).await.unwrap_err();
        assert!(write.is_away(), "{write}");
    }
    // It looks by itself now and then, however many ask.
    assert!(server.asked.load(Ordering::SeqCst) <= asked + 3);
    server.is(How::There);
    becomes(&sentinel, |state| matches!(state, State::Up)).await;
    assert_eq!(sentinel.get(&key).await.unwrap().unwrap().revision(), first);
    sentinel.close().await;
}

#[tokio::test]
async fn who_waits_for_a_store_that_is_found_away_waits_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    let (server, sentinel, key) = open(&folder);
    server.is(How::Mute);
    let waits = async {
        let error = sentinel.get(&key).await.unwrap_err();
        assert!(matches!(error, StoreError::Away { .. }), "{error}");
    };
    let doubts = async {
        // What a call that has reached its deadline does.
        sentinel.doubt(&StoreError::Silent { doing: "read", server: "here".into(), after: Duration::from_secs(5) });
    };
    timeout(Duration::from_secs(30), async { tokio::join!(waits, doubts) }).await.unwrap();
    server.is(How::There);
    becomes(&sentinel, |state| matches!(state, State::Up)).await;
    assert!(sentinel.get(&key).await.unwrap().is_none());
    sentinel.close().await;
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (server, sentinel, key) = open(&folder);
    server.is(How::Forbids);
    for _ in 0..3 {
        let error = sentinel.get(&key).await.unwrap_err();
        assert!(!error.is_away() && matches!(error, StoreError::Remote { .. }), "{error}");
    }
    assert!(matches!(&*sentinel.shared.state.borrow(), State::Up));
    let conflict = {
        server.is(How::There);
        sentinel.put_if(&key, Expected::At(Revision::new(9)), Vec::new()).await.unwrap_err()
    };
    assert!(matches!(conflict, WriteError::Conflict { .. }), "{conflict}");
    sentinel.close().await;
}
