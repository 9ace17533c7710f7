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
/// node renews first, and when the other one would, there are two holders, and the lineage ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    pub(crate) latest: Leaf,
    /// The serial of the certificate before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) previous: Option<String>,
    /// The certificate before. Earlier versions kept its serial alone.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_text")]
    previous_print: Option<Fingerprint>,
    /// The revision at which the join token that it began with was consumed: later is newer.
    #[serde(default)]
    began: u64,
    /// Its first certificate, which tells lineages apart. Earlier versions kept none.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_text")]
    origin: Option<Fingerprint>,
    /// Since when all certificates of the node are of this lineage. Earlier versions kept nothing: of theirs, since a renewal.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_seconds")]
    since: Option<SystemTime>,
    /// The keys of the certificates before the latest, the newest first: the last few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyTag>,
    /// Another certificate for the latest key, of a replica that did not know of this one: its holder has one of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    twin: Option<Mark>,
    /// The last certificate of another replica, of which the store had not heard, that its holder went on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adopted: Option<Mark>,
}

/// A certificate as it is kept for a reply that may have been lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "LeafRecord", into = "LeafRecord")]
pub(crate) struct Leaf {
    pub(crate) serial: String,
    pub(crate) key: KeyHash,
    pub(crate) issued_at: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) issuer: Fingerprint,
    /// Empty where only what is asked all the time is held in memory.
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) print: Fingerprint,
}

/// A leaf as it is stored. What it is told by follows from the certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LeafRecord {
    serial: String,
    #[serde(with = "hex_hash")]
    key: KeyHash,
    #[serde(with = "seconds")]
    issued_at: SystemTime,
    #[serde(with = "seconds")]
    not_after: SystemTime,
    #[serde(with = "text")]
    issuer: Fingerprint,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    certificate: CertificateDer<'static>,
}

/// What tells a certificate from every other, whoever issued it: a serial alone is its issuer's to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) serial: String,
    #[serde(with = "text")]
    pub(crate) print: Fingerprint,
}

/// Enough of a key's hash to know the key again: 128 bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct KeyTag(Box<str>);

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
    /// One that another holder has renewed: one of the two has stolen its key.
    #[error(
        "another holder has renewed the certificate with serial {presented} before ({latest} is the latest): its key was copied, and the lineage is ended"
    )]
    TwoHolders {
        /// The serial that was presented.
        presented: String,
        /// The serial that renewed until now.
        latest: String,
    },
}

impl Lineage {
    /// A lineage that begins with this certificate, for a token consumed at this revision.
    pub(crate) fn begin(leaf: Leaf, consumed: Revision) -> Self {
        let (origin, since) = (Some(leaf.print), Some(leaf.issued_at));
        Self {
            latest: leaf,
            previous: None,
            previous_print: None,
            began: consumed.get(),
            origin,
            since,
            keys: Vec::new(),
            twin: None,
            adopted: None,
        }
    }

    /// Whether it is the lineage of the token that was consumed at this revision, or of one that was consumed later.
    pub(crate) fn began_at_or_after(&self, consumed: Revision) -> bool {
        self.began >= consumed.get()
    }

    /// Whether both are the same lineage, however far each has come. Of two that began before their first certificate was
    /// kept, the token decides.
    pub(crate) fn is_the_same_as(&self, other: &Self) -> bool {
        let origins = self.origin.zip(other.origin);
        self.began == other.began && origins.is_none_or(|(one, other)| one == other)
    }

    /// Whether it is the latest certificate, or its twin.
    pub(crate) fn is_latest(&self, presented: &Mark) -> bool {
        self.latest.is(presented) || self.twin.as_ref() == Some(presented)
    }

    /// Whether it is the certificate before the latest.
    pub(crate) fn was_latest(&self, presented: &Mark) -> bool {
        self.previous.as_ref() == Some(&presented.serial)
            && self.previous_print.is_none_or(|print| print == presented.print)
    }

