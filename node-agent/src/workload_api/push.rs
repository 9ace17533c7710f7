use std::collections::BTreeMap;
use std::time::Duration;

use alcazar_api::sds::ALL;
use alcazar_identity::{Fingerprint, SpiffeId};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use super::messages::absence;
use crate::adoption::{Clients, Named, TimedStream};
use crate::caller::Caller;
use crate::callers::{Follow, denied};
use crate::sds::View;

/// One stream: a message now, and another whenever it would be a different one.
pub(super) struct Push<M> {
    pub(super) caller: Caller,
    pub(super) follow: Follow,
    pub(super) message: fn(&View) -> Option<M>,
    pub(super) taken: Taken,
    /// Of room for one message: there is room again when the client's connection has taken it.
    pub(super) sender: mpsc::Sender<Result<M, Status>>,
}

impl<M: Message> Push<M> {
    /// Runs until the client has gone, and ends with a status where it is the agent that has no more to say.
    pub(super) async fn keep(mut self) {
        let sender = self.sender.clone();
        let status = tokio::select! {
            status = self.run() => status,
            () = sender.closed() => return,
        };
        // Who does not read does not hear of it, and loses its stream all the same.
        drop(timeout(PATIENCE, sender.send(Err(status))).await);
    }

    async fn run(&mut self) -> Status {
        let mut told: Option<Fingerprint> = None;
        loop {
            let look = |view: &View| Some(((self.message)(view)?, view.clone()));
            let (message, view) = match first(&mut self.follow, look).await {
                Ok(found) => found,
                Err(status) => return status,
            };
            let version = Fingerprint::of(&message.encode_to_vec());
            if told != Some(version) {
                if self.sender.send(Ok(message)).await.is_err() {
                    return gone();
                }
                // It holds a rotation back as long as it is there: somebody who never reads must not.
                match timeout(PATIENCE, self.sender.reserve()).await {
                    Ok(Ok(_room)) => {}
                    Ok(Err(_closed)) => return gone(),
                    Err(_late) => {
                        let caller = &self.caller;
                        tracing::warn!(target: "alcazar::refused", %caller, "a client of the Workload API does not read what it asked for; its stream ends");
                        return Status::deadline_exceeded("the stream was not read");
                    }
                }
                told = Some(version);
            }
            // Of the same content there may be a newer bundle, too.
            self.taken.all(&view);
            if let Err(refused) = self.follow.changed().await {
                return denied(refused.caller(), &refused);
            }
        }
    }
}

/// What a client has taken, counted for each of its identities: each has a certificate of its own.
pub(super) struct Taken {
    clients: Clients,
    caller: Caller,
    /// By identity; `None`: the client asked for bundles alone.
    streams: BTreeMap<Option<SpiffeId>, TimedStream>,
    with_certificates: bool,
}

impl Taken {
    pub(super) fn new(clients: Clients, caller: Caller, with_certificates: bool) -> Self {
        Self { clients, caller, streams: BTreeMap::new(), with_certificates }
    }

    /// The client has taken what this view leads to.
    fn all(&mut self, view: &View) {
        let named = |id: &SpiffeId| Named::of([id.as_str(), ALL], view).all();
        let holds: BTreeMap<_, _> = if self.with_certificates {
            let held = view.iter().filter(|(_, held)| held.credentials().is_some());
            held.map(|(id, _)| (Some(id.clone()), named(id))).collect()
        } else {
            [(None, Named::of([ALL], view).all())].into()
        };
        self.streams.retain(|id, _| holds.contains_key(id));
        let (clients, caller) = (&self.clients, &self.caller);
        for (id, holds) in holds {
            let stream = self.streams.entry(id).or_insert_with(|| TimedStream::enter(clients, caller.clone()));
            stream.took(holds, Instant::now());
        }
    }
}

/// What there is to say to a caller, once there is: it may have been registered a moment ago, or hold nothing for a moment.
///
/// # Errors
/// `UNAVAILABLE` when there is nothing for [`PATIENCE_FOR_FIRST`], `PERMISSION_DENIED` when the caller is nobody's workload any more.
pub(super) async fn first<T>(follow: &mut Follow, mut look: impl FnMut(&View) -> Option<T>) -> Result<T, Status> {
    let until = Instant::now() + PATIENCE_FOR_FIRST;
    loop {
        let view = follow.view();
        if let Some(found) = look(&view) {
            return Ok(found);
        }
        tokio::select! {
            changed = follow.changed() => changed.map_err(|refused| denied(refused.caller(), &refused))?,
            () = sleep_until(until) => return Err(Status::unavailable(absence(&view))),
        }
    }
}

fn gone() -> Status {
    Status::cancelled("the client has gone")
}

/// How long a caller waits for what is on its way.
pub(super) const PATIENCE_FOR_FIRST: Duration = Duration::from_secs(5);
/// How long a client may take to read a message.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
