//! TokenReview: the API server says whose a token is. What it said is believed for a short while.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    account::{AccountError, AccountToken, shown, sooner},
    error::{CallerError, ReviewError},
};
use crate::admission::{Asked, Stranger};
use alcazar_jwt::Token;
use alcazar_service::{clock::Clock, metrics::Counters};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use ring::digest;

/// Asks the API server about tokens.
pub(crate) struct Reviews {
    api: Api<TokenReview>,
    audiences: Vec<String>,
    verdicts: Verdicts,
    clock: Clock,
    outcomes: Counters<1>,
}

impl Reviews {
    pub(crate) fn new(
        client: Client,
        audiences: Vec<String>,
        keep: Duration,
        clock: Clock,
        outcomes: Counters<1>,
    ) -> Self {
        Self { api: Api::all(client), audiences, verdicts: Verdicts::new(keep), clock, outcomes }
    }

    /// What was said of this token a moment ago.
    pub(crate) fn remembered(&self, text: &str) -> Option<Result<AccountToken, AccountError>> {
        let verdict = self.verdicts.find(&TokenKey::of(text), (self.clock)())?;
        self.outcomes.with(["remembered"]).inc();
        Some(verdict)
    }

    /// Whose token it is, if the API server vouches for it, for us. A flood of tokens does not become one of requests to the
    /// API server: of what cannot be good nobody is asked, and the others take turns.
    ///
    /// # Errors
    /// When it does not, or does not answer: that is not the caller's fault, and it may ask again.
    pub(crate) async fn review(
        &self,
        text: &str,
        token: &Token<'_>,
        stranger: &Stranger,
    ) -> Result<AccountToken, CallerError> {
        if let Err(error) = may_be_good(token, &self.audiences, (self.clock)()) {
            self.outcomes.with(["hopeless"]).inc();
            return Err(CallerError::Account(error));
        }
        let _turn = stranger.turn(Asked::Cluster).await.map_err(CallerError::Overloaded)?;
        let (key, now) = (TokenKey::of(text), (self.clock)());
        // Somebody else may have asked of the same token in the meantime.
        if let Some(verdict) = self.remembered(text) {
            return verdict.map_err(CallerError::Account);
        }
        let verdict = match self.ask(text).await {
            Ok(verdict) => verdict,
            Err(error) => {
                self.outcomes.with(["unavailable"]).inc();
                return Err(CallerError::Review(error));
            }
        };
        self.outcomes.with([if verdict.is_ok() { "accepted" } else { "refused" }]).inc();
        self.verdicts.keep(key, verdict.clone(), token.claimed_end(), now);
        verdict.map_err(CallerError::Account)
    }

