//! One revocation as it is kept, and the decisions about it.

use std::time::{Duration, SystemTime};

use alcazar_identity::{
    Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason, RevokedIdentity, SpiffeId, TrustDomain,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::records::{seconds, text};

/// A revocation on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    pub(crate) named: Named,
    #[serde(serialize_with = "to_code", deserialize_with = "from_code")]
    pub(crate) reason: RevocationReason,
    #[serde(with = "seconds")]
    pub(crate) since: SystemTime,
    /// When nothing that it concerns can be good any more. An identity that is not reinstated stays beyond that.
    #[serde(with = "seconds")]
    pub(crate) until: SystemTime,
    /// Who revoked it.
    pub(crate) by: String,
}

/// What was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum Named {
    /// One certificate.
    Serial {
        /// As lists have it: lower case, no leading zeros.
        serial: String,
        /// Whom it names, where it is on record.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_text")]
        id: Option<SpiffeId>,
    },
    /// All certificates of an identity from before a moment, and its right to new ones.
    Identity {
        #[serde(with = "text")]
        id: SpiffeId,
        /// Certificates whose not-before is earlier are revoked.
        #[serde(with = "seconds")]
        before: SystemTime,
        /// When it got its right to new ones back.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_seconds")]
        reinstated: Option<SystemTime>,
    },
}

impl Named {
    /// Its place among the records.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Serial { serial, .. } => format!("serial/{serial}"),
            Self::Identity { id, .. } => format!("identity/{}", id.principal()),
        }
    }
}

impl Entry {
    /// The revocation of one certificate, whose last good moment is `not_after`, where that is known.
    pub(crate) fn of_serial(
        serial: String,
        known: Option<(SpiffeId, SystemTime)>,
        reason: RevocationReason,
        life: Duration,
        now: SystemTime,
        by: &str,
    ) -> Self {
        let (id, end) = known.map_or((None, now + life), |(id, not_after)| (Some(id), not_after));
        Self { named: Named::Serial { serial, id }, reason, since: now, until: end + SKEW, by: by.into() }
    }

    /// The revocation of an identity: of all that was issued until the end of this second.
    pub(crate) fn of_identity(
        id: SpiffeId,
        reason: RevocationReason,
        life: Duration,
        now: SystemTime,
        by: &str,
    ) -> Self {
        let before = crate::issue::whole_seconds(now) + Duration::from_secs(1);
        let named = Named::Identity { id, before, reinstated: None };
        Self { named, reason, since: now, until: now + life + SKEW, by: by.into() }
    }

    /// Whether nobody needs it any more.
    pub(crate) fn is_over(&self, now: SystemTime) -> bool {
        let barred = matches!(self.named, Named::Identity { reinstated: None, .. });
        !barred && now > self.until
    }

    fn revocation(&self) -> Revocation {
        Revocation { reason: self.reason, since: self.since, until: self.until }
    }
}

/// A cluster's list of these entries.
pub(crate) fn list(trust_domain: &TrustDomain, cluster: &str, version: u64, entries: &[Entry]) -> RevocationList {
    let mut list = RevocationList::new(trust_domain.clone(), ListIssuer::Cluster(cluster.into()), version);
    for entry in entries {
        match &entry.named {
            // The serial numbers of a trust domain are random: none belongs to two issuers.
            Named::Serial { serial, .. } => {
                list.revoke_serial(serial, None, entry.revocation());
            }
            Named::Identity { id, before, reinstated } => {
                let identity = RevokedIdentity {
                    before: *before,
                    reinstated: reinstated.is_some(),
                    revocation: entry.revocation(),
                };
                list.revoke_identity(id.clone(), identity);
            }
        }
    }
    list
}

/// The version of a list, and what it was of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) version: u64,
    /// Of the content.
    #[serde(with = "text")]
    pub(crate) digest: Fingerprint,
    #[serde(with = "seconds")]
    pub(crate) changed_at: SystemTime,
}

impl Version {
    /// The version of this content: the present one, or the next. Never below the clock's seconds, so that a store that was
    /// put back to an older state does not repeat versions that verifiers have seen.
    pub(crate) fn of(present: Option<&Self>, digest: Fingerprint, now: SystemTime) -> Self {
        match present {
            Some(present) if present.digest == digest => present.clone(),
            present => {
                let version = present.map_or(0, |present| present.version).saturating_add(1).max(seconds::of(now));
                Self { version, digest, changed_at: crate::issue::whole_seconds(now) }
            }
        }
    }
}

fn to_code<S: Serializer>(reason: &RevocationReason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(reason.code())
}

fn from_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RevocationReason, D::Error> {
    let code = u8::deserialize(deserializer)?;
    RevocationReason::from_code(code).ok_or_else(|| serde::de::Error::custom("not a reason of RFC 5280"))
}

mod optional_text {
    use super::{Deserialize, Deserializer, Serializer, SpiffeId};

    pub(super) fn serialize<S: Serializer>(id: &Option<SpiffeId>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.collect_str(id),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SpiffeId>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

mod optional_seconds {
    use super::{Deserialize, Deserializer, Duration, Serializer, SystemTime, seconds};

    pub(super) fn serialize<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.serialize_u64(seconds::of(*at)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        let seconds = Option::<u64>::deserialize(deserializer)?;
        let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        seconds.map(|s| at(s).ok_or_else(|| serde::de::Error::custom("a moment beyond all time"))).transpose()
    }
}

/// Clocks differ: what is over by ours may be good by another's.
pub(crate) const SKEW: Duration = Duration::from_secs(300);
