use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_identity::Credentials;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;

use super::held::{Held, ResponseError};
use super::lists::Lists;
use super::{ALL, DEFAULT, Outbound, ROOT_CA, SecretError};
use crate::MAX_MESSAGE;
use crate::envoy::discovery::{DiscoveryRequest, DiscoveryResponse};
use crate::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use crate::envoy::{SECRET_URL, Status};

/// Subscribes to the caller's certificate on an agent's socket, to the bundles of its own and of federated trust domains, and to
/// what is revoked. The lists have a stream of their own: whatever becomes of them, certificates are rotated.
///
/// Lists of revocations are checked here too, at the time of `clock`: an agent can hold them back, and cannot make any up.
///
/// Waits, trying again for as long as it takes, until the agent has given both; then returns them as a value that
/// changes at each rotation, and a driver that keeps it so. The driver is to be spawned; it ends when nobody holds
/// the receiver any more. While the agent is away the last credentials stay.
pub async fn connect(
    socket: PathBuf,
    clock: Clock,
) -> (watch::Receiver<Arc<Credentials>>, impl Future<Output = ()> + Send) {
    connect_as(Outbound::default(), socket, clock).await
}

/// [`connect`], for whom applications call others through: it tells the agent who may.
pub async fn connect_as(
    outbound: Outbound,
    socket: PathBuf,
    clock: Clock,
) -> (watch::Receiver<Arc<Credentials>>, impl Future<Output = ()> + Send) {
    let (first, mut firsts) = mpsc::channel(1);
    let publish = Publish::First(first);
    let mut subscription =
        Subscription { outbound, socket, clock, held: Held::default(), lists_answered: false, publish };
    let mut driver = Box::pin(async move { subscription.run().await });
    // The driver cannot end before it has published: until then it holds the only sender.
    let credentials = tokio::select! {
        credentials = firsts.recv() => credentials,
        () = &mut driver => None,
    };
    match credentials {
        Some(receiver) => (receiver, driver),
        None => std::future::pending().await,
    }
}

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

struct Subscription {
    outbound: Outbound,
    socket: PathBuf,
    clock: Clock,
    held: Held,
    /// Whether the agent has answered for the lists of revocations, or had its time to.
    lists_answered: bool,
    publish: Publish,
}

/// Where credentials go: the first ones make the watch.
enum Publish {
    First(mpsc::Sender<watch::Receiver<Arc<Credentials>>>),
    Watch(watch::Sender<Arc<Credentials>>),
}

impl Subscription {
    async fn run(&mut self) {
        let mut attempt = 0;
        while self.wanted() {
            let failure = match self.stream(&mut attempt).await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            let pause = back_off(attempt);
            // A socket that is not there yet is the normal start: the agent makes it with the certificate.
            if attempt > QUIET_ATTEMPTS {
                tracing::warn!(socket = %self.socket.display(), %failure, retry_in = ?pause, "the agent's socket gives no certificate");
            } else {
                tracing::debug!(socket = %self.socket.display(), %failure, "the agent's socket gives no certificate yet");
            }
            attempt = attempt.saturating_add(1);
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream: subscribes, then takes what comes. Ends well only when nobody wants credentials any more.
    async fn stream(&mut self, attempt: &mut u32) -> Result<(), StreamError> {
        let channel = endpoint(&self.socket)?.connect().await.map_err(StreamError::Connect)?;
        let mut client = SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut lists = Lists::new(client.clone());
        let (requests, outgoing) = mpsc::channel(4);
        let first = DiscoveryRequest { node: Some(self.outbound.node()), ..request(&NAMES, None, None) };
        send(&requests, first).await?;
        let mut responses = client.stream_secrets(ReceiverStream::new(outgoing)).await?.into_inner();
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                response = self.next(&mut responses) => {
                    let Some(response) = response? else { return Ok(()) };
                    let outcome = self.held.take(&response, (self.clock)()).map_err(StreamError::from);
                    let refusal = outcome.as_ref().err().map(ToString::to_string);
                    send(&requests, request(&NAMES, Some(&response), refusal)).await?;
                    if let Err(failure) = outcome {
                        tracing::warn!(socket = %self.socket.display(), %failure, "refused what the agent sent; keeping what was held");
                        continue;
                    }
                    *attempt = 0;
                }
                shown = lists.next() => {
                    self.lists_answered = true;
                    if let Some(shown) = shown {
                        self.held.show(shown, (self.clock)())?;
                    }
                }
                () = &mut patience, if !self.lists_answered => {
                    tracing::warn!(target: "alcazar::revoked", socket = %self.socket.display(), "the agent says nothing of revocations; until it does, only those held are enforced");
                    self.lists_answered = true;
                }
            }
            if !self.publish()? {
                return Ok(());
            }
        }
    }

