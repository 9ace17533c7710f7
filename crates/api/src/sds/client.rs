use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_identity::{Credentials, TrustBundle, TrustBundles, X509Svid};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;

use super::{
    DEFAULT, REVOCATIONS, ROOT_CA, SecretError, bundle_from_secret, revocations_from_secret, svid_from_secret,
};
use crate::ca::v1;
use crate::envoy::discovery::{DiscoveryRequest, DiscoveryResponse};
use crate::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use crate::envoy::tls::Secret;
use crate::envoy::{SECRET_URL, Status, UnpackError, unpack};
use crate::revocations::Keeper;

/// Subscribes to the caller's certificate and bundle on an agent's socket, and to what is revoked.
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
    let (first, mut firsts) = mpsc::channel(1);
    let mut subscription = Subscription { socket, clock, held: Held::default(), publish: Publish::First(first) };
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
    socket: PathBuf,
    clock: Clock,
    held: Held,
    publish: Publish,
}

/// What the agent has said so far.
#[derive(Default)]
struct Held {
    svid: Option<X509Svid>,
    roots: Option<Secret>,
    /// Counts the bundles that were published: SDS does not carry a sequence.
    sequence: u64,
    /// Lists of revocations, as they were shown last; those that were good are in the keeper.
    shown: Option<v1::SignedRevocations>,
    keeper: Keeper,
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
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let (requests, outgoing) = mpsc::channel(4);
        send(&requests, request(None, None)).await?;
        let mut responses = client.stream_secrets(ReceiverStream::new(outgoing)).await?.into_inner();
        while let Some(response) = self.next(&mut responses).await? {
            let outcome = self.held.take(&response, (self.clock)()).map_err(StreamError::from);
            let refusal = outcome.as_ref().err().map(ToString::to_string);
            send(&requests, request(Some(&response), refusal)).await?;
            match outcome {
                Ok(()) => {
                    *attempt = 0;
                    if !self.publish()? {
                        return Ok(());
                    }
                }
                Err(failure) => {
                    tracing::warn!(socket = %self.socket.display(), %failure, "refused what the agent sent; keeping what was held")
                }
            }
        }
        Ok(())
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

    /// Publishes what is held, once both halves are there. Returns whether anybody listens.
    fn publish(&mut self) -> Result<bool, StreamError> {
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

impl Held {
    /// Takes a response whole or not at all.
    fn take(&mut self, response: &DiscoveryResponse, now: SystemTime) -> Result<(), ResponseError> {
        let (mut svid, mut roots) = (None, None);
        for resource in &response.resources {
            let secret: Secret = unpack(SECRET_URL, resource)?;
            match secret.name.as_str() {
                DEFAULT => svid = Some(svid_from_secret(&secret)?),
                ROOT_CA => roots = Some(secret),
                REVOCATIONS => self.shown = Some(revocations_from_secret(&secret)?),
                name => tracing::debug!(name, "the agent sent a secret that was not asked for"),
            }
        }
        if let Some(svid) = svid.or_else(|| self.svid.clone()) {
            // The bundle must convert before anything is replaced.
            if let Some(roots) = &roots {
                bundle_from_secret(roots, svid.id().trust_domain().clone(), self.sequence)?;
            }
            self.svid = Some(svid);
        }
        if roots.is_some() && roots != self.roots {
            self.sequence += 1;
            self.roots = roots;
        }
        self.check_revocations(now)?;
        Ok(())
    }

    /// Takes what is good of the lists shown. With other roots another may be good than before.
    fn check_revocations(&mut self, now: SystemTime) -> Result<(), SecretError> {
        let (Some(shown), Some(bundle)) = (&self.shown, self.bundle()?) else { return Ok(()) };
        let outcome = self.keeper.take(shown, &TrustBundles::from(bundle), now);
        for refused in outcome.refused {
            tracing::warn!(target: "alcazar::revoked", reason = %refused, cause = %deepest(&refused), "a list of revocations that the agent has shown is not taken");
        }
        Ok(())
    }

    fn bundle(&self) -> Result<Option<TrustBundle>, SecretError> {
        let (Some(svid), Some(roots)) = (&self.svid, &self.roots) else { return Ok(None) };
        bundle_from_secret(roots, svid.id().trust_domain().clone(), self.sequence).map(Some)
    }

    fn credentials(&self) -> Result<Option<Credentials>, SecretError> {
        let (Some(svid), Some(bundle)) = (&self.svid, self.bundle()?) else { return Ok(None) };
        let revocations = self.keeper.current().clone();
        Ok(Some(Credentials::new(svid.clone(), bundle.into()).with_revocations(revocations)))
    }
}

/// The first request, an acknowledgement, or a refusal.
fn request(answered: Option<&DiscoveryResponse>, refusal: Option<String>) -> DiscoveryRequest {
    DiscoveryRequest {
        // A refusal repeats no version: the client may hold none.
        version_info: match (&refusal, answered) {
            (None, Some(response)) => response.version_info.clone(),
            _ => String::new(),
        },
        response_nonce: answered.map(|response| response.nonce.clone()).unwrap_or_default(),
        resource_names: [DEFAULT, ROOT_CA, REVOCATIONS].map(str::to_owned).into(),
        type_url: SECRET_URL.to_owned(),
        error_detail: refusal.map(|message| Status {
            code: Code::InvalidArgument as i32,
            message,
            ..Status::default()
        }),
        ..DiscoveryRequest::default()
    }
}

async fn send(requests: &mpsc::Sender<DiscoveryRequest>, request: DiscoveryRequest) -> Result<(), StreamError> {
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
enum StreamError {
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

/// Why a response was refused.
#[derive(Debug, thiserror::Error)]
enum ResponseError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("{}: {}", .0, deepest(.0))]
    Secret(#[from] SecretError),
}

/// The last cause in a chain: tonic's own message is only "transport error".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Attempts before a missing certificate is worth a warning: about two seconds.
const QUIET_ATTEMPTS: u32 = 8;
