//! Asking the members of one etcd cluster: one after another, each call within its deadline, as the right user.

use std::{
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tonic::{
    Code, ConnectError, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::{
    config::{EtcdConfig, EtcdConfigError},
    wire::{AuthenticateRequest, RangeResponse, ResponseHeader, TxnResponse, auth_client::AuthClient},
};
use crate::StoreError;

/// The members, and the one that answered last.
#[derive(Debug)]
pub(super) struct Cluster {
    config: EtcdConfig,
    members: Vec<Mutex<Channel>>,
    current: AtomicUsize,
    token: Mutex<Option<MetadataValue<Ascii>>>,
    /// What the first answer said; 0 before.
    id: AtomicU64,
}

/// Whether a call may be made again when nobody knows if it was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing.
    Freely,
    /// Only where it surely did not arrive.
    Unsent,
}

impl Cluster {
    pub(super) fn new(config: EtcdConfig) -> Result<Self, EtcdConfigError> {
        config.check()?;
        let members =
            config.endpoints.iter().map(|text| config.channel(text).map(Mutex::new)).collect::<Result<_, _>>()?;
        Ok(Self { config, members, current: AtomicUsize::new(0), token: Mutex::new(None), id: AtomicU64::new(0) })
    }

    pub(super) fn config(&self) -> &EtcdConfig {
        &self.config
    }

    /// The member to ask next.
    pub(super) fn current(&self) -> Member<'_> {
        let at = self.current.load(Ordering::Relaxed) % self.members.len().max(1);
        let endpoint = self.config.endpoints.get(at).map_or("", String::as_str);
        let channel =
            self.members.get(at).map(|channel| channel.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Member { at, endpoint, channel }
    }

    /// Goes on to the next member after `failed` did not answer.
    pub(super) fn pass(&self, failed: &Member<'_>) {
        // A new channel reads the certificates again: they may have been replaced since.
        if let (Some(channel), Ok(fresh)) = (self.members.get(failed.at), self.config.channel(failed.endpoint)) {
            *channel.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        let next = failed.at.wrapping_add(1) % self.members.len().max(1);
        // Where another call has moved on already, its choice stays.
        if self.current.load(Ordering::Relaxed) == failed.at {
            self.current.store(next, Ordering::Relaxed);
        }
    }

    /// Makes a call, over the members in turn as far as `repeat` allows, within the deadline.
    pub(super) async fn call<Q, P, F, Fut>(
        &self,
        doing: &'static str,
        repeat: Repeat,
        message: Q,
        call: F,
    ) -> Result<P, StoreError>
    where
        Q: Clone,
        P: Headed,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<P>, Status>>,
    {
        let end = Instant::now() + self.config.deadline;
        let share = self.share(repeat);
        let mut tried = 0;
        let mut authenticated = false;
        loop {
            let member = self.current();
            let Some(channel) = member.channel.clone() else { return Err(StoreError::Closed) };
            let patience = share.min(end.saturating_duration_since(Instant::now()));
            let mut request = Request::new(message.clone());
            self.sign(&mut request, &member, patience).await?;
            let error = match timeout(patience, call(channel, request)).await {
                Ok(Ok(reply)) => return self.verified(doing, &member, reply.into_inner()),
                Ok(Err(status)) if wants_token(&status) && self.config.user.is_some() && !authenticated => {
                    authenticated = true;
                    self.authenticate(&member, patience).await?;
                    continue;
                }
                Ok(Err(status)) => {
                    let again = is_unsent(&status) || repeat == Repeat::Freely && is_passing(&status);
                    if !again && !is_passing(&status) {
                        return Err(member.refused(doing, status));
                    }
                    self.pass(&member);
                    (member.refused(doing, status), again)
                }
                Err(_elapsed) => {
                    self.pass(&member);
                    (member.silent(doing, patience), repeat == Repeat::Freely)
                }
            };
            tried += 1;
            let (error, again) = error;
            if !again || tried >= self.members.len() || Instant::now() >= end {
                return Err(error);
            }
        }
    }

    /// How long one member may take: a call that can be made again leaves time for the others.
    fn share(&self, repeat: Repeat) -> Duration {
        let members = u32::try_from(self.members.len()).unwrap_or(u32::MAX).max(1);
        if repeat == Repeat::Freely { self.config.deadline / members } else { self.config.deadline }
    }

    /// Puts the user's token on a request, where there is a user. Without it etcd would take the name in the certificate.
    pub(super) async fn sign<Q>(
        &self,
        request: &mut Request<Q>,
        member: &Member<'_>,
        patience: Duration,
    ) -> Result<(), StoreError> {
        if self.config.user.is_some() && self.token().is_none() {
            self.authenticate(member, patience).await.inspect_err(|_error| self.pass(member))?;
        }
        if let Some(token) = self.token() {
            request.metadata_mut().insert("token", token);
        }
        Ok(())
    }

    fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gets a token for the configured user. etcd forgets tokens after minutes, and all of them at a restart.
    pub(super) async fn authenticate(&self, member: &Member<'_>, patience: Duration) -> Result<(), StoreError> {
        const DOING: &str = "authenticate";
        let (Some(user), Some(channel)) = (&self.config.user, member.channel.clone()) else { return Ok(()) };
        let password = user.password().map_err(|error| member.failed(DOING, error))?;
        // The generated message holds plain text; it lives for this call.
        let message = AuthenticateRequest { name: user.name.clone(), password: password.to_string() };
        let mut client = AuthClient::new(channel);
        let reply = match timeout(patience, client.authenticate(message)).await {
            Ok(reply) => reply.map_err(|status| member.refused(DOING, status))?.into_inner(),
            Err(_elapsed) => return Err(member.silent(DOING, patience)),
        };
        let mut token: MetadataValue<Ascii> = reply.token.parse().map_err(|error| member.failed(DOING, error))?;
        token.set_sensitive(true);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    /// An answer of the cluster that answered first. An endpoint that leads to another one would tell another truth.
    pub(super) fn verified<P: Headed>(
        &self,
        doing: &'static str,
        member: &Member<'_>,
        reply: P,
    ) -> Result<P, StoreError> {
        let found = reply.header().map_or(0, |header| header.cluster_id);
        match self.id.compare_exchange(0, found, Ordering::Relaxed, Ordering::Relaxed) {
            Err(known) if known != found => {
                self.pass(member);
                Err(member.failed(doing, AnotherCluster { known, found }))
            }
            _ => Ok(reply),
        }
    }
}

/// One member, as of one moment.
pub(super) struct Member<'a> {
    at: usize,
    pub(super) endpoint: &'a str,
    pub(super) channel: Option<Channel>,
}

impl Member<'_> {
    pub(super) fn refused(&self, doing: &'static str, status: Status) -> StoreError {
        self.failed(doing, status)
    }

    pub(super) fn silent(&self, doing: &'static str, after: Duration) -> StoreError {
        StoreError::Silent { doing, server: self.endpoint.into(), after }
    }

    pub(super) fn failed(&self, doing: &'static str, source: impl Error + Send + Sync + 'static) -> StoreError {
        StoreError::Remote { doing, server: self.endpoint.into(), source: Arc::new(source) }
    }
}

/// An endpoint of another cluster than the others.
#[derive(Debug, thiserror::Error)]
#[error("it is a member of the etcd cluster {found:x}, and the store is in the cluster {known:x}")]
struct AnotherCluster {
    known: u64,
    found: u64,
}

/// Every answer of etcd says which cluster it is from.
pub(super) trait Headed {
    fn header(&self) -> Option<&ResponseHeader>;
}

impl Headed for RangeResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }
}

impl Headed for TxnResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }
}

impl Headed for super::wire::WatchResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }
}

/// Whether etcd asks who this is. It says so in one of three ways: no token at all, one that it has forgotten, or one from before
/// its users or roles were changed (signed tokens alone, which live on otherwise).
pub(super) fn wants_token(status: &Status) -> bool {
    let says = |text| status.message().contains(text);
    status.code() == Code::Unauthenticated
        || status.code() == Code::InvalidArgument
            && (says("user name is empty") || says("revision of auth store is old"))
}

/// Whether another member, or this one a little later, may answer.
pub(super) fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
    )
}

/// Whether the request surely never left.
fn is_unsent(status: &Status) -> bool {
    let mut cause = Error::source(status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
