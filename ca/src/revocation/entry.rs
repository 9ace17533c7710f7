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
    /// All certificates of an identity, and its right to new ones.
    Identity {
        #[serde(with = "text")]
        id: SpiffeId,
        /// Once it is reinstated, certificates whose not-before is earlier stay revoked.
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

    /// The revocation of an identity: of all that was issued until the end of this second, and of whatever is on record as
    /// good from later, since the clock may have been set back. `newest` is the last not-before and the last not-after there.
    pub(crate) fn of_identity(
        id: SpiffeId,
        newest: Option<(SystemTime, SystemTime)>,
        reason: RevocationReason,
        life: Duration,
        now: SystemTime,
        by: &str,
    ) -> Self {
        let (from, end) = newest.unwrap_or((now, now + life));
        let before = crate::issue::whole_seconds(now.max(from)) + Duration::from_secs(1);
        let named = Named::Identity { id, before, reinstated: None };
        Self { named, reason, since: now, until: end.max(now + life) + SKEW, by: by.into() }
    }

    /// What is on record once this was revoked again as `new` says. Nothing is taken back by it: the first moment stays, more
    /// certificates are meant where the clock went on, and a reason gives way to one that says more.
    pub(crate) fn again(&self, new: &Self) -> Self {
        let mut next = Self { reason: weightier(self.reason, new.reason), ..self.clone() };
        if let (Named::Identity { id, before: held, reinstated }, Named::Identity { before: wanted, .. }) =
            (&self.named, &new.named)
        {
            if reinstated.is_some() {
                next = new.clone();
            }
            next.named = Named::Identity { id: id.clone(), before: *held.max(wanted), reinstated: None };
            next.until = self.until.max(new.until);
        }
        if next.reason != self.reason {
            next.by.clone_from(&new.by);
        }
        next
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

/// Of two reasons the one that says more: of two that say as much, the later.
fn weightier(held: RevocationReason, new: RevocationReason) -> RevocationReason {
    if weight(new) >= weight(held) { new } else { held }
}

/// A hold gives way to whatever is final, silence to a reason, and what ends in good order to a key in other hands.
fn weight(reason: RevocationReason) -> u8 {
    match reason {
        RevocationReason::CertificateHold => 0,
        RevocationReason::Unspecified => 1,
        RevocationReason::AffiliationChanged
        | RevocationReason::Superseded
        | RevocationReason::CessationOfOperation => 2,
        RevocationReason::PrivilegeWithdrawn => 3,
        RevocationReason::KeyCompromise | RevocationReason::CaCompromise | RevocationReason::AaCompromise => 4,
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
    /// The version of this content: the present one, or the next, above the one in force. Never below the clock's seconds, so
    /// that a store that was put back to an older state does not repeat versions that verifiers have seen.
    pub(crate) fn of(present: Option<&Self>, in_force: Option<u64>, digest: Fingerprint, now: SystemTime) -> Self {
        match present {
            Some(present) if present.digest == digest => present.clone(),
            present => {
                let highest = present.map(|present| present.version).max(in_force).unwrap_or_default();
                let version = highest.saturating_add(1).max(seconds::of(now));
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

#[cfg(test)]
mod tests {
    use RevocationReason::{CertificateHold, CessationOfOperation, KeyCompromise, Superseded, Unspecified};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn identity(newest: Option<(SystemTime, SystemTime)>, reason: RevocationReason, now: u64) -> Entry {
        let id = "spiffe://td/ns/a/sa/b".parse().unwrap();
        Entry::of_identity(id, newest, reason, Duration::from_secs(100), at(now), "somebody")
    }

    fn before(entry: &Entry) -> SystemTime {
        match entry.named {
            Named::Identity { before, .. } => before,
            Named::Serial { .. } => panic!("an identity"),
        }
    }

    #[test]
    fn all_that_is_on_record_is_meant_whatever_the_clock_says_now() {
        assert_eq!(before(&identity(None, KeyCompromise, 1_000)), at(1_001));
        assert_eq!(before(&identity(Some((at(900), at(1_050))), KeyCompromise, 1_000)), at(1_001));
        // Issued before the clock was set back.
        let ahead = identity(Some((at(1_180), at(1_400))), KeyCompromise, 1_000);
        assert_eq!((before(&ahead), ahead.until), (at(1_181), at(1_400) + SKEW));
    }

    #[test]
    fn a_second_revocation_means_more_and_never_less() {
        let first = identity(None, CessationOfOperation, 1_000);
        let again = first.again(&identity(Some((at(1_180), at(1_400))), KeyCompromise, 1_010));
        assert_eq!((again.since, before(&again), again.reason), (at(1_000), at(1_181), KeyCompromise));
        // By a clock that was set back.
        let back = again.again(&identity(None, Unspecified, 500));
        assert_eq!(back, again);
        let serial =
            |reason| Entry::of_serial("ab".into(), None, reason, Duration::from_secs(100), at(1_000), "somebody");
        for (held, new, expected) in [
            (CertificateHold, KeyCompromise, KeyCompromise),
            (CertificateHold, Unspecified, Unspecified),
            (KeyCompromise, CertificateHold, KeyCompromise),
            (KeyCompromise, Unspecified, KeyCompromise),
            (CessationOfOperation, KeyCompromise, KeyCompromise),
            (KeyCompromise, CessationOfOperation, KeyCompromise),
            (Superseded, CessationOfOperation, CessationOfOperation),
            (Unspecified, Superseded, Superseded),
        ] {
            assert_eq!(serial(held).again(&serial(new)).reason, expected, "{held} {new}");
        }
        // After a reinstatement it is a revocation of its own.
        let Named::Identity { id, before, .. } = first.named.clone() else { panic!("an identity") };
        let given_back = Entry { named: Named::Identity { id, before, reinstated: Some(at(1_500)) }, ..first };
        let anew = given_back.again(&identity(None, Unspecified, 2_000));
        assert_eq!(anew, identity(None, Unspecified, 2_000));
    }

    #[test]
    fn a_changed_list_is_newer_than_any_before_it() {
        let (one, two) = (Fingerprint::of(b"1"), Fingerprint::of(b"2"));
        let first = Version::of(None, None, one, at(1_000));
        assert_eq!(first.version, 1_000);
        assert_eq!(Version::of(Some(&first), Some(5_000), one, at(2_000)), first);
        assert_eq!(Version::of(Some(&first), None, two, at(10)).version, 1_001);
        // The store was put back, and the clock too.
        assert_eq!(Version::of(Some(&first), Some(5_000), two, at(10)).version, 5_001);
    }
}
