//! What `ca.yaml` says of limits.

use serde::Deserialize;

use super::bucket::Rate;
use crate::config::ConfigError;

/// How much may be asked of the CA.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Limits {
    /// Certificates for one caller: a node (whatever it asks for), a token's bearer. Default: 6,000 a minute, 10,000 at once.
    pub certificates: Limit,
    /// Requests from one address whose sender has not proved who it is, such as those with a join token. Default: 600 a
    /// minute, 2,000 at once.
    pub strangers: Limit,
    /// Requests that may wait. Default: 20,000.
    pub queue: usize,
    /// Requests that are worked on at a time. Default: 256.
    pub at_a_time: usize,
}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limit {
    /// In the long run; zero: as many as they want.
    pub per_minute: u32,
    /// At once, after some time without any.
    pub burst: u32,
}

impl Limits {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (name, limit) in [("certificates", self.certificates), ("strangers", self.strangers)] {
            if limit.per_minute > 0 && limit.rate().is_none() {
                return Err(ConfigError::Limits(format!("{name}: burst: at least 1, as nothing would ever be issued")));
            }
        }
        if self.at_a_time == 0 || self.at_a_time > MOST || self.queue > MOST {
            return Err(ConfigError::Limits(format!("atATime: 1 to {MOST}; queue: at most {MOST}")));
        }
        Ok(())
    }
}

impl Limit {
    pub(super) fn rate(self) -> Option<Rate> {
        Rate::per_minute(self.per_minute, self.burst)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            certificates: Limit { per_minute: 6_000, burst: 10_000 },
            strangers: Limit { per_minute: 600, burst: 2_000 },
            queue: 20_000,
            at_a_time: 256,
        }
    }
}

const MOST: usize = 1_000_000;
