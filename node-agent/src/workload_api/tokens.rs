use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alcazar_api::ca::v1::{self, issue_jwt_svid_result::Outcome};
use alcazar_identity::{Credentials, SpiffeId};
use alcazar_service::process::chain;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::allowance::Allowance;
use super::token::{ReplyError, Token};
use crate::authority::{CallError, Session};
use crate::registry::Served;

/// The JWT-SVIDs of this node's workloads, kept for those who ask again. Cheap to clone; clones are the same.
///
/// One token for each registration and set of audiences. At half of its life the next one who asks waits for its successor; while
/// the CA is away it is given until it is over. However many ask for one at a time, the CA is asked once.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<Inner>);

struct Inner {
    session: watch::Receiver<Option<Arc<dyn Session>>>,
    /// By the id of the registration.
    kept: Mutex<BTreeMap<String, Kept>>,
}

/// The tokens of one registration.
struct Kept {
    spiffe_id: SpiffeId,
    allowance: Allowance,
    /// By audiences, sorted.
    slots: BTreeMap<Vec<String>, Slot>,
}

/// Held by who asks the CA; others wait for what comes of it.
type Slot = Arc<tokio::sync::Mutex<Asked>>;

#[derive(Default)]
struct Asked {
    token: Option<Token>,
    failed: Option<(Instant, TokenError)>,
}

impl Tokens {
    pub(crate) fn new(session: watch::Receiver<Option<Arc<dyn Session>>>) -> Self {
        Self(Arc::new(Inner { session, kept: Mutex::default() }))
    }

    /// A token of a workload for an audience.
    ///
    /// # Errors
    /// When none is held and none can be had.
    pub(super) async fn get(
        &self,
        served: &Served,
        credentials: &Credentials,
        audience: &[String],
    ) -> Result<String, TokenError> {
        let mut audience = audience.to_vec();
        audience.sort();
        audience.dedup();
        let slot = self.slot(served, &audience, Instant::now());
        let mut slot = slot.lock().await;
        let now = Instant::now();
        slot.token = slot.token.take().filter(|token| token.is_believed(credentials.bundles()));
        if let Some(token) = slot.token.as_ref().filter(|token| token.is_fresh(now)) {
            return Ok(token.text().to_owned());
        }
        let good = slot.token.as_ref().filter(|token| token.is_good(now)).map(|token| token.text().to_owned());
        if let Some((at, error)) = &slot.failed
            && now.duration_since(*at) < PAUSE
        {
            return good.ok_or_else(|| error.clone());
        }
        let asking = self.ask(served, credentials, audience);
        let outcome = match &good {
            // It has one: it does not wait for a CA that is slow or away.
            Some(_) => timeout(BRIEF, asking).await.unwrap_or(Err(TokenError::Late)),
            None => asking.await,
        };
        match outcome {
            Ok(token) => {
                let text = token.text().to_owned();
                *slot = Asked { token: Some(token), failed: None };
                Ok(text)
            }
            Err(error) => {
                let (registration, reason) = (served.registration().id(), chain(&error));
                tracing::warn!(target: "alcazar::refused", registration, reason, "no new JWT-SVID could be had for a workload");
                slot.failed = Some((Instant::now(), error.clone()));
                good.ok_or(error)
            }
        }
    }

    async fn ask(
        &self,
        served: &Served,
        credentials: &Credentials,
        audience: Vec<String>,
    ) -> Result<Token, TokenError> {
        let registration = served.registration();
        let session = self.0.session.borrow().clone().ok_or(TokenError::NoSession)?;
        let allowed = self.lock().get_mut(registration.id()).is_some_and(|kept| kept.allowance.take(Instant::now()));
        if !allowed {
            return Err(TokenError::TooMany);
        }
        let item = v1::IssueJwtSvid { registration_id: registration.id().to_owned(), audience, ttl: 0 };
        let audience = item.audience.clone();
        let results = session.jwt_svids(vec![item]).await.map_err(Arc::new)?;
        match results.into_iter().next().and_then(|result| result.outcome) {
            Some(Outcome::Svid(reply)) => {
                let (id, bundles) = (registration.spiffe_id(), credentials.bundles());
                Ok(Token::accept(&reply, id, &audience, bundles, Instant::now()).map_err(Arc::new)?)
            }
            Some(Outcome::Refusal(refusal)) => {
                Err(TokenError::Refused { code: Code::from_i32(refusal.code), message: refusal.message })
            }
            None => Err(TokenError::NoAnswer),
        }
    }

    /// The place of a token, made where there is none.
    fn slot(&self, served: &Served, audience: &[String], now: Instant) -> Slot {
        let registration = served.registration();
        let mut all = self.lock();
        let is_its = |kept: &Kept| kept.spiffe_id == *registration.spiffe_id();
        if !all.get(registration.id()).is_some_and(is_its) {
            if all.len() >= MANY {
                all.retain(|_, kept| kept.slots.values().any(|slot| end(slot).is_none_or(|end| now < end)));
            }
            let spiffe_id = registration.spiffe_id().clone();
            let fresh = Kept { spiffe_id, allowance: Allowance::new(now), slots: BTreeMap::new() };
            all.insert(registration.id().to_owned(), fresh);
        }
        let Some(kept) = all.get_mut(registration.id()) else { return Slot::default() };
        if let Some(slot) = kept.slots.get(audience) {
            return slot.clone();
        }
        if kept.slots.len() >= AUDIENCES {
            // Who is being asked for stays.
            let idle = kept.slots.iter().filter_map(|(audience, slot)| Some((end(slot)?, audience)));
            if let Some(first) = idle.min().map(|(_, audience)| audience.clone()) {
                kept.slots.remove(&first);
            }
        }
        kept.slots.entry(audience.to_vec()).or_default().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // Nothing in between can panic half-way.
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When what is in a slot is of no use any more; `None` while somebody asks for it.
fn end(slot: &Slot) -> Option<Instant> {
    let asked = slot.try_lock().ok()?;
    let failed = asked.failed.as_ref().map(|(at, _)| *at + PAUSE);
    asked.token.as_ref().map(Token::over).max(failed)
}

/// Why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum TokenError {
    #[error("this node has no connection to the CA yet")]
    NoSession,
    #[error("too many tokens of this identity were asked for")]
    TooMany,
    #[error(transparent)]
    Call(#[from] Arc<CallError>),
    #[error("the CA refused: {message}")]
    Refused { code: Code, message: String },
    #[error("the CA gave no answer for it")]
    NoAnswer,
    #[error("the CA did not answer in time")]
    Late,
    #[error(transparent)]
    Reply(#[from] Arc<ReplyError>),
}

impl TokenError {
    /// What the caller is told.
    pub(super) fn status(&self) -> tonic::Status {
        match self {
            Self::TooMany => tonic::Status::resource_exhausted(self.to_string()),
            Self::Refused { code: code @ (Code::PermissionDenied | Code::InvalidArgument), message } => {
                tonic::Status::new(*code, message.clone())
            }
            _ => tonic::Status::unavailable("no token can be had now; the agent's log says why"),
        }
    }
}

/// After a failure the CA is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// How long who has a good token waits for its successor.
const BRIEF: Duration = Duration::from_secs(1);
/// The sets of audiences for which tokens of one registration are kept.
const AUDIENCES: usize = 64;
/// With as many registrations it is looked for those whose tokens are over.
const MANY: usize = 1024;
