//! A JWT-SVID, from a registration and an audience: authorize, sign, record, reply.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::SpiffeId;
use alcazar_jwt::{Algorithm, SignError, SignJwt, fixed_of_der};
use serde::Serialize;
use thiserror::Error;

use super::keys::{self, JwtKey};
use crate::{
    ca::Ca,
    ledger::Entry,
    records::{RegistrationId, seconds},
    refusal::RequestError,
    requests::Node,
    serial::{NoRandomness, random_bytes},
    signer::Signer,
};

/// A token as the caller gets it.
#[derive(Clone, Debug)]
pub(crate) struct IssuedJwt {
    pub(crate) token: String,
    pub(crate) facts: JwtFacts,
}

/// What is on record of a token: all but the token, which is a secret.
#[derive(Clone, Debug)]
pub(crate) struct JwtFacts {
    pub(crate) subject: SpiffeId,
    pub(crate) audience: Vec<String>,
    /// The token's own name (`jti`).
    pub(crate) id: String,
    pub(crate) key_id: String,
    pub(crate) issued_at: SystemTime,
    pub(crate) expires: SystemTime,
}

/// **Source**: JWT-SVID §3, RFC 7519 §4.1.
#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    aud: &'a [String],
    exp: u64,
    iat: u64,
    jti: &'a str,
}

impl Ca {
    /// A JWT-SVID for the workload that is registered for the node under this name.
    pub(crate) async fn issue_jwt_svid(
        &self,
        node: &Node,
        registration: &str,
        audience: &[String],
        ttl: Option<Duration>,
    ) -> Result<IssuedJwt, RequestError> {
        let registration = self.registration_of(node, registration).await?;
        self.permits(registration.spiffe_id())?;
        check_audience(audience).map_err(|error| RequestError::Field(Box::new(error)))?;
        let (config, profile) = (&self.0.config.jwt, self.profile(&registration)?);
        // Who is registered for short lives, or is of a profile that has no longer ones, gets no long token either.
        let longest = registration.ttl().unwrap_or(config.max_ttl).min(profile.max_ttl()).min(config.max_ttl);
        let ttl = ttl.unwrap_or(config.ttl).min(longest);
        self.note_token(ttl).await?;
        let issued = self.sign_jwt(registration.spiffe_id(), audience, ttl).await?;
        self.record_jwt(&issued.facts, node.id.as_str(), registration.id()).await?;
        // Revoked while it was made: nobody gets it.
        self.permits(registration.spiffe_id())?;
        Ok(issued)
    }

    /// On record first, then in the log; the reply comes after.
    async fn record_jwt(
        &self,
        facts: &JwtFacts,
        caller: &str,
        registration: &RegistrationId,
    ) -> Result<(), RequestError> {
        self.0.ledger.record(&Entry::JwtSvid { facts, caller }).await?;
        self.0.metrics.tokens_issued.inc();
        let (expires, audience) = (alcazar_identity::rfc3339(facts.expires), facts.audience.join(", "));
        tracing::info!(target: "alcazar::issued", spiffe_id = %facts.subject, jti = facts.id, audience, expires, caller, registration = %registration, "issued a JWT-SVID");
        Ok(())
    }

