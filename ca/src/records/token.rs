//! Join tokens at rest, and what may be had for one.

use std::time::SystemTime;

use alcazar_identity::{SpiffeId, rfc3339};
use alcazar_store::Revision;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Leaf, Lineage, Stored, seconds, text};
use crate::csr::KeyHash;

/// A join token as it is kept, under the hash of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    /// Whom it admits.
    #[serde(with = "text")]
    pub(crate) node: SpiffeId,
    /// Until when it can be shown.
    #[serde(with = "seconds")]
    pub(crate) expires: SystemTime,
    /// What it was used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) consumed: Option<Consumed>,
}

/// The one use of a token: the certificate that it became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Consumed {
    pub(crate) leaf: Leaf,
}

/// What the bearer of a token gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attestation {
    /// A first certificate.
    Issue,
    /// The certificate that it got before: the reply may have been lost. `finish` when the node's lineage
    /// does not yet have it, because the CA went down in between.
    Repeat { leaf: Leaf, finish: bool },
}

/// Why a token admits nobody.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum TokenRefusal {
    /// Never made here, or forgotten long after its end.
    #[error("the join token is unknown here")]
    Unknown,
    /// Its life is over.
    #[error("the join token expired at {}, and the clock here says {}", rfc3339(*expires), rfc3339(*now))]
    Expired {
        /// When.
        expires: SystemTime,
        /// The clock.
        now: SystemTime,
    },
    /// Used, with another key.
    #[error("the join token was used before, with another key")]
    Used,
    /// Used, and the node has gone on since.
    #[error("the join token was used before, and the node has renewed its certificate since")]
    MovedOn,
}

impl TokenRecord {
    /// What this token gives to the holder of `key` at `now`, where the node's lineage is `lineage`.
    pub(crate) fn attest(
        &self,
        revision: Revision,
        lineage: Option<&Stored<Lineage>>,
        key: KeyHash,
        now: SystemTime,
    ) -> Result<Attestation, TokenRefusal> {
        if now >= self.expires {
            return Err(TokenRefusal::Expired { expires: self.expires, now });
        }
        let Some(Consumed { leaf }) = &self.consumed else { return Ok(Attestation::Issue) };
        if leaf.key != key {
            return Err(TokenRefusal::Used);
        }
        match lineage {
            Some(lineage) if lineage.record.latest.serial == leaf.serial => {
                Ok(Attestation::Repeat { leaf: leaf.clone(), finish: false })
            }
            // The lineage that this token began, gone on from there, or that of a token consumed later.
            Some(lineage) if lineage.record.began_at_or_after(revision) => Err(TokenRefusal::MovedOn),
            _ => Ok(Attestation::Repeat { leaf: leaf.clone(), finish: true }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_admits_one_key_once_while_it_lives() {
        let (ours, other) = (KeyHash::of(b"ours"), KeyHash::of(b"other"));
        let leaf = Leaf::sample(1, ours);
        let fresh = TokenRecord { node: "spiffe://td/node/c/n".parse().unwrap(), expires: at(100), consumed: None };
        let used = TokenRecord { consumed: Some(Consumed { leaf: leaf.clone() }), ..fresh.clone() };
        let lineage = |serial, began| {
            let record = Lineage::begin(Leaf::sample(serial, ours), Revision::new(began));
            Some(Stored { record, revision: Revision::new(99) })
        };
        let repeat = |finish| Ok(Attestation::Repeat { leaf: leaf.clone(), finish });
        let check = |record: &TokenRecord, lineage: Option<Stored<Lineage>>, key, now, expected| {
            assert_eq!(record.attest(Revision::new(10), lineage.as_ref(), key, at(now)), expected);
        };
        check(&fresh, None, ours, 99, Ok(Attestation::Issue));
        check(&fresh, None, ours, 100, Err(TokenRefusal::Expired { expires: at(100), now: at(100) }));
        check(&fresh, lineage(9, 3), ours, 99, Ok(Attestation::Issue));
        check(&used, lineage(1, 10), ours, 99, repeat(false));
        check(&used, lineage(1, 11), other, 99, Err(TokenRefusal::Used));
        check(&used, lineage(1, 11), ours, 100, Err(TokenRefusal::Expired { expires: at(100), now: at(100) }));
        // The node has renewed since: a replayed request must not turn its lineage back.
        check(&used, lineage(2, 10), ours, 99, Err(TokenRefusal::MovedOn));
        check(&used, lineage(2, 11), ours, 99, Err(TokenRefusal::MovedOn));
        // The CA went down between the token and the lineage; an older lineage may have renewed since.
        check(&used, None, ours, 99, repeat(true));
        check(&used, lineage(2, 9), ours, 99, repeat(true));
    }
}
