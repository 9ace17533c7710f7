//! Why a request came to nothing: the whole reason for the log, a terse code for the wire.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use alcazar_identity::{Fingerprint, SpiffeId};
use alcazar_ledger::AppendError;
use thiserror::Error;
use tonic::{Code, Status};

use crate::{
    admission::{Overloaded, origin, with_hint},
    ca::Ca,
    callers::{CallerError, ChallengeFailed, Plug},
    csr::CsrError,
    issue::IssueError,
    jwt_authority::JwtIssueError,
    ledger::LedgerError,
    outage::KeepRenewalError,
    records::{LineageRefusal, ParseRegistrationError, RecordError, TokenRefusal},
    revocation::Barred,
    rotation::NoteError,
    serial::NoRandomness,
    token::ParseJoinTokenError,
};

impl Ca {
    /// A request came to nothing: counted, the whole reason logged, the terse status for the wire.
    pub(crate) fn refuse(&self, error: &RequestError, caller: &Asker, request: &'static str) -> Status {
        let status = self.weigh(error, caller, request);
        self.say(&error.told(), caller, request, 1);
        status
    }

    /// The same without the line in the log.
    fn weigh(&self, error: &RequestError, caller: &Asker, request: &'static str) -> Status {
        self.count(error);
        if error.is_ours() {
            let what = format!("{request} of {}: {}", caller.name, alcazar_service::process::chain(error));
            self.0.troubles.note((self.0.clock)(), what);
        }
        let status = error.status();
        self.0.metrics.refused(status.code());
        if status.code() == Code::Unauthenticated {
            self.0.callers.failures(error.plug()).inc();
        }
        status
    }

    /// The line in the log. Whoever asks in a loop, known or not, fills no disk with them; the metrics count it all.
    fn say(&self, told: &Told, caller: &Asker, request: &'static str, items: usize) {
        let line = self.0.admission.line(&caller.who());
        if let Some(lines) = line.unsaid {
            tracing::warn!(target: "alcazar::refused", lines, caller = caller.name, "refusals were not logged one by one; the last of them were of this caller");
        }
        told.log(&caller.name, request, items, !line.is_worth_it);
    }

    /// What is counted of a failure, whoever asked.
    pub(crate) fn count(&self, error: &RequestError) {
        let metrics = &self.0.metrics;
        match error {
            RequestError::Csr(_) => metrics.bad_requests.inc(),
            RequestError::Issue(IssueError::Sign(_)) | RequestError::Jwt(JwtIssueError::Sign(_)) => {
                metrics.sign_errors.inc();
            }
            _ => {}
        }
    }
}

/// Who asks, for the log.
pub(crate) struct Asker {
    pub(crate) name: String,
    pub(crate) address: Option<IpAddr>,
    /// Without a certificate.
    pub(crate) is_stranger: bool,
}

impl Asker {
    /// Whose lines in the log these are: what has a certificate goes by its name, wherever it calls from.
    fn who(&self) -> Box<str> {
        match self.is_stranger {
            true => origin(self.address),
            false => self.name.split(" at ").next().unwrap_or(&self.name).into(),
        }
    }
}

/// What came to nothing of the requests in one message: each is counted, and those of one reason have one line together.
pub(crate) struct Batch<'a> {
    ca: &'a Ca,
    caller: Asker,
    request: &'static str,
    refused: Mutex<BTreeMap<Told, usize>>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(ca: &'a Ca, caller: Asker, request: &'static str) -> Self {
        Self { ca, caller, request, refused: Mutex::default() }
    }

    pub(crate) fn refuse(&self, error: &RequestError) -> Status {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(error.told()).or_default() += 1;
        drop(refused);
        self.ca.weigh(error, &self.caller, self.request)
    }
}

/// Also where the caller went away in the middle of it.
impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let refused = self.refused.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (told, items) in std::mem::take(refused) {
            self.ca.say(&told, &self.caller, self.request, items);
        }
    }
}

/// What a line says of a refusal.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    reason: String,
    plug: String,
    code: String,
    is_ours: bool,
}

