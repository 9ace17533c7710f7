//! Follows the control plane: one stream at a time, for as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use alcazar_api::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use alcazar_service::Shutdown;
use alcazar_service::process::chain;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::State;
use crate::mesh::Snapshot;

/// Keeps snapshots fresh.
pub(crate) struct Ads {
    channel: Channel,
    state: State,
    publish: Publish,
    status: watch::Sender<Status>,
    /// Stretches pauses, so that a control plane that comes back is not met by all proxies at once.
    spread: f64,
}

/// How the control plane is followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Whether a stream is open on which the control plane has answered.
    pub connected: bool,
    /// Snapshots that were applied.
    pub applied: u64,
    /// Why the last stream ended, or the last response was refused.
    pub last_error: Option<String>,
}

/// Where snapshots go: the first makes the watch.
enum Publish {
    First(mpsc::Sender<watch::Receiver<Arc<Snapshot>>>),
    Watch(watch::Sender<Arc<Snapshot>>),
}

impl Ads {
    /// The receiver gets, once, the watch of snapshots, when there is a first one. `chance` is any number.
    pub(crate) fn new(
        channel: Channel,
        state: State,
        status: watch::Sender<Status>,
        chance: u64,
    ) -> (Self, mpsc::Receiver<watch::Receiver<Arc<Snapshot>>>) {
        let (first, firsts) = mpsc::channel(1);
        let spread = 0.75 + (chance % 1000) as f64 / 2000.0;
        (Self { channel, state, publish: Publish::First(first), status, spread }, firsts)
    }

    /// Follows the control plane until the shutdown. While it is away, what is known stays.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let ended = tokio::select! {
                ended = self.stream() => ended,
                () = shutdown.cancelled() => return,
            };
            let error = ended.map_or_else(|status| chain(&status), |()| "the stream ended".to_owned());
            if started.elapsed() > LAST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tracing::warn!(error, retry_in = ?pause, "the control plane is away; what it said last stays in force");
            self.status.send_modify(|status| {
                status.connected = false;
                status.last_error = Some(error);
            });
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(self.spread)) => {}
                () = shutdown.cancelled() => return,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One stream, from its first request to its end.
    async fn stream(&mut self) -> Result<(), tonic::Status> {
        let mut client =
            AggregatedDiscoveryServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        for request in self.state.subscribe() {
            // There is room for them: the channel is empty.
            drop(requests.send(request).await);
        }
        let mut responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        while let Some(response) = responses.message().await? {
            let answer = match self.state.take(response) {
                Ok(answer) => {
                    self.publish().await;
                    answer
                }
                Err(refused) => {
                    let error = chain(refused.as_ref());
                    tracing::error!(target: "alcazar::refused", error, "the control plane's response was refused");
                    self.status.send_modify(|status| status.last_error = Some(error));
                    refused.answer
                }
            };
            if requests.send(answer).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Hands out what is known, once all of it is.
    async fn publish(&mut self) {
        let snapshot = self.state.snapshot().map(Arc::new);
        self.status.send_modify(|status| {
            status.connected = true;
            status.applied += u64::from(snapshot.is_some());
        });
        let Some(snapshot) = snapshot else { return };
        match &self.publish {
            Publish::First(first) => {
                let (sender, receiver) = watch::channel(snapshot);
                // Nobody waits any more when the process ends.
                drop(first.send(receiver).await);
                self.publish = Publish::Watch(sender);
            }
            Publish::Watch(sender) => drop(sender.send_replace(snapshot)),
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A policy comes in one message, however large it is.
const MAX_MESSAGE: usize = 64 << 20;
const REQUESTS: usize = 16;
