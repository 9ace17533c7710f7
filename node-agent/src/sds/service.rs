use std::collections::BTreeSet;
use std::pin::Pin;

use alcazar_api::envoy::SECRET_URL;
use alcazar_api::envoy::core::Node;
use alcazar_api::envoy::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use alcazar_api::envoy::secret::secret_discovery_service_server::SecretDiscoveryService;
use alcazar_api::sds::Outbound;
use alcazar_service::Shutdown;
use futures::Stream;
use futures::stream;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status, Streaming};

use super::patience::Patience;
use super::secrets::View;
use super::{Delta, Heard, RequestError, Sotw};
use crate::adoption::{ClientStream, Clients, Named};
use crate::caller::Caller;
use crate::callers::{Callers, Follow, denied};

/// SDS on one Unix socket.
#[derive(Clone)]
pub(crate) struct SdsService {
    callers: Callers,
    clients: Clients,
    shutdown: Shutdown,
}

impl SdsService {
    pub(crate) fn new(callers: Callers, clients: Clients, shutdown: Shutdown) -> Self {
        Self { callers, clients, shutdown }
    }

    async fn stream<M: Machine>(
        &self,
        request: Request<Streaming<M::Request>>,
    ) -> Result<Response<Answers<M::Response>>, Status> {
        let (caller, follow) = self.callers.follow(&request).await?;
        let mut stream = self.clients.enter(caller.clone());
        // Until it says more.
        stream.says(None);
        let conversation = Conversation {
            requests: request.into_inner(),
            machine: M::default(),
            follow,
            stream,
            caller,
            told_absent: BTreeSet::new(),
            patience: Patience::default(),
            quiet_until: None,
            shutdown: self.shutdown.clone(),
        };
        let answers = stream::unfold(Some(conversation), |conversation| async move {
            let mut conversation = conversation?;
            match conversation.next().await {
                Ok(answer) => Some((Ok(answer?), Some(conversation))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for SdsService {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.stream::<Sotw>(request).await
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.stream::<Delta>(request).await
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let (caller, follow) = self.callers.follow(&request).await?;
        let mut machine = Sotw::default();
        // Each fetch stands alone: a nonce of an earlier one means nothing.
        let request = DiscoveryRequest { response_nonce: String::new(), ..request.into_inner() };
        machine.hear(&request).map_err(|error| invalid(&follow, &caller, &error))?;
        let view = follow.view();
        say_what_is_missing(machine.subscribed(), &view, &mut BTreeSet::new(), &caller);
        machine.say(&view).map(Response::new).ok_or_else(|| Status::internal("no response to a request"))
    }
}

/// What the two kinds of stream have in common.
trait Machine: Default + Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn hear(&mut self, request: &Self::Request) -> Result<Heard, RequestError>;
    fn say(&mut self, view: &View) -> Option<Self::Response>;
    fn subscribed(&self) -> Vec<&str>;
    /// The names of which a response tells.
    fn told(&self, response: &Self::Response) -> Vec<String>;
    /// What the client says of itself, with its first request alone.
    fn node(request: &Self::Request) -> Option<&Node>;
    /// The nonce of a response, which is its number.
    fn nonce(response: &Self::Response) -> &str;
    /// The nonce of the response that a request answers.
    fn answered(request: &Self::Request) -> &str;
}

impl Machine for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, RequestError> {
        Sotw::hear(self, request)
    }

    fn say(&mut self, view: &View) -> Option<DiscoveryResponse> {
        Sotw::say(self, view)
    }

    fn subscribed(&self) -> Vec<&str> {
        Sotw::subscribed(self).collect()
    }

    fn told(&self, _response: &DiscoveryResponse) -> Vec<String> {
        Sotw::subscribed(self).map(str::to_owned).collect()
    }

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn nonce(response: &DiscoveryResponse) -> &str {
        &response.nonce
    }

    fn answered(request: &DiscoveryRequest) -> &str {
        &request.response_nonce
    }
}

impl Machine for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn hear(&mut self, request: &DeltaDiscoveryRequest) -> Result<Heard, RequestError> {
        Delta::hear(self, request)
    }

    fn say(&mut self, view: &View) -> Option<DeltaDiscoveryResponse> {
        Delta::say(self, view)
    }

    fn subscribed(&self) -> Vec<&str> {
        Delta::subscribed(self).collect()
    }

    fn told(&self, response: &DeltaDiscoveryResponse) -> Vec<String> {
        let there = response.resources.iter().map(|resource| &resource.name);
        there.chain(&response.removed_resources).cloned().collect()
    }

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn nonce(response: &DeltaDiscoveryResponse) -> &str {
        &response.nonce
    }

    fn answered(request: &DeltaDiscoveryRequest) -> &str {
        &request.response_nonce
    }
}

/// One stream of one caller. It runs only when the client takes what it says, so a client that does not read costs
/// one response and no queue.
struct Conversation<M: Machine> {
    requests: Streaming<M::Request>,
    machine: M,
    follow: Follow,
    /// What the client is known to hold.
    stream: ClientStream,
    caller: Caller,
    /// The names whose absence has been logged.
    told_absent: BTreeSet<String>,
    patience: Patience,
    /// Until when nothing is said or heard, since the client rejects everything.
    quiet_until: Option<Instant>,
    shutdown: Shutdown,
}

impl<M: Machine> Conversation<M> {
    /// The next response; `None` when the client or the agent has gone.
    async fn next(&mut self) -> Result<Option<M::Response>, Status> {
        loop {
            if let Some(until) = self.quiet_until.take() {
                tokio::select! {
                    () = sleep_until(until) => {}
                    () = self.shutdown.cancelled() => return Ok(None),
                }
            }
            // What came meanwhile, or while nothing was said: nobody is told of what is no more.
            self.follow.catch_up().await.map_err(|refused| denied(refused.caller(), &refused))?;
            let view = self.follow.view();
            if let Some(response) = self.machine.say(&view) {
                say_what_is_missing(self.machine.subscribed(), &view, &mut self.told_absent, &self.caller);
                self.stream.keep(self.machine.subscribed());
                let told = self.machine.told(&response);
                self.stream.sent(number(M::nonce(&response)), Named::of(told.iter().map(String::as_str), &view));
                return Ok(Some(response));
            }
            self.stream.current(Named::of(self.machine.subscribed(), &view));
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.hear(&request)?,
                    None => return Ok(None),
                },
                change = self.follow.changed() => change.map_err(|refused| denied(refused.caller(), &refused))?,
                () = self.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    fn hear(&mut self, request: &M::Request) -> Result<(), Status> {
        if let Some(node) = M::node(request) {
            self.stream.says(Outbound::said(node));
        }
        let heard = self.machine.hear(request).map_err(|error| invalid(&self.follow, &self.caller, &error))?;
        let (caller, answered) = (&self.caller, number(M::answered(request)));
        match heard {
            Heard::Rejected(reason) => {
                self.stream.refused(answered, &reason);
                if let Some(reason) = self.patience.first(&reason) {
                    tracing::warn!(target: "alcazar::refused", %caller, reason, "a client could not use a secret that it was sent");
                }
                self.quiet_until = self.patience.rejected(Instant::now());
            }
            // An answer may come with a subscription, and after a later response; what that one had anew is not meant by it.
            Heard::Acknowledged | Heard::Subscribed | Heard::Stale => {
                tracing::trace!(%caller, ?heard, answered, "heard an SDS client");
                self.stream.acknowledged(answered);
            }
        }
        Ok(())
    }
}

/// Responses are counted from one.
fn number(nonce: &str) -> u64 {
    nonce.parse().unwrap_or(0)
}

/// Logs, once for each name, what a client asked for and does not get.
fn say_what_is_missing<'n>(
    names: impl IntoIterator<Item = &'n str>,
    view: &View,
    told: &mut BTreeSet<String>,
    caller: &Caller,
) {
    for name in names {
        match view.find(name).absence() {
            Some(reason) if told.insert(name.to_owned()) => {
                tracing::warn!(target: "alcazar::refused", %caller, secret = name, reason, "a client asks for a secret that there is not");
            }
            Some(_) => {}
            None => {
                told.remove(name);
            }
        }
    }
}

fn invalid(follow: &Follow, caller: &Caller, error: &RequestError) -> Status {
    if let Some(not_logged_before) = follow.line() {
        tracing::warn!(target: "alcazar::refused", %caller, reason = %error, r#type = SECRET_URL, not_logged_before, "a client's SDS request makes no sense");
    }
    Status::invalid_argument(error.to_string())
}