impl Told {
    fn log(&self, caller: &str, request: &'static str, items: usize, quiet: bool) {
        let Self { reason, plug, code, is_ours } = self;
        if quiet {
            tracing::debug!(target: "alcazar::refused", caller, plug, request, code, items, reason, "refused one of many requests");
        } else if *is_ours {
            tracing::error!(caller, request, items, reason, "could not serve a request");
        } else {
            tracing::warn!(target: "alcazar::refused", caller, plug, request, code, items, reason, "refused a request for a certificate");
        }
    }
}

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub(crate) enum RequestError {
    #[error("the caller presented no certificate")]
    Anonymous,
    #[error("the caller is not admitted by its evidence")]
    Caller { plug: Plug, source: CallerError },
    #[error("{0} is not a node, and nobody else may ask for certificates")]
    NotANode(SpiffeId),
    #[error("{0} is of another trust domain")]
    Foreign(SpiffeId),
    #[error("{0} is the CA's own identity, which nobody else gets")]
    OwnIdentity(SpiffeId),
    #[error(
        "the evidence is {is}'s, and the agent that shows it expects to become {expects}: correct trustDomain, cluster and node in its configuration, or give it evidence of its own; a join token is still good"
    )]
    OtherNode { is: SpiffeId, expects: SpiffeId },
    #[error("{0} is a node of another cluster than this CA's")]
    OtherCluster(SpiffeId),
    #[error("the node {node} is not admitted by its certificate")]
    Lineage { node: SpiffeId, source: LineageRefusal },
    #[error(
        "{0} has a certificate that another replica gave it while the store was away; until that replica has told the store, it alone renews it"
    )]
    Untold(SpiffeId),
    #[error("the store has not heard of {0} for a week, and nobody is renewed without it for longer")]
    AwayTooLong(SpiffeId),
    #[error(transparent)]
    Kept(#[from] KeepRenewalError),
    #[error("it cannot be noted that somebody is served who never reports")]
    Note(#[from] NoteError),
    #[error(transparent)]
    Revoked(#[from] Barred),
    #[error(
        "the intermediate {0}, with which this replica signs, is revoked: nothing is issued until it has another one"
    )]
    RevokedIssuer(Fingerprint),
    #[error("the join token is none")]
    TokenText(#[source] ParseJoinTokenError),
    #[error("the join token is refused")]
    Token(#[source] TokenRefusal),
    #[error("the join token pins another root than the one of this CA")]
    TokenPin,
    #[error("{what} is not registered for the node {node}")]
    NotRegistered { node: SpiffeId, what: String },
    #[error("the registration {registration} is of the profile {profile:?}, which the configuration does not have")]
    NoProfile { registration: String, profile: String },
    #[error("the certificate request is refused")]
    Csr(#[from] CsrError),
    #[error("nothing was issued")]
    Issue(#[from] IssueError),
    #[error("the CA has too much to do")]
    Overloaded(#[from] Overloaded),
    #[error("no JWT-SVID was issued")]
    Jwt(#[from] JwtIssueError),
    #[error("a field of the request makes no sense")]
    Field(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("a registration makes no sense")]
    Registration(#[from] ParseRegistrationError),
    #[error("{items} certificates in one request are more than {limit}")]
    TooMany { items: usize, limit: usize },
    #[error("the reply has no room for more; the rest is for another request")]
    FullReply,
    #[error("another request changed {0} at the same time")]
    Raced(SpiffeId),
    #[error("the CA's records are not available")]
    Records(#[from] RecordError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl From<(Plug, CallerError)> for RequestError {
    fn from((plug, source): (Plug, CallerError)) -> Self {
        Self::Caller { plug, source }
    }
}

impl From<ChallengeFailed> for RequestError {
    fn from(error: ChallengeFailed) -> Self {
        match error {
            ChallengeFailed::NoMachines => Self::Caller { plug: Plug::Machine, source: CallerError::NoMachines },
            ChallengeFailed::Randomness(error) => error.into(),
        }
    }
}

impl RequestError {
    /// What the wire says of it: a code and a few words that tell an attacker nothing.
    pub(crate) fn terse(&self) -> (Code, &'static str) {
        match self {
            Self::Anonymous => (Code::Unauthenticated, "not authenticated"),
            Self::Caller { source, .. } => source.terse(),
            Self::TokenText(_) | Self::Token(_) | Self::TokenPin => (Code::Unauthenticated, "join token refused"),
            Self::Lineage { .. } => (Code::Unauthenticated, "certificate superseded; attest again"),
            Self::NotANode(_) | Self::Foreign(_) | Self::OwnIdentity(_) | Self::OtherCluster(_) => {
                (Code::PermissionDenied, "not a node of this CA")
            }
            Self::OtherNode { .. } => (Code::FailedPrecondition, "the evidence is another node's"),
            Self::NoProfile { .. } => (Code::FailedPrecondition, "registration cannot be used"),
            Self::Issue(IssueError::KeyKind { .. }) => (Code::InvalidArgument, "certificate request refused"),
            Self::Revoked(_) => (Code::PermissionDenied, "revoked"),
            Self::NotRegistered { .. } => (Code::PermissionDenied, "not registered for this node"),
            Self::Csr(_) => (Code::InvalidArgument, "certificate request refused"),
            Self::Issue(IssueError::TtlTooLong { .. }) => (Code::InvalidArgument, "requested life is too long"),
            Self::Field(_) | Self::Registration(_) => (Code::InvalidArgument, "malformed request"),
            Self::Overloaded(_) => (Code::ResourceExhausted, "try again later"),
            Self::FullReply | Self::Ledger(LedgerError::Append(AppendError::Busy { .. })) => {
                (Code::ResourceExhausted, "try again later")
            }
            Self::TooMany { .. } => (Code::InvalidArgument, "too many certificates in one request"),
            _ if self.is_of_an_outage() => (Code::Unavailable, "the store is away; try again later"),
            Self::Issue(_)
            | Self::Jwt(_)
            | Self::Raced(_)
            | Self::RevokedIssuer(_)
            | Self::Untold(_)
            | Self::AwayTooLong(_)
            | Self::Kept(_)
            | Self::Note(_)
            | Self::Records(_)
            | Self::Ledger(_)
            | Self::Randomness(_) => (Code::Unavailable, "try again later"),
        }
    }

    /// When to try again, where that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded(overloaded) | Self::Caller { source: CallerError::Overloaded(overloaded), .. } => {
                Some(overloaded.retry_after)
            }
            Self::FullReply => Some(SOON),
            Self::Ledger(LedgerError::Append(AppendError::Busy { .. })) => Some(BUSY),
            Self::Caller { source, .. } if source.is_of_an_outage() => Some(AWAY),
            _ if self.is_of_an_outage() => Some(AWAY),
            _ => None,
        }
    }

    /// Whether the store would know the answer, and gives none.
    fn is_of_an_outage(&self) -> bool {
        match self {
            Self::Records(error) | Self::Note(NoteError::Records(error)) => error.is_away(),
            Self::AwayTooLong(_) => true,
            _ => false,
        }
    }

    /// What decided who the caller is, or was to decide it.
    fn plug(&self) -> Plug {
        match self {
            Self::Caller { plug, .. } => *plug,
            Self::TokenText(_) | Self::Token(_) | Self::TokenPin => Plug::JoinToken,
            Self::Anonymous => Plug::Nobody,
            _ => Plug::NodeCertificate,
        }
    }

    /// Whether it is our fault and not the caller's.
    pub(crate) fn is_ours(&self) -> bool {
        self.terse().0 == Code::Unavailable
    }

    fn told(&self) -> Told {
        let (reason, plug) = (alcazar_service::process::chain(self), self.plug().to_string());
        Told { reason, plug, code: format!("{:?}", self.terse().0), is_ours: self.is_ours() }
    }

    fn status(&self) -> Status {
        let (code, words) = self.terse();
        // Whoever has shown good evidence may know whose it is: that is what a person has to mend.
        if let Self::OtherNode { is, expects } = self {
            return Status::new(code, format!("{words}: it is {is}'s, and the agent is configured as {expects}"));
        }
        match self.retry_after() {
            Some(retry_after) => with_hint(code, words, retry_after),
            None => Status::new(code, words),
        }
    }
}

/// When there is room in another reply.
const SOON: Duration = Duration::from_millis(100);
/// When a ledger that is behind with its disk may be asked again.
const BUSY: Duration = Duration::from_secs(1);
/// When it is known that a server is back which is looked for all the time.
const AWAY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