    /// The next response; `None` when nobody wants credentials any more.
    async fn next(
        &self,
        responses: &mut tonic::Streaming<DiscoveryResponse>,
    ) -> Result<Option<DiscoveryResponse>, StreamError> {
        let unwanted = async {
            match &self.publish {
                Publish::Watch(watch) => watch.closed().await,
                Publish::First(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            response = responses.message() => response?.map(Some).ok_or(StreamError::Ended),
            () = unwanted => Ok(None),
        }
    }

    /// Publishes what is held, once certificate and bundle are there, and what is revoked was asked for. Returns whether anybody
    /// listens.
    fn publish(&mut self) -> Result<bool, StreamError> {
        if !self.lists_answered {
            return Ok(true);
        }
        let Some(credentials) = self.held.credentials()? else { return Ok(true) };
        let credentials = Arc::new(credentials);
        match &self.publish {
            Publish::Watch(watch) => Ok(watch.send(credentials).is_ok()),
            Publish::First(first) => {
                let (sender, receiver) = watch::channel(credentials);
                let listening = first.try_send(receiver).is_ok();
                self.publish = Publish::Watch(sender);
                Ok(listening)
            }
        }
    }

    fn wanted(&self) -> bool {
        match &self.publish {
            Publish::First(first) => !first.is_closed(),
            Publish::Watch(watch) => !watch.is_closed(),
        }
    }
}

/// The first request, an acknowledgement, or a refusal.
pub(super) fn request(
    names: &[&str],
    answered: Option<&DiscoveryResponse>,
    refusal: Option<String>,
) -> DiscoveryRequest {
    DiscoveryRequest {
        // A refusal repeats no version: the client may hold none.
        version_info: match (&refusal, answered) {
            (None, Some(response)) => response.version_info.clone(),
            _ => String::new(),
        },
        response_nonce: answered.map(|response| response.nonce.clone()).unwrap_or_default(),
        resource_names: names.iter().copied().map(str::to_owned).collect(),
        type_url: SECRET_URL.to_owned(),
        error_detail: refusal.map(|message| Status {
            code: Code::InvalidArgument as i32,
            message,
            ..Status::default()
        }),
        ..DiscoveryRequest::default()
    }
}

pub(super) async fn send(
    requests: &mpsc::Sender<DiscoveryRequest>,
    request: DiscoveryRequest,
) -> Result<(), StreamError> {
    requests.send(request).await.map_err(|_| StreamError::Ended)
}

fn endpoint(socket: &Path) -> Result<Endpoint, StreamError> {
    Endpoint::from_shared(format!("unix:{}", socket.display())).map_err(StreamError::Connect)
}

/// How long to wait before attempt `attempt + 1`: short at first, since the agent may be starting beside us.
fn back_off(attempt: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(attempt.min(16)));
    doubled.min(LONGEST_PAUSE)
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("cannot connect: {}", deepest(.0))]
    Connect(tonic::transport::Error),
    #[error("the agent answered {:?}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the agent closed the stream")]
    Ended,
    #[error(transparent)]
    Response(#[from] ResponseError),
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// The last cause in a chain: tonic's own message is only "transport error".
pub(super) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// What is asked for on the stream of certificates.
const NAMES: [&str; 3] = [DEFAULT, ROOT_CA, ALL];
/// How long the first credentials wait for what is revoked: an agent of an earlier version never says.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Attempts before a missing certificate is worth a warning: about two seconds.
const QUIET_ATTEMPTS: u32 = 8;