    /// What the holder of the certificate `presented` gets for the key `key`.
    pub(crate) fn renew(&self, presented: &Mark, key: KeyHash) -> Result<Renewal, LineageRefusal> {
        if self.is_latest(presented) {
            return Ok(Renewal::Issue);
        }
        if self.was_latest(presented) && self.latest.key == key {
            return Ok(Renewal::Repeat(self.latest.clone()));
        }
        Err(self.superseded(presented))
    }

    /// Whether the certificate still speaks for the node: the latest, or the one before it, because a connection
    /// that was made before a renewal goes on for a while.
    pub(crate) fn speaks(&self, presented: &Mark) -> Result<(), LineageRefusal> {
        match self.is_latest(presented) || self.was_latest(presented) {
            true => Ok(()),
            false => Err(self.superseded(presented)),
        }
    }

    /// Whether a renewal by this certificate, which was issued then, for this key shows that the lineage has two holders: the
    /// latest came from it, by somebody else. Whoever has one goes on from the latest alone, or asks again with the latest key.
    /// A certificate of an earlier lineage proves nothing of this one.
    pub(crate) fn is_forked_by(&self, presented: &Mark, issued: SystemTime, key: Option<KeyHash>) -> bool {
        if self.is_latest(presented) || issued > self.latest.issued_at {
            return false;
        }
        if self.was_latest(presented) {
            return key.is_some_and(|key| key != self.latest.key);
        }
        self.origin == Some(presented.print) || self.since.is_some_and(|since| issued > since)
    }

    /// What is said to the holder of the certificate that has forked it.
    pub(crate) fn forked(&self, presented: &Mark) -> LineageRefusal {
        LineageRefusal::TwoHolders { presented: presented.serial.clone(), latest: self.latest.serial.clone() }
    }

    fn superseded(&self, presented: &Mark) -> LineageRefusal {
        LineageRefusal::Superseded { presented: presented.serial.clone(), latest: self.latest.serial.clone() }
    }

    /// The lineage with `leaf` in place of a latest certificate that its holder never received.
    pub(crate) fn instead(&self, leaf: Leaf) -> Self {
        Self { latest: leaf, twin: None, ..self.clone() }
    }

    /// The lineage after the holder of its latest certificate, who presented it, got `leaf`.
    pub(crate) fn next(&self, leaf: Leaf, presented: &Mark) -> Self {
        let keys = std::iter::once(&self.latest.key.tag()).chain(&self.keys).take(KEYS).cloned().collect();
        let since = self.since.or(Some(leaf.issued_at));
        Self {
            latest: leaf,
            previous: Some(presented.serial.clone()),
            previous_print: Some(presented.print),
            began: self.began,
            origin: self.origin,
            since,
            keys,
            twin: None,
            adopted: self.adopted.clone(),
        }
    }

    /// The same, where its holder went on from a certificate of another replica.
    pub(crate) fn adopting(self, from: &Mark) -> Self {
        Self { adopted: Some(from.clone()), ..self }
    }

    /// Whether its holder went on from this certificate of another replica.
    pub(crate) fn has_adopted(&self, mark: &Mark) -> bool {
        self.adopted.as_ref() == Some(mark)
    }

    /// The lineage where another replica has issued `other` for the same key.
    pub(crate) fn with_twin(&self, other: &Leaf) -> Self {
        Self { twin: Some(other.mark()), ..self.clone() }
    }

    /// The keys of its certificates, the latest first: the last few.
    pub(crate) fn keys(&self) -> impl Iterator<Item = KeyTag> {
        std::iter::once(self.latest.key.tag()).chain(self.keys.iter().cloned())
    }

    /// What is held in memory of each: all but the certificate.
    pub(crate) fn compact(self) -> Self {
        Self { latest: Leaf { certificate: CertificateDer::from(Vec::new()), ..self.latest }, ..self }
    }
}

impl Leaf {
    /// Whether it is worth giving out once more: signed by the present issuer, and most of its life before it.
    pub(crate) fn is_repeatable(&self, issuer: Fingerprint, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.issued_at).unwrap_or_default();
        self.issuer == issuer && now.checked_add(life / 2).is_some_and(|half| half < self.not_after)
    }

    /// Whether the certificate is here, and not only what tells it apart.
    pub(crate) fn is_whole(&self) -> bool {
        !self.certificate.is_empty()
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { serial: self.serial.clone(), print: self.print }
    }

    fn is(&self, mark: &Mark) -> bool {
        self.serial == mark.serial && self.print == mark.print
    }
}

