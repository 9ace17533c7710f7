use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::moment;

/// What a token says, once its signature is good.
///
/// **Source**: RFC 7519 §4.1.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    audiences: Vec<String>,
    expires: SystemTime,
    not_before: Option<SystemTime>,
    issued_at: Option<SystemTime>,
    all: Map<String, Value>,
}

/// What a token must say to be for us, now.
#[derive(Debug, Clone, Copy)]
pub struct Expectations<'a> {
    /// It must be for one of these (`aud`). None listed: no token is good.
    pub audiences: &'a [&'a str],
    /// Whom it must be from (`iss`).
    pub issuer: Issuer<'a>,
    /// The clock here.
    pub now: SystemTime,
    /// By how much the issuer's clock may differ from ours.
    pub leeway: Duration,
}

/// Whom a token must be from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issuer<'a> {
    /// Whoever holds the key; for keys that one issuer alone has.
    Any,
    /// This one, character by character.
    Is(&'a str),
}

impl Claims {
    pub(crate) fn from_json(mut all: Map<String, Value>) -> Result<Self, ClaimsError> {
        let moment = |name: &'static str| match all.get(name) {
            None => Ok(None),
            Some(value) => moment::parse(value).map(Some).ok_or(ClaimsError::Malformed(name)),
        };
        let expires = moment("exp")?.ok_or(ClaimsError::NoEnd)?;
        let (not_before, issued_at) = (moment("nbf")?, moment("iat")?);
        for name in ["iss", "sub", "jti"] {
            if all.get(name).is_some_and(|value| !value.is_string()) {
                return Err(ClaimsError::Malformed(name));
            }
        }
        let audiences = match all.remove("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => {
                let texts = several.into_iter().map(|item| match item {
                    Value::String(text) => Ok(text),
                    _ => Err(ClaimsError::Malformed("aud")),
                });
                texts.collect::<Result<_, _>>()?
            }
            Some(_) => return Err(ClaimsError::Malformed("aud")),
        };
        Ok(Self { audiences, expires, not_before, issued_at, all })
    }

    /// Checks that the token is from whom we believe, for us, and good now.
    ///
    /// # Errors
    /// When it is not; the error says what was wanted and what was found, and for times both clocks.
    pub fn meet(&self, expected: &Expectations<'_>) -> Result<(), ClaimsError> {
        if let Issuer::Is(issuer) = expected.issuer
            && self.issuer() != Some(issuer)
        {
            return Err(ClaimsError::Issuer { expected: issuer.into(), found: self.issuer().map(shown) });
        }
        if !self.audiences.iter().any(|audience| expected.audiences.contains(&audience.as_str())) {
            return Err(ClaimsError::Audience {
                expected: expected.audiences.join(", "),
                found: shown(&self.audiences.join(", ")),
            });
        }
        let (now, leeway) = (expected.now, expected.leeway);
        // The moment of the end is after it (RFC 7519 §4.1.4).
        if self.expires.checked_add(leeway).is_some_and(|end| end <= now) {
            return Err(ClaimsError::Expired { end: self.expires, now });
        }
        let latest = now.checked_add(leeway).unwrap_or(now);
        if let Some(start) = self.not_before.filter(|start| *start > latest) {
            return Err(ClaimsError::NotYet { start, now });
        }
        if let Some(issued) = self.issued_at.filter(|issued| *issued > latest) {
            return Err(ClaimsError::FromTheFuture { issued, now });
        }
        Ok(())
    }

    /// Who made it (`iss`).
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// Whom it is about (`sub`).
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// For whom it is (`aud`), in its order.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Its end (`exp`).
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Its beginning (`nbf`).
    pub fn not_before(&self) -> Option<SystemTime> {
        self.not_before
    }

    /// When it was made (`iat`).
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at
    }

    /// Its name (`jti`).
    pub fn id(&self) -> Option<&str> {
        self.text("jti")
    }

    /// A claim by its name; every one but `aud`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.all.get(name)
    }

    /// Every claim but `aud`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.all.iter().map(|(name, value)| (name.as_str(), value))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.all.get(name).and_then(Value::as_str)
    }
}

/// A peer's text in a message, not longer than a reader wants it.
fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Why a token with a good signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// A claim of the wrong shape.
    #[error("the token's claim {0:?} is malformed")]
    Malformed(&'static str),
    /// No `exp`.
    #[error("the token has no end (\"exp\"), and one that is good for ever is not accepted")]
    NoEnd,
    /// From somebody else.
    #[error("the token is from the issuer {found:?}, not from {expected:?}")]
    Issuer {
        /// Who should have made it.
        expected: String,
        /// Who made it.
        found: Option<String>,
    },
    /// For somebody else.
    #[error("the token is for the audience {found:?}; accepted here: {expected:?}")]
    Audience {
        /// Who we are.
        expected: String,
        /// For whom it is.
        found: String,
    },
    /// Too old.
    #[error("the token expired at {}, and the clock here says {}", moment::show(*end), moment::show(*now))]
    Expired {
        /// Its end.
        end: SystemTime,
        /// The clock.
        now: SystemTime,
    },
    /// Too early.
    #[error("the token is good from {} on, and the clock here says {}", moment::show(*start), moment::show(*now))]
    NotYet {
        /// Its beginning.
        start: SystemTime,
        /// The clock.
        now: SystemTime,
    },
    /// Made later than now: one of the clocks is wrong.
    #[error("the token was made at {}, and the clock here says {}", moment::show(*issued), moment::show(*now))]
    FromTheFuture {
        /// When it says it was made.
        issued: SystemTime,
        /// The clock.
        now: SystemTime,
    },
}
