use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_api::spiffe::{JwtSvidError, validate_jwt_svid};
use alcazar_identity::{SpiffeId, TrustBundles, TrustDomain};
use tokio::time::Instant;

/// A JWT-SVID that the CA issued, held against what was asked for.
#[derive(Clone)]
pub(super) struct Token {
    text: String,
    trust_domain: TrustDomain,
    key_id: String,
    renew: Instant,
    over: Instant,
}

impl Token {
    /// Accepts the CA's reply. Its times are laid on the clock here, so that a clock that is wrong changes nothing.
    ///
    /// # Errors
    /// When the token is another's, for somebody else, not signed by a key of the trust domain, or over.
    pub(super) fn accept(
        reply: &v1::IssuedJwtSvid,
        expected: &SpiffeId,
        audience: &[String],
        bundles: &TrustBundles,
        received: Instant,
    ) -> Result<Self, ReplyError> {
        let moment = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let (issued_at, expires_at) = (moment(reply.issued_at), moment(reply.expires_at));
        for audience in audience {
            let svid = validate_jwt_svid(&reply.token, audience, bundles, SystemTime::UNIX_EPOCH + issued_at)?;
            if svid.id() != expected {
                return Err(ReplyError::OtherIdentity { got: svid.id().clone(), expected: expected.clone() });
            }
        }
        let life = expires_at.checked_sub(issued_at).filter(|life| !life.is_zero() && *life <= LONGEST);
        let life = life.ok_or(ReplyError::Life)?;
        Ok(Self {
            text: reply.token.clone(),
            trust_domain: expected.trust_domain().clone(),
            key_id: reply.key_id.clone(),
            renew: received + life / 2,
            over: received + life,
        })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether its key is one of the trust domain's still: one that was stolen is taken out before the tokens by it are over.
    pub(super) fn is_believed(&self, bundles: &TrustBundles) -> bool {
        bundles.get(&self.trust_domain).is_some_and(|bundle| bundle.jwt_authority(&self.key_id).is_some())
    }

    /// Whether it is good for long enough yet.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now < self.renew
    }

    /// When it is of no use any more.
    pub(super) fn over(&self) -> Instant {
        self.over
    }

    /// Whether it is good.
    pub(super) fn is_good(&self, now: Instant) -> bool {
        now < self.over
    }
}

/// Why the CA's reply is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplyError {
    #[error("the CA issued a token to {got} and not to {expected}")]
    OtherIdentity { got: SpiffeId, expected: SpiffeId },
    #[error("the CA issued a token that is not good")]
    Token(#[from] JwtSvidError),
    #[error("the CA issued a token whose life is none, or longer than any token has")]
    Life,
}

/// No token lives longer, whatever a CA says; beyond this a moment cannot be reckoned with either.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);