    async fn ask(&self, text: &str) -> Result<Result<AccountToken, AccountError>, ReviewError> {
        let spec = TokenReviewSpec { token: Some(text.into()), audiences: Some(self.audiences.clone()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let post = PostParams::default();
        let answer = match tokio::time::timeout(DEADLINE, self.api.create(&post, &review)).await {
            Err(_elapsed) => return Err(ReviewError::Late),
            Ok(Err(error)) => {
                let forbidden = matches!(&error, kube::Error::Api(status) if matches!(status.code, 401 | 403));
                let error = Box::new(error);
                return Err(if forbidden { ReviewError::Forbidden(error) } else { ReviewError::Failed(error) });
            }
            Ok(Ok(answer)) => answer,
        };
        let status = answer.status.ok_or(ReviewError::Empty)?;
        Ok(AccountToken::of_review(&status, &self.audiences))
    }
}

/// Whether a token can be good at all, by its own word: then somebody is asked.
///
/// A token that says nothing of its end or of whom it is for may be one of an old kind that the API server knows.
fn may_be_good(token: &Token<'_>, ours: &[String], now: SystemTime) -> Result<(), AccountError> {
    if let Some(end) = token.claimed_end().filter(|end| end.checked_add(super::LEEWAY).is_none_or(|end| end <= now)) {
        return Err(AccountError::Over { end, now });
    }
    match token.claimed_audiences() {
        Some(claimed) if !claimed.iter().any(|audience| ours.iter().any(|ours| ours == audience)) => {
            Err(AccountError::NotForUs { found: shown(&claimed.join(", ")), expected: ours.join(", ") })
        }
        _ => Ok(()),
    }
}

/// What was said of tokens, for as long as it is believed: at most the configured time and the token's own end if it was
/// accepted, a moment if it was refused. Bounded; tokens are known by their hash.
struct Verdicts {
    keep: Duration,
    known: Mutex<HashMap<TokenKey, Verdict>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct TokenKey([u8; 32]);

struct Verdict {
    said: Result<AccountToken, AccountError>,
    from: SystemTime,
    until: SystemTime,
}

impl TokenKey {
    fn of(token: &str) -> Self {
        let mut key = [0; 32];
        key.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        Self(key)
    }
}

impl Verdicts {
    fn new(keep: Duration) -> Self {
        Self { keep, known: Mutex::default() }
    }

    fn find(&self, key: &TokenKey, now: SystemTime) -> Option<Result<AccountToken, AccountError>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|verdict| verdict.holds(now)).map(|verdict| verdict.said.clone())
    }

    fn keep(&self, key: TokenKey, said: Result<AccountToken, AccountError>, end: Option<SystemTime>, now: SystemTime) {
        let until = match said {
            Ok(_) => sooner(end, now + self.keep),
            Err(_) => now + REFUSED_FOR,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, verdict| verdict.holds(now));
            // Whoever fills it with tokens makes the API server be asked more often, and first about bad ones.
            if known.len() >= MOST {
                known.retain(|_, verdict| verdict.said.is_ok());
            }
            if known.len() >= MOST {
                known.clear();
            }
        }
        known.insert(key, Verdict { said, from: now, until });
    }
}

impl Verdict {
    /// A clock that was set back makes it void.
    fn holds(&self, now: SystemTime) -> bool {
        self.from <= now && now < self.until
    }
}

const DEADLINE: Duration = Duration::from_secs(5);
/// So that a client that asks in a loop does not ask the API server in a loop; a token that is good in a moment waits that long.
const REFUSED_FOR: Duration = Duration::from_secs(2);
const MOST: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_verdict_is_believed_for_a_minute_or_until_the_token_ends() {
        let accepted = || Ok(AccountToken { account: "shop/web".parse().unwrap(), pod: None, node: None });
        let refused = || Err(AccountError::Missing("user"));
        let check = |said: Result<AccountToken, AccountError>, end: Option<u64>, lasts: u64| {
            let verdicts = Verdicts::new(Duration::from_secs(60));
            let key = TokenKey::of("a");
            verdicts.keep(key, said.clone(), end.map(at), at(1000));
            for (now, holds) in [(999, false), (1000, true), (1000 + lasts - 1, true), (1000 + lasts, false)] {
                assert_eq!(verdicts.find(&key, at(now)), holds.then(|| said.clone()), "{said:?} {end:?} at {now}");
            }
            assert_eq!(verdicts.find(&TokenKey::of("b"), at(1000)), None);
        };
        check(accepted(), None, 60);
        check(accepted(), Some(5000), 60);
        check(accepted(), Some(1030), 30);
        check(refused(), Some(5000), 2);
        check(refused(), None, 2);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let verdicts = Verdicts::new(Duration::from_secs(60));
        let accepted = AccountToken { account: "shop/web".parse().unwrap(), pod: None, node: None };
        verdicts.keep(TokenKey::of("good"), Ok(accepted.clone()), None, at(1000));
        for number in 0..(MOST + 10) {
            verdicts.keep(TokenKey::of(&number.to_string()), Err(AccountError::Missing("user")), None, at(1000));
        }
        assert!(verdicts.known.lock().unwrap().len() <= MOST);
        assert!(verdicts.find(&TokenKey::of("good"), at(1000)).is_some(), "bad ones push out no good one");
        for number in 0..(MOST + 10) {
            verdicts.keep(TokenKey::of(&number.to_string()), Ok(accepted.clone()), None, at(1000));
        }
        assert!(verdicts.known.lock().unwrap().len() <= MOST);
    }
}
