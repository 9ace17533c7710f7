use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::keys::Lives;
use crate::duration;

/// JWT-SVIDs, in `ca.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct JwtConfig {
    /// The life of a token, for whoever asks for none. Default: 5m.
    #[serde(deserialize_with = "duration::deserialize")]
    pub ttl: Duration,
    /// The longest that anybody gets; who asks for more gets this. Default: 1h, which is also the most that can be set: a token
    /// cannot be called back.
    #[serde(deserialize_with = "duration::deserialize")]
    pub max_ttl: Duration,
    /// How long a key signs before the next one does. Default: 7d; at least 1h, at most 90d.
    #[serde(deserialize_with = "duration::deserialize")]
    pub key_life: Duration,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300), max_ttl: LONGEST, key_life: 7 * DAY }
    }
}

impl JwtConfig {
    pub(crate) fn check(&self) -> Result<(), JwtConfigError> {
        if self.max_ttl > LONGEST || self.max_ttl.is_zero() {
            return Err(JwtConfigError::MaxTtl);
        }
        if self.ttl > self.max_ttl || self.ttl.is_zero() {
            return Err(JwtConfigError::Ttl);
        }
        if !(HOUR..=90 * DAY).contains(&self.key_life) {
            return Err(JwtConfigError::KeyLife);
        }
        Ok(())
    }

    /// The lives of keys, where everybody looks for a new bundle every `refresh_hint`.
    ///
    /// **Source**: SPIFFE Federation §4.1: a key is published three to five refresh hints before it signs.
    pub(crate) fn lives(&self, refresh_hint: Duration) -> Lives {
        Lives { key: self.key_life, lead: 5 * refresh_hint, token: self.max_ttl + alcazar_api::spiffe::LEEWAY }
    }
}

/// What of it makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JwtConfigError {
    /// `maxTtl`.
    #[error("jwt.maxTtl: more than 0s, at most 1h")]
    MaxTtl,
    /// `ttl`.
    #[error("jwt.ttl: more than 0s, at most jwt.maxTtl")]
    Ttl,
    /// `keyLife`.
    #[error("jwt.keyLife: at least 1h, at most 90d")]
    KeyLife,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const LONGEST: Duration = HOUR;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lives_that_can_be_set_have_limits() {
        let with = |change: fn(&mut JwtConfig)| {
            let mut config = JwtConfig::default();
            change(&mut config);
            config.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|c| c.max_ttl = LONGEST + Duration::from_secs(1)), Err(JwtConfigError::MaxTtl));
        assert_eq!(with(|c| c.max_ttl = Duration::ZERO), Err(JwtConfigError::MaxTtl));
        assert_eq!(with(|c| c.ttl = Duration::ZERO), Err(JwtConfigError::Ttl));
        assert_eq!(with(|c| c.max_ttl = Duration::from_secs(60)), Err(JwtConfigError::Ttl));
        assert_eq!(with(|c| c.key_life = Duration::from_secs(60)), Err(JwtConfigError::KeyLife));
        assert_eq!(with(|c| c.key_life = 91 * DAY), Err(JwtConfigError::KeyLife));
    }
}