impl KeyHash {
    pub(crate) fn tag(&self) -> KeyTag {
        KeyTag(self.to_string().chars().take(32).collect())
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
            print: Fingerprint::of(&issued.certificate),
        }
    }
}

impl From<LeafRecord> for Leaf {
    fn from(record: LeafRecord) -> Self {
        let LeafRecord { serial, key, issued_at, not_after, issuer, certificate } = record;
        let print = Fingerprint::of(&certificate);
        Self { serial, key, issued_at, not_after, issuer, certificate, print }
    }
}

impl From<Leaf> for LeafRecord {
    fn from(leaf: Leaf) -> Self {
        let Leaf { serial, key, issued_at, not_after, issuer, certificate, print: _ } = leaf;
        Self { serial, key, issued_at, not_after, issuer, certificate }
    }
}

#[cfg(test)]
impl Leaf {
    pub(crate) fn sample(serial: u32, key: KeyHash) -> Self {
        let at = SystemTime::UNIX_EPOCH;
        let certificate: CertificateDer<'_> = serial.to_be_bytes().to_vec().into();
        Self {
            serial: serial.to_string(),
            key,
            issued_at: at,
            not_after: at,
            issuer: Fingerprint::of(b""),
            print: Fingerprint::of(&certificate),
            certificate,
        }
    }
}

/// With renewals at half of a life, those of twice that life and more.
const KEYS: usize = 6;

mod optional_text {
    use super::{Deserialize, Deserializer, Fingerprint, Serializer};