    pub(crate) async fn sign_jwt(
        &self,
        subject: &SpiffeId,
        audience: &[String],
        ttl: Duration,
    ) -> Result<IssuedJwt, JwtIssueError> {
        let now = crate::issue::whole_seconds((self.0.clock)());
        let (key, signer) = self.jwt_signer(now).ok_or(JwtIssueError::NoKey)?;
        // Nothing outlives the key that it is checked with.
        let expires = crate::issue::whole_seconds(now + ttl).min(key.last_expiry());
        let id: String = random_bytes::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let facts = JwtFacts {
            subject: subject.clone(),
            audience: audience.to_vec(),
            id,
            key_id: key.key_id.clone(),
            issued_at: now,
            expires,
        };
        let made = facts.clone();
        let remote = signer.is_remote();
        let sign = move || {
            let claims = Claims {
                sub: made.subject.as_str(),
                aud: &made.audience,
                exp: seconds::of(made.expires),
                iat: seconds::of(made.issued_at),
                jti: &made.id,
            };
            alcazar_jwt::sign(Some("JWT"), &claims, &JwtSigner { key_id: made.key_id.clone(), signer })
        };
        let token = if remote {
            self.0.signing.with(sign).await.map_err(|error| SignError::Signer(Box::new(error)))?
        } else {
            sign()
        };
        Ok(IssuedJwt { token: token?, facts })
    }

    /// The key that signs at this moment.
    pub(crate) fn jwt_key(&self, now: SystemTime) -> Option<JwtKey> {
        Some(self.jwt_signer(now)?.0)
    }

    /// The same, to sign with.
    fn jwt_signer(&self, now: SystemTime) -> Option<(JwtKey, Arc<dyn Signer>)> {
        let hierarchy = self.hierarchy();
        let signers = self.0.jwt.signers();
        let held = signers.keys().cloned().collect();
        let key = keys::signing(hierarchy.jwt_keys(), &held, now)?;
        Some((key.clone(), signers.get(&key.key_id)?.clone()))
    }
}

/// A CA-side key, as tokens are signed with it.
struct JwtSigner {
    key_id: String,
    signer: Arc<dyn Signer>,
}

impl SignJwt for JwtSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Es256
    }

    fn key_id(&self) -> &str {
        &self.key_id
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(fixed_of_der(Algorithm::Es256, &self.signer.sign(message)?)?)
    }
}

fn check_audience(audience: &[String]) -> Result<(), AudienceError> {
    if audience.is_empty() || audience.len() > MOST_AUDIENCES {
        return Err(AudienceError::Number(audience.len()));
    }
    let bytes = audience.iter().map(String::len).sum();
    if bytes > LONGEST_TOGETHER {
        return Err(AudienceError::Together(bytes));
    }
    match audience
        .iter()
        .find(|one| one.is_empty() || one.len() > LONGEST_AUDIENCE || one.chars().any(char::is_control))
    {
        Some(one) => Err(AudienceError::Text(one.chars().take(80).collect())),
        None => Ok(()),
    }
}

/// Why nobody can be the audience of a token.
#[derive(Debug, Error)]
enum AudienceError {
    #[error("a JWT-SVID is for 1 to {MOST_AUDIENCES} audiences, not for {0}")]
    Number(usize),
    #[error("{0:?} cannot be an audience: 1 to {LONGEST_AUDIENCE} bytes, no control characters")]
    Text(String),
    #[error("the audiences of a JWT-SVID have at most {LONGEST_TOGETHER} bytes together, and these have {0}")]
    Together(usize),
}

/// Why a JWT-SVID was not made.
#[derive(Debug, Error)]
pub(crate) enum JwtIssueError {
    #[error("this CA has no key for JWT-SVIDs that verifiers know by now")]
    NoKey,
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

const MOST_AUDIENCES: usize = 16;
const LONGEST_AUDIENCE: usize = 1024;
/// A token travels in a header of HTTP, where few servers take more than 8 KiB.
const LONGEST_TOGETHER: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_somebody_and_not_everybody() {
        let check = |audience: &[&str]| {
            check_audience(&audience.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()).is_ok()
        };
        assert!(check(&["reports"]) && check(&["spiffe://td/ns/a/sa/b", "https://x.example"]));
        assert!(!check(&[]) && !check(&[""]) && !check(&["a\nb"]) && !check(&[&"x".repeat(1025)]));
        assert!(!check(&["x"; 17]));
        assert!(check(&[&*"x".repeat(1024); 4]) && !check(&[&*"x".repeat(1000); 5]));
    }
}
