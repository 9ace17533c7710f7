//! The keys that sign JWT-SVIDs, and the order of their lives: published, used, kept for those who still check, gone.
//!
//! ```text
//!   published        signs_from                    signs_until             gone_at
//!      │── lead ────────▶│────────── life ─────────────▶│── longest token ────▶│
//!      │ in the bundle, so that everybody has it         │ the next one signs   │ out of the bundle, key destroyed
//! ```
//!
//! Plain data in, plain data out. The private halves are elsewhere; `held` says which of them are in reach.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use alcazar_identity::{JwtAuthority, JwtAuthorityError};
use serde::{Deserialize, Serialize};

use crate::records::seconds;

/// One key: its public half and its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JwtKey {
    /// What tokens call it.
    pub(crate) key_id: String,
    #[serde(with = "base64")]
    pub(crate) public_key: Vec<u8>,
    #[serde(with = "seconds")]
    pub(crate) published: SystemTime,
    #[serde(with = "seconds")]
    pub(crate) signs_from: SystemTime,
    #[serde(with = "seconds")]
    pub(crate) signs_until: SystemTime,
    /// Nothing that it signed is good from here on.
    #[serde(with = "seconds")]
    pub(crate) gone_at: SystemTime,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lives {
    /// How long a key signs.
    pub(crate) key: Duration,
    /// How long it is published before it signs.
    pub(crate) lead: Duration,
    /// The longest life of a token, and by how much clocks may differ.
    pub(crate) token: Duration,
}

/// What is to be done with the keys, now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Make a key that signs from this moment on.
    pub(crate) make: Option<SystemTime>,
    /// Forget these.
    pub(crate) forget: Vec<String>,
}

/// What is to be done now, by one who holds the private halves of `held`.
pub(crate) fn plan(keys: &[JwtKey], held: &BTreeSet<String>, lives: Lives, now: SystemTime) -> Plan {
    let forget = keys.iter().filter(|key| key.gone_at <= now).map(|key| key.key_id.clone()).collect();
    let ours = || keys.iter().filter(|key| held.contains(&key.key_id) && key.gone_at > now);
    let make = match ours().map(|key| key.signs_until).max() {
        // Another one is ready, or will be in time.
        Some(last) if last > now + lives.lead => None,
        Some(_) => Some(now + lives.lead),
        // The first of all: there is nobody yet who could have missed it.
        None if keys.iter().all(|key| key.gone_at <= now) => Some(now),
        None => Some(now + lives.lead),
    };
    Plan { make, forget }
}

/// The key to sign with: of those that are held and have begun, the one that began last.
///
/// One whose time is over goes on until the next begins, but never makes a token that would outlive it.
pub(crate) fn signing<'k>(keys: &'k [JwtKey], held: &BTreeSet<String>, now: SystemTime) -> Option<&'k JwtKey> {
    let usable = keys.iter().filter(|key| held.contains(&key.key_id) && key.signs_from <= now && now < key.gone_at);
    usable.max_by(|a, b| (a.signs_from, &a.key_id).cmp(&(b.signs_from, &b.key_id)))
}

impl JwtKey {
    /// A key that is published now and signs from `signs_from` on.
    pub(crate) fn new(
        key_id: String,
        public_key: Vec<u8>,
        signs_from: SystemTime,
        lives: Lives,
        now: SystemTime,
    ) -> Self {
        let whole = crate::issue::whole_seconds;
        let signs_until = signs_from + lives.key;
        // By the lead longer than its tokens live: the next one may be late.
        let gone_at = signs_until + lives.lead + lives.token;
        Self {
            key_id,
            public_key,
            published: whole(now),
            signs_from: whole(signs_from),
            signs_until: whole(signs_until),
            gone_at: whole(gone_at),
        }
    }

    /// The public half, as bundles have it.
    pub(crate) fn authority(&self) -> Result<JwtAuthority, JwtAuthorityError> {
        JwtAuthority::new(self.key_id.clone(), self.public_key.clone())
    }
}

/// The same keys, of which those that sign now no longer do once `next` begins, and are gone when their tokens are.
///
/// For a change before its time: `plan` alone would let the old one sign to its end.
pub(crate) fn replaced_by(keys: &[JwtKey], next: &JwtKey, lives: Lives) -> Vec<JwtKey> {
    let retired = |key: &JwtKey| JwtKey {
        signs_until: key.signs_until.min(next.signs_from),
        gone_at: key.gone_at.min(next.signs_from + lives.token),
        ..key.clone()
    };
    keys.iter().filter(|key| key.key_id != next.key_id).map(retired).chain([next.clone()]).collect()
}

