//! JWT-SVIDs: is this token a workload's, for us, now?

use std::time::{Duration, SystemTime};

use alcazar_identity::{ParseSpiffeIdError, SpiffeId, TrustBundle, TrustBundles, TrustDomain};
use alcazar_jwt::{
    Algorithm, Claims, ClaimsError, Expectations, Issuer, Jwk, Jwks, ParseTokenError, PublicKey, Token, VerifyError,
};

/// A JWT-SVID that is good.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    id: SpiffeId,
    claims: Claims,
}

impl JwtSvid {
    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// All that it says.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// Validates a JWT-SVID that was presented to `audience`.
///
/// The keys are those of the trust domain that the token names as its subject's, and of no other: a trust domain vouches
/// for its own workloads alone. The clocks may differ by [`LEEWAY`].
///
/// # Errors
/// When it is not good; the error says why.
///
/// **Source**: JWT-SVID §2 to §4.
pub fn validate_jwt_svid(
    token: &str,
    audience: &str,
    bundles: &TrustBundles,
    now: SystemTime,
) -> Result<JwtSvid, JwtSvidError> {
    let token = Token::parse(token)?;
    let header = token.header();
    if header.algorithm == Algorithm::EdDsa {
        return Err(JwtSvidError::Algorithm(header.algorithm));
    }
    if header.kind.as_deref().is_some_and(|kind| kind != "JWT" && kind != "JOSE") {
        return Err(JwtSvidError::Kind);
    }
    let id: SpiffeId = token.claimed_subject().ok_or(JwtSvidError::NoSubject)?.parse()?;
    if id.path().is_empty() {
        return Err(JwtSvidError::NotAWorkload(id));
    }
    let bundle = bundles.get(id.trust_domain());
    let bundle = bundle.ok_or_else(|| JwtSvidError::ForeignTrustDomain(id.trust_domain().clone()))?;
    let claims = token.verify(&keys(bundle))?;
    let expected = Expectations { audiences: &[audience], issuer: Issuer::Any, now, leeway: LEEWAY };
    claims.meet(&expected)?;
    Ok(JwtSvid { id, claims })
}

/// The keys of a bundle. One of a kind that signs no JWT-SVID verifies none.
fn keys(bundle: &TrustBundle) -> Jwks {
    let jwk = |authority: &alcazar_identity::JwtAuthority| {
        Some(Jwk::new(authority.key_id(), PublicKey::from_spki_der(authority.public_key()).ok()?))
    };
    bundle.jwt_authorities().filter_map(jwk).collect()
}

/// Why a token is not a JWT-SVID that is good here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtSvidError {
    /// Not a token.
    #[error("it is not a token that can be read")]
    Token(#[from] ParseTokenError),
    /// An algorithm that JWT-SVIDs do not have.
    #[error("a JWT-SVID is not signed with {0}")]
    Algorithm(Algorithm),
    /// A `typ` that is none.
    #[error("the header's \"typ\" is neither JWT nor JOSE")]
    Kind,
    /// No `sub`.
    #[error("the token names no subject")]
    NoSubject,
    /// A `sub` that is no SPIFFE ID.
    #[error("the token's subject is not a SPIFFE ID")]
    Subject(#[from] ParseSpiffeIdError),
    /// A trust domain's own name.
    #[error("{0} names a trust domain and not a workload")]
    NotAWorkload(SpiffeId),
    /// A trust domain that is not believed here.
    #[error("there is no bundle of the trust domain {0} here")]
    ForeignTrustDomain(TrustDomain),
    /// The signature is not that of one of the keys.
    #[error("the token is not one of the trust domain's")]
    Signature(#[from] VerifyError),
    /// Not for us, or not now.
    #[error("the token's claims are refused")]
    Claims(#[from] ClaimsError),
}

/// By how much the clocks of who made a token and who checks it may differ.
pub const LEEWAY: Duration = Duration::from_secs(60);
