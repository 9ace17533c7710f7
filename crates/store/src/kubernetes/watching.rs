//! One watch: follows the objects of a store from a resource version on, over every break of the connection.

use std::time::Duration;

use futures::{Stream, StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{WatchEvent, WatchParams},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Objects,
    object::{State, revision},
};
use crate::{Event, Feed, Prefix, Revision, StoreError};

/// The server ends a watch after this time, and it is taken up again: one that died without a word is noticed soon after.
const TURN: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

pub(super) type Changes = BoxStream<'static, Result<WatchEvent<Secret>, kube::Error>>;

/// How a piece of a watch ended.
enum End {
    /// The reader is gone, or was told to list again.
    Over,
    /// It ended: go on from the last event.
    Broken,
}

/// Follows changes until the feed is no longer wanted.
pub(super) struct Follower {
    pub(super) objects: Objects,
    pub(super) prefix: Prefix,
    /// Everything up to here was given.
    pub(super) seen: Revision,
    pub(super) feed: Feed,
}

impl Follower {
    /// Asks for the changes. `None` when what came after `seen` is forgotten: the reader was told.
    pub(super) async fn begin(&self) -> Result<Option<Changes>, StoreError> {
        // Version 0 means "any" to Kubernetes, and no version "from now on": neither is what was asked.
        if self.seen == Revision::default() {
            self.feed.lag();
            return Ok(None);
        }
        let seconds = u32::try_from(TURN.as_secs()).unwrap_or(u32::MAX);
        let parameters = WatchParams::default().labels(&self.objects.space.selector(&self.prefix)).timeout(seconds);
        let version = self.seen.to_string();
        let api: &Api<Secret> = &self.objects.api;
        match self.objects.ask("watch", api.watch(&parameters, &version)).await {
            Ok(changes) => Ok(Some(owned(changes))),
            Err(StoreError::Remote { source, .. }) if is_gone(source.downcast_ref()) => {
                self.feed.lag();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Follows until the reader is gone, has missed something, or the store is closed (which drops this).
    pub(super) async fn run(mut self, mut changes: Changes) {
        let mut pause = RETRY;
        loop {
            let (before, began) = (self.seen, Instant::now());
            if let End::Over = self.follow(changes).await {
                return;
            }
            // One that ends as soon as it begins is not taken up as fast as the network goes.
            if self.seen > before || began.elapsed() > RETRY_LONGEST {
                pause = RETRY;
            }
            changes = loop {
                if self.feed.is_closed() {
                    return;
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
                match self.begin().await {
                    Ok(Some(changes)) => break changes,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(target: "alcazar::store", reason = %crate::error::chain(&error), "a watch of Kubernetes is not taken up yet");
                    }
                }
            };
        }
    }

    async fn follow(&mut self, mut changes: Changes) -> End {
        loop {
            let change = tokio::select! {
                change = timeout(TURN + GRACE, changes.next()) => change,
                () = self.feed.closed() => return End::Over,
            };
            match change {
                Ok(Some(Ok(change))) => {
                    if let Err(end) = self.take(change) {
                        return end;
                    }
                }
                Ok(Some(Err(error))) if is_gone(Some(&error)) => {
                    self.feed.lag();
                    return End::Over;
                }
                Ok(Some(Err(_)) | None) | Err(_) => return End::Broken,
            }
        }
    }

    fn take(&mut self, change: WatchEvent<Secret>) -> Result<(), End> {
        let (object, removed) = match change {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                if let Some(at) = revision(Some(&bookmark.metadata.resource_version)) {
                    self.seen = self.seen.max(at);
                }
                return Ok(());
            }
            WatchEvent::Error(status) if status.code == 410 => {
                self.feed.lag();
                return Err(End::Over);
            }
            WatchEvent::Error(_) => return Err(End::Broken),
        };
        let event = match (self.objects.space.read(&object), removed) {
            (Ok(State::Live(entry)), false) => Event::Put(entry),
            (Ok(State::Deleted { key, revision }), false) => Event::Deleted { key, revision },
            // Somebody removed the object itself, and not by this store.
            (Ok(State::Live(entry)), true) => Event::Deleted { key: entry.key().clone(), revision: entry.revision() },
            // What was left of a deletion that was told before.
            (Ok(State::Deleted { revision, .. }), true) => {
                self.seen = self.seen.max(revision);
                return Ok(());
            }
            // What stands there is not ours to understand: who lists again gets the whole reason.
            (Err(_), _) => {
                self.feed.lag();
                return Err(End::Over);
            }
        };
        self.seen = self.seen.max(event.revision());
        if self.feed.offer(&event) { Ok(()) } else { Err(End::Over) }
    }
}

fn owned(changes: impl Stream<Item = Result<WatchEvent<Secret>, kube::Error>> + Send + 'static) -> Changes {
    changes.boxed()
}

/// Whether the server says that it no longer remembers.
fn is_gone(error: Option<&kube::Error>) -> bool {
    matches!(error, Some(kube::Error::Api(status)) if status.code == 410)
}