mod base64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIVES: Lives = Lives {
        key: Duration::from_secs(7 * 24 * 3600),
        lead: Duration::from_secs(1500),
        token: Duration::from_secs(3660),
    };

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + second)
    }

    fn key(name: &str, signs_from: SystemTime, now: SystemTime) -> JwtKey {
        JwtKey::new(name.into(), vec![1], signs_from, LIVES, now)
    }

    fn held(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_first_key_signs_at_once_and_every_other_is_known_before() {
        assert_eq!(plan(&[], &held(&[]), LIVES, at(0)), Plan { make: Some(at(0)), forget: vec![] });
        let first = key("a", at(0), at(0));
        assert_eq!(plan(std::slice::from_ref(&first), &held(&["a"]), LIVES, at(1)), Plan::default());
        let due = first.signs_until - LIVES.lead;
        assert_eq!(plan(std::slice::from_ref(&first), &held(&["a"]), LIVES, due).make, Some(first.signs_until));
        // Another replica, which holds none of the keys that verifiers know.
        assert_eq!(plan(std::slice::from_ref(&first), &held(&[]), LIVES, at(5)).make, Some(at(5) + LIVES.lead));
        assert_eq!(signing(&[first], &held(&[]), at(5)), None);
    }

    #[test]
    fn a_key_whose_successor_is_late_goes_on_but_not_past_its_end() {
        let keys = [key("a", at(0), at(0))];
        let late = keys[0].signs_until + Duration::from_secs(10);
        assert_eq!(signing(&keys, &held(&["a"]), late).map(|key| key.key_id.as_str()), Some("a"));
        assert_eq!(signing(&keys, &held(&["a"]), keys[0].gone_at), None);
        assert_eq!(plan(&keys, &held(&["a"]), LIVES, keys[0].gone_at).forget, ["a"]);
    }

    #[test]
    fn a_change_before_its_time_ends_the_old_key_when_its_last_token_does() {
        let old = key("a", at(0), at(0));
        let next = key("b", at(1000) + LIVES.lead, at(1000));
        let both = replaced_by(&[old], &next, LIVES);
        let names = held(&["a", "b"]);
        let signs = |now| signing(&both, &names, now).map(|key| key.key_id.clone());
        assert_eq!(signs(next.signs_from - Duration::from_secs(1)).as_deref(), Some("a"));
        assert_eq!(signs(next.signs_from).as_deref(), Some("b"));
        let end = next.signs_from + LIVES.token;
        assert!(plan(&both, &names, LIVES, end - Duration::from_secs(1)).forget.is_empty());
        assert_eq!(plan(&both, &names, LIVES, end).forget, ["a"]);
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = key("a", at(7), at(0));
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<JwtKey>(&text).unwrap(), key);
    }

    proptest! {
        /// Replicas that come, sleep and lose their keys: whoever signs, signs with a key that has been in the bundle for the
        /// lead (or was the first of all), and that stays there as long as the token is good.
        #[test]
        fn what_is_signed_can_be_checked_for_as_long_as_it_is_good(
            steps in proptest::collection::vec((0usize..3, 1u64..200_000, 0u8..20), 1..60),
        ) {
            let mut keys: Vec<JwtKey> = Vec::new();
            let mut held = vec![BTreeSet::new(); 3];
            let mut now = at(0);
            let mut made = 0;
            for (replica, pause, fate) in steps {
                now += Duration::from_secs(pause);
                if fate == 0 {
                    held[replica].clear();
                }
                let first = keys.iter().all(|key| key.gone_at <= now);
                let plan = plan(&keys, &held[replica], LIVES, now);
                keys.retain(|key| !plan.forget.contains(&key.key_id));
                if let Some(signs_from) = plan.make {
                    made += 1;
                    let name = format!("{made}");
                    prop_assert!(signs_from >= now + LIVES.lead || first);
                    held[replica].insert(name.clone());
                    keys.push(JwtKey::new(name, vec![1], signs_from, LIVES, now));
                }
                if let Some(key) = signing(&keys, &held[replica], now) {
                    prop_assert!(key.published <= key.signs_from && key.signs_from <= now && now < key.gone_at);
                }
                // A replica that holds a key and looks in time always has one to sign with.
                let ours: Vec<_> = keys.iter().filter(|key| held[replica].contains(&key.key_id)).collect();
                prop_assert!(ours.iter().any(|key| key.signs_until > now));
            }
        }
    }
}
