//! The line of certificates of one node: who may renew.

use std::time::SystemTime;

use alcazar_identity::{CertificateDer, Fingerprint};
use alcazar_store::Revision;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::{seconds, text};
use crate::{csr::KeyHash, issue::Issued};

/// The latest certificate of a node, and the one before it.
///
/// Only the latest renews, so that a certificate and key that were stolen cannot renew for ever: either the thief or the
/// node renews first, and the other is refused and seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    pub(crate) latest: Leaf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) previous: Option<String>,
    /// The revision at which the join token that it began with was consumed: later is newer.
    #[serde(default)]
    began: u64,
}

/// A certificate as it is kept for a reply that may have been lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaf {
    pub(crate) serial: String,
    #[serde(with = "hex_hash")]
    pub(crate) key: KeyHash,
    #[serde(with = "seconds")]
    pub(crate) issued_at: SystemTime,
    #[serde(with = "seconds")]
    pub(crate) not_after: SystemTime,
    #[serde(with = "text")]
    pub(crate) issuer: Fingerprint,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub(crate) certificate: CertificateDer<'static>,
}

/// What a node that presents its certificate gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// Its next certificate.
    Issue,
    /// The certificate that it got before: the reply was lost.
    Repeat(Leaf),
}

/// Why a node's certificate does not renew.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LineageRefusal {
    /// Nobody of that name was ever attested here.
    #[error("the node has no lineage here; it must attest with a join token")]
    Unknown,
    /// An older certificate, or one with another key after the lost reply.
    #[error(
        "the certificate with serial {presented} is not the latest of its lineage ({latest}); it was renewed by another holder, or is a copy"
    )]
    Superseded {
        /// The serial that was presented.
        presented: String,
        /// The serial that would renew.
        latest: String,
    },
}

impl Lineage {
    /// A lineage that begins with this certificate, for a token consumed at this revision.
    pub(crate) fn begin(leaf: Leaf, consumed: Revision) -> Self {
        Self { latest: leaf, previous: None, began: consumed.get() }
    }

    /// Whether it is the lineage of the token that was consumed at this revision, or of one that was consumed later.
    pub(crate) fn began_at_or_after(&self, consumed: Revision) -> bool {
        self.began >= consumed.get()
    }

    /// What the holder of the certificate `presented` gets for the key `key`.
    pub(crate) fn renew(&self, presented: &str, key: KeyHash) -> Result<Renewal, LineageRefusal> {
        if presented == self.latest.serial {
            return Ok(Renewal::Issue);
        }
        if self.previous.as_deref() == Some(presented) && self.latest.key == key {
            return Ok(Renewal::Repeat(self.latest.clone()));
        }
        Err(LineageRefusal::Superseded { presented: presented.into(), latest: self.latest.serial.clone() })
    }

    /// Whether the certificate still speaks for the node: the latest, or the one before it, because a connection
    /// that was made before a renewal goes on for a while.
    pub(crate) fn speaks(&self, presented: &str) -> Result<(), LineageRefusal> {
        if presented == self.latest.serial || self.previous.as_deref() == Some(presented) {
            return Ok(());
        }
        Err(LineageRefusal::Superseded { presented: presented.into(), latest: self.latest.serial.clone() })
    }

    /// The lineage with `leaf` in place of a latest certificate that its holder never received.
    pub(crate) fn instead(&self, leaf: Leaf) -> Self {
        Self { latest: leaf, ..self.clone() }
    }

    /// The lineage after the holder of its latest certificate got `leaf`.
    pub(crate) fn next(&self, leaf: Leaf) -> Self {
        Self { latest: leaf, previous: Some(self.latest.serial.clone()), began: self.began }
    }
}

impl Leaf {
    /// Whether it is worth giving out once more: signed by the present issuer, and most of its life before it.
    pub(crate) fn is_repeatable(&self, issuer: Fingerprint, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.issued_at).unwrap_or_default();
        self.issuer == issuer && now.checked_add(life / 2).is_some_and(|half| half < self.not_after)
    }
}

impl From<&Issued> for Leaf {
    fn from(issued: &Issued) -> Self {
        Self {
            serial: issued.serial.to_string(),
            key: issued.key_hash,
            issued_at: issued.issued_at,
            not_after: issued.validity.not_after(),
            issuer: issued.issuer,
            certificate: issued.certificate.clone(),
        }
    }
}

#[cfg(test)]
impl Leaf {
    pub(crate) fn sample(serial: u32, key: KeyHash) -> Self {
        let at = SystemTime::UNIX_EPOCH;
        Self {
            serial: serial.to_string(),
            key,
            issued_at: at,
            not_after: at,
            issuer: Fingerprint::of(b""),
            certificate: vec![1, 2, 3].into(),
        }
    }
}

mod hex_hash {
    use super::{Deserialize, Deserializer, Fingerprint, KeyHash, Serializer};

    pub(super) fn serialize<S: Serializer>(hash: &KeyHash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyHash, D::Error> {
        let digits: Fingerprint = String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)?;
        Ok(KeyHash::from_digest(*digits.as_bytes()))
    }
}

fn to_base64<S: Serializer>(certificate: &CertificateDer<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(certificate))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CertificateDer<'static>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map(CertificateDer::from).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_renews_and_a_lost_reply_is_repeated_for_its_key_alone() {
        let (one, two, other) = (KeyHash::of(b"1"), KeyHash::of(b"2"), KeyHash::of(b"3"));
        let first = Lineage::begin(Leaf::sample(1, one), Revision::new(7));
        assert_eq!(first.renew("1", two), Ok(Renewal::Issue));
        assert!(first.renew("0", two).is_err());

        let second = first.next(Leaf::sample(2, two));
        assert_eq!(second.renew("2", other), Ok(Renewal::Issue));
        assert_eq!(second.renew("1", two), Ok(Renewal::Repeat(Leaf::sample(2, two))));
        assert!(second.renew("1", other).is_err());
        assert_eq!((second.speaks("2"), second.speaks("1")), (Ok(()), Ok(())));

        let third = second.next(Leaf::sample(3, other));
        assert!(third.renew("1", two).is_err());
        assert!(third.speaks("1").is_err());
        assert_eq!(third.renew("2", other), Ok(Renewal::Repeat(Leaf::sample(3, other))));
        // However often it renews, it began when it began.
        assert!(third.began_at_or_after(Revision::new(7)) && !third.began_at_or_after(Revision::new(8)));
    }

    #[test]
    fn a_lineage_reads_back() {
        let lineage = Lineage::begin(Leaf::sample(1, KeyHash::of(b"1")), Revision::new(7))
            .next(Leaf::sample(2, KeyHash::of(b"2")));
        let text = serde_json::to_string(&lineage).unwrap();
        assert_eq!(serde_json::from_str::<Lineage>(&text).unwrap(), lineage);
    }
}