    pub(super) fn serialize<S: Serializer>(print: &Option<Fingerprint>, serializer: S) -> Result<S::Ok, S::Error> {
        match print {
            Some(print) => serializer.collect_str(print),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Fingerprint>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

mod optional_seconds {
    use super::{Deserialize, Deserializer, Serializer, SystemTime, seconds};

    #[derive(Deserialize)]
    struct At(#[serde(with = "seconds")] SystemTime);

    pub(super) fn serialize<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => seconds::serialize(at, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<At>::deserialize(deserializer)?.map(|At(at)| at))
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_the_latest_renews_and_a_lost_reply_is_repeated_for_its_key_alone() {
        let (one, two, other) = (KeyHash::of(b"1"), KeyHash::of(b"2"), KeyHash::of(b"3"));
        let mark = |serial| Leaf::sample(serial, one).mark();
        let first = Lineage::begin(Leaf::sample(1, one), Revision::new(7));
        assert_eq!(first.renew(&mark(1), two), Ok(Renewal::Issue));
        assert!(first.renew(&mark(0), two).is_err());

        let second = first.next(Leaf::sample(2, two), &mark(1));
        assert_eq!(second.renew(&mark(2), other), Ok(Renewal::Issue));
        assert_eq!(second.renew(&mark(1), two), Ok(Renewal::Repeat(Leaf::sample(2, two))));
        assert!(second.renew(&mark(1), other).is_err());
        assert_eq!((second.speaks(&mark(2)), second.speaks(&mark(1))), (Ok(()), Ok(())));

        let third = second.next(Leaf::sample(3, other), &mark(2));
        assert!(third.renew(&mark(1), two).is_err());
        assert!(third.speaks(&mark(1)).is_err());
        assert_eq!(third.renew(&mark(2), other), Ok(Renewal::Repeat(Leaf::sample(3, other))));
        // However often it renews, it began when it began.
        assert!(third.began_at_or_after(Revision::new(7)) && !third.began_at_or_after(Revision::new(8)));
        assert!(third.is_the_same_as(&first));
    }

    #[test]
    fn a_serial_that_somebody_chose_is_not_the_certificate() {
        let key = KeyHash::of(b"1");
        let first = Lineage::begin(Leaf::sample(1, key), Revision::new(7));
        let second = first.next(Leaf::sample(2, key), &first.latest.mark());
        for serial in ["1", "2"] {
            let chosen = Mark { serial: serial.into(), print: Fingerprint::of(b"of another intermediate") };
            assert!(second.renew(&chosen, key).is_err() && second.speaks(&chosen).is_err(), "{serial}");
        }
        // What is held in memory decides the same.
        let compact = second.clone().compact();
        assert!(compact.is_latest(&second.latest.mark()) && !compact.latest.is_whole());
    }

    #[test]
    fn a_renewal_by_what_was_renewed_shows_two_holders() {
        let key = |number: u32| KeyHash::of(&number.to_be_bytes());
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let leaf = |serial, second| Leaf { issued_at: at(second), ..Leaf::sample(serial, key(serial)) };
        let mark = |serial| leaf(serial, 0).mark();
        let first = Lineage::begin(leaf(1, 100), Revision::new(7));
        let second = first.next(leaf(2, 200), &mark(1));
        let fourth = second.next(leaf(3, 300), &mark(2)).next(leaf(4, 400), &mark(3));
        let check = |lineage: &Lineage, serial, issued, asks, expected| {
            assert_eq!(lineage.is_forked_by(&mark(serial), at(issued), asks), expected, "{serial} asks for {asks:?}");
        };
        // The one before the latest asks again for what it was given, or for something else.
        check(&second, 1, 100, Some(key(2)), false);
        check(&second, 1, 100, Some(key(9)), true);
        // However often the other one has renewed since, whatever it asks for.
        for asks in [None, Some(key(4)), Some(key(9))] {
            check(&fourth, 1, 100, asks, true);
            check(&fourth, 2, 200, asks, true);
        }
        // The latest is right, one of an earlier lineage proves nothing, and one of another replica may be younger than what is known.
        check(&fourth, 4, 400, Some(key(9)), false);
        check(&fourth, 8, 99, Some(key(9)), false);
        check(&fourth, 8, 100, Some(key(9)), false);
        check(&fourth, 8, 401, Some(key(9)), false);
        // One of an earlier version is known as far as it says something.
        let earlier = Lineage { since: None, origin: None, ..first };
        let renewed = earlier.next(leaf(2, 200), &mark(1)).next(leaf(3, 300), &mark(2)).next(leaf(4, 400), &mark(3));
        check(&renewed, 1, 100, None, false);
        check(&renewed, 2, 201, None, true);
    }

    #[test]
    fn of_twins_either_renews_and_its_lost_reply_is_repeated() {
        let (one, two) = (KeyHash::of(b"1"), KeyHash::of(b"2"));
        let twins = Lineage::begin(Leaf::sample(1, one), Revision::new(7)).with_twin(&Leaf::sample(9, one));
        let twin = Leaf::sample(9, one).mark();
        assert_eq!(twins.renew(&twin, two), Ok(Renewal::Issue));
        let next = twins.next(Leaf::sample(2, two), &twin);
        assert_eq!(next.renew(&twin, two), Ok(Renewal::Repeat(Leaf::sample(2, two))));
        assert!(next.renew(&twins.latest.mark(), two).is_err());
    }

    #[test]
    fn a_lineage_reads_back_and_so_does_one_of_an_earlier_version() {
        let first = Lineage::begin(Leaf::sample(1, KeyHash::of(b"1")), Revision::new(7));
        let lineage = first.next(Leaf::sample(2, KeyHash::of(b"2")), &first.latest.mark());
        let mut value = serde_json::to_value(&lineage).unwrap();
        assert_eq!(serde_json::from_value::<Lineage>(value.clone()).unwrap(), lineage);
        for new in ["previous_print", "origin", "since", "keys"] {
            assert!(value.as_object_mut().unwrap().remove(new).is_some(), "{new}");
        }
        let old: Lineage = serde_json::from_value(value).unwrap();
        assert!(old.is_latest(&lineage.latest.mark()) && old.speaks(&first.latest.mark()).is_ok());
        assert!(old.is_the_same_as(&lineage));
        let other = Mark { serial: "2".into(), print: Fingerprint::of(b"another") };
        assert!(!old.is_latest(&other), "the latest is told by its certificate, which every version keeps");
    }
}
