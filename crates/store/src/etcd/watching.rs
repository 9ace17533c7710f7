//! One watch: follows a range of keys from a revision on, over every break of the connection.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status, Streaming};

use super::{
    LARGEST_ANSWER, Space,
    cluster::{Cluster, Member, wants_token},
    wire::{
        self, WatchRequest, WatchResponse, event::EventType, watch_client::WatchClient, watch_request::RequestUnion,
    },
};
use crate::{Entry, Event, Feed, Revision, StoreError, record};

/// What a watch is doing, in errors.
const DOING: &str = "watch";
const RETRY: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// How a piece of a watch ended.
enum End {
    /// The reader is gone, or was told to list again.
    Over,
    /// The connection broke: go on from the last event.
    Broken(String),
}

/// Follows changes until the feed is no longer wanted.
pub(super) struct Follower {
    pub(super) cluster: Arc<Cluster>,
    pub(super) space: Space,
    /// What keys in etcd begin with.
    pub(super) range: Vec<u8>,
    /// Everything up to here was given.
    pub(super) seen: Revision,
    pub(super) feed: Feed,
}

impl Follower {
    /// Asks etcd for the changes; the first answer says that it has begun.
    pub(super) async fn begin(&self) -> Result<Streaming<WatchResponse>, StoreError> {
        let patience = self.cluster.config().deadline;
        let member = self.cluster.current();
        match timeout(patience, self.create(&member, patience)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                self.cluster.pass(&member);
                Err(error)
            }
            Err(_elapsed) => {
                self.cluster.pass(&member);
                Err(member.silent(DOING, patience))
            }
        }
    }

    async fn create(&self, member: &Member<'_>, patience: Duration) -> Result<Streaming<WatchResponse>, StoreError> {
        match self.try_create(member).await? {
            Ok(stream) => Ok(stream),
            Err(status) if wants_token(&status) && self.cluster.config().user.is_some() => {
                self.cluster.authenticate(member, patience).await?;
                self.try_create(member).await?.map_err(|status| member.refused(DOING, status))
            }
            Err(status) => Err(member.refused(DOING, status)),
        }
    }

    async fn try_create(&self, member: &Member<'_>) -> Result<Result<Streaming<WatchResponse>, Status>, StoreError> {
        let Some(channel) = member.channel.clone() else { return Err(StoreError::Closed) };
        let create = wire::WatchCreateRequest {
            key: self.range.clone(),
            range_end: wire::end_of(&self.range),
            start_revision: i64::try_from(self.seen.next().get()).unwrap_or(i64::MAX),
        };
        let first = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The stream of requests stays open: its end would end the watch.
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
        let mut request = Request::new(requests);
        // A member that has lost its leader would keep silent for ever.
        request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        self.cluster.sign(&mut request, member, self.cluster.config().deadline).await?;
        // After a while without a connection, what was missed comes in one message.
        let mut client = WatchClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        let mut stream = match client.watch(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let created = match stream.message().await {
            Ok(Some(created)) => self.cluster.verified(DOING, member, created)?,
            Ok(None) => return Ok(Err(Status::unavailable("the watch ended before it began"))),
            Err(status) => return Ok(Err(status)),
        };
        // A watch that is refused is created and cancelled in one word; one from a compacted revision is cancelled after it.
        if created.canceled {
            let code =
                if created.cancel_reason.contains("auth") { Code::Unauthenticated } else { Code::PermissionDenied };
            return Ok(Err(Status::new(code, created.cancel_reason)));
        }
        Ok(Ok(stream))
    }

    /// Follows until the reader is gone, has missed something, or the store is closed (which drops this).
    pub(super) async fn run(mut self, mut stream: Streaming<WatchResponse>) {
        let mut pause = RETRY;
        loop {
            let (before, began) = (self.seen, Instant::now());
            match self.follow(stream).await {
                End::Over => return,
                End::Broken(why) => {
                    tracing::warn!(target: "alcazar::store", why, "a watch of etcd broke off; it goes on from where it was");
                }
            }
            // One that breaks off as soon as it begins is not taken up as fast as the network goes.
            if self.seen > before || began.elapsed() > RETRY_LONGEST {
                pause = RETRY;
            }
            stream = loop {
                if self.feed.is_closed() {
                    return;
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
                match self.begin().await {
                    Ok(stream) => break stream,
                    Err(error) => {
                        tracing::debug!(target: "alcazar::store", reason = %crate::error::chain(&error), "a watch of etcd is not taken up yet");
                    }
                }
            };
        }
    }

    async fn follow(&mut self, mut stream: Streaming<WatchResponse>) -> End {
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = self.feed.closed() => return End::Over,
            };
            match message {
                Ok(Some(response)) => match self.take(&response) {
                    Ok(Some(seen)) => self.seen = seen,
                    Ok(None) => {}
                    Err(end) => return end,
                },
                Ok(None) => return End::Broken("the member ended it".into()),
                // Too much for one message: it would be the same again. Who lists again gets it in parts.
                Err(status) if status.code() == Code::OutOfRange => {
                    self.feed.lag();
                    return End::Over;
                }
                Err(status) => return End::Broken(status.message().into()),
            }
        }
    }

    /// Passes on what one message holds; the revision of its last event.
    fn take(&self, response: &WatchResponse) -> Result<Option<Revision>, End> {
        if response.compact_revision > 0 {
            self.feed.lag();
            return Err(End::Over);
        }
        if response.canceled {
            return Err(End::Broken(response.cancel_reason.clone()));
        }
        let mut last = None;
        for event in &response.events {
            let Some(event) = self.read(event) else {
                // What stands there is not ours to understand: who lists again gets the whole reason.
                self.feed.lag();
                return Err(End::Over);
            };
            last = Some(event.revision());
            if !self.feed.offer(&event) {
                return Err(End::Over);
            }
        }
        Ok(last)
    }

    fn read(&self, event: &wire::Event) -> Option<Event> {
        let kv = event.kv.as_ref()?;
        let key = self.space.key(&kv.key)?;
        let revision = wire::revision(kv.mod_revision);
        if event.r#type() == EventType::Delete {
            return Some(Event::Deleted { key, revision });
        }
        let entry = record::decode(&key, &kv.value).ok()?;
        Some(Event::Put(Entry::new(key, entry.value(), revision)))
    }
}
