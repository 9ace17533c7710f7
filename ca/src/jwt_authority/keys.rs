//! The keys that sign JWT-SVIDs, and the order of their lives: published, used, kept for those who still check, gone.
//!
//! ```text
//!   published        signs_from                    signs_until             gone_at
//!      │── lead ────────▶│────────── life ─────────────▶│── longest token ────▶│
//!      │ in the bundle, so that everybody has it         │ the next one signs   │ out of the bundle, key destroyed
//! ```
//!
//! A rotation that a person begins does not go by these times: what it brings waits, in the bundle, until it is told to sign; what it
//! replaces waits then, and is withdrawn and forgotten when it is told so.
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
    #[serde(default, skip_serializing_if = "Standing::is_signs")]
    pub(crate) standing: Standing,
    /// The rotation that brought it, or the one that it was made in the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    /// Whose it is, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replica: Option<String>,
    /// Whether it took the place of one that was stolen: whoever has none left makes his own at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) at_once: bool,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Standing {
    /// Sign, at its time.
    #[default]
    Signs,
    /// Be believed, and not sign.
    Waits,
    /// Nothing: it is not in the bundle. Its private half is there, for a way back.
    Withdrawn,
}

impl Standing {
    fn is_signs(&self) -> bool {
        *self == Self::Signs
    }
}

/// What a rotation wants of what it brings, and of everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) generation: u64,
    pub(crate) new: Standing,
    pub(crate) old: Standing,
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

impl Lives {
    /// How long it has to be seen that a key is over before it is destroyed: a clock that jumped is right again by then, and
    /// whatever was signed meanwhile has ended.
    pub(crate) fn doubt(self) -> Duration {
        self.lead + self.token + CLOCKS_ARE_MENDED
    }
}

/// What is to be done with the keys, now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Make a key that signs from this moment on.
    pub(crate) make: Option<SystemTime>,
    /// By this moment's clock these are over. They are forgotten when that has been so for a while.
    pub(crate) over: Vec<String>,
}

/// What is to be done now, by one who holds the private halves of `held`.
pub(crate) fn plan(keys: &[JwtKey], held: &BTreeSet<String>, lives: Lives, now: SystemTime) -> Plan {
    // What a rotation lets wait, or has withdrawn, is no matter of time.
    let signs = || keys.iter().filter(|key| key.standing == Standing::Signs);
    let over = signs().filter(|key| key.is_over(now)).map(|key| key.key_id.clone()).collect();
    // One that begins much later than a new one would was made while the clock was ahead: it is no successor.
    let in_time = |key: &&JwtKey| key.gone_at > now && key.signs_from <= now + 2 * lives.lead;
    let ours = || signs().filter(|key| held.contains(&key.key_id)).filter(in_time);
    let stolen = |key: &JwtKey| key.at_once && now < key.published + lives.lead;
    let make = match ours().map(|key| key.signs_until).max() {
        // Another one is ready, or will be in time.
        Some(last) if last > now + lives.lead => None,
        Some(_) => Some(now + lives.lead),
        // The first of all, or nobody has signed for long. Whoever checks may have to ask for the bundle anew; to wait would
        // only mean that nobody has a token until then.
        None if signs().all(|key| key.gone_at <= now) || signs().any(stolen) => Some(now),
        None => Some(now + lives.lead),
    };
    Plan { make, over }
}

/// The key to sign with: of those that are held and have begun, the one that began last.
///
/// One whose time is over goes on until the next begins, but never makes a token that would outlive it, nor one that is over
/// before anybody can show it. When the clock went back and none has begun, the one that begins first: it is published.
pub(crate) fn signing<'k>(keys: &'k [JwtKey], held: &BTreeSet<String>, now: SystemTime) -> Option<&'k JwtKey> {
    let ours = || keys.iter().filter(|key| key.standing == Standing::Signs && held.contains(&key.key_id));
    let usable = || ours().filter(|key| now + SHORTEST <= key.last_expiry());
    let begun = usable().filter(|key| key.signs_from <= now);
    let begun = begun.max_by(|a, b| (a.signs_from, &a.key_id).cmp(&(b.signs_from, &b.key_id)));
    let ahead = || usable().filter(|key| key.published > now);
    begun.or_else(|| ahead().min_by(|a, b| (a.signs_from, &a.key_id).cmp(&(b.signs_from, &b.key_id))))
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
            standing: Standing::Signs,
            generation: None,
            replica: None,
            at_once: false,
        }
    }

    /// The latest end of a token that it signs: whoever checks may be behind by the leeway.
    pub(crate) fn last_expiry(&self) -> SystemTime {
        self.gone_at.checked_sub(alcazar_api::spiffe::LEEWAY).unwrap_or(self.gone_at)
    }

    /// Whether nobody needs it any more, or it was made by a clock that was far ahead.
    fn is_over(&self, now: SystemTime) -> bool {
        self.gone_at <= now || self.published > now + FAR_AHEAD
    }

    /// One of this replica.
    pub(crate) fn of(self, replica: &str) -> Self {
        Self { replica: Some(replica.to_owned()), ..self }
    }

    /// One that a rotation brings: it waits.
    pub(crate) fn waiting(self, generation: u64) -> Self {
        Self { standing: Standing::Waits, generation: Some(generation), ..self }
    }

    /// Whether bundles have it.
    pub(crate) fn is_published(&self) -> bool {
        self.standing != Standing::Withdrawn
    }

    /// The public half, as bundles have it.
    pub(crate) fn authority(&self) -> Result<JwtAuthority, JwtAuthorityError> {
        JwtAuthority::new(self.key_id.clone(), self.public_key.clone())
    }
}

/// The generation of those that sign now: what is made beside them is of the same.
pub(crate) fn generation(keys: &[JwtKey]) -> Option<u64> {
    keys.iter().filter(|key| key.standing == Standing::Signs).filter_map(|key| key.generation).max()
}

/// The same keys as a rotation wants them. What begins to sign has a whole life before it.
pub(crate) fn standing(keys: &[JwtKey], wanted: Wanted, lives: Lives, now: SystemTime) -> Vec<JwtKey> {
    let stand = |key: &JwtKey| {
        let standing = if key.generation == Some(wanted.generation) { wanted.new } else { wanted.old };
        let mut key = key.clone();
        if standing == Standing::Signs && key.standing != Standing::Signs {
            key.signs_until = key.signs_until.max(crate::issue::whole_seconds(now + lives.key));
            key.gone_at = key.gone_at.max(key.signs_until + lives.lead + lives.token);
        }
        key.standing = standing;
        key
    };
    keys.iter().map(stand).collect()
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

/// The shortest life of a token that is worth making.
const SHORTEST: Duration = Duration::from_secs(10);
/// Clocks differ by less.
const FAR_AHEAD: Duration = Duration::from_secs(24 * 3600);
/// A machine that starts with a wrong clock has the right one by then.
const CLOCKS_ARE_MENDED: Duration = Duration::from_secs(3600);

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
        assert_eq!(plan(&[], &held(&[]), LIVES, at(0)), Plan { make: Some(at(0)), over: vec![] });
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
        // In its last seconds it would make tokens that are over when they arrive.
        let last = keys[0].last_expiry() - SHORTEST;
        assert!(signing(&keys, &held(&["a"]), last).is_some());
        assert_eq!(signing(&keys, &held(&["a"]), last + Duration::from_secs(1)), None);
        assert_eq!(plan(&keys, &held(&["a"]), LIVES, keys[0].gone_at).over, ["a"]);
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
        assert!(plan(&both, &names, LIVES, end - Duration::from_secs(1)).over.is_empty());
        assert_eq!(plan(&both, &names, LIVES, end).over, ["a"]);
    }

    #[test]
    fn a_clock_that_runs_ahead_and_comes_back_leaves_a_key_that_signs() {
        let year = Duration::from_secs(365 * 24 * 3600);
        let (old, ahead) = (key("old", at(0), at(0)), key("ahead", at(0) + year, at(0) + year));
        let wrong = plan(std::slice::from_ref(&old), &held(&["old"]), LIVES, at(0) + year);
        assert_eq!(wrong, Plan { make: Some(at(0) + year), over: vec!["old".into()] });
        // Back again: the old one was not destroyed at once, and signs.
        let (both, names) = ([old, ahead.clone()], held(&["old", "ahead"]));
        assert_eq!(signing(&both, &names, at(60)).map(|key| key.key_id.as_str()), Some("old"));
        assert_eq!(plan(&both, &names, LIVES, at(60)), Plan { make: None, over: vec!["ahead".into()] });
        // It began with the wrong clock, so there is no old one: what is published signs, and one of today follows.
        let (alone, names) = ([ahead.clone()], held(&["ahead"]));
        assert_eq!(signing(&alone, &names, at(60)).map(|key| key.key_id.as_str()), Some("ahead"));
        let next = plan(&alone, &names, LIVES, at(60));
        assert_eq!(next, Plan { make: Some(at(60) + LIVES.lead), over: vec!["ahead".into()] });
        let (both, names) = ([ahead, key("today", at(60) + LIVES.lead, at(60))], held(&["ahead", "today"]));
        assert_eq!(signing(&both, &names, at(60)).map(|key| key.key_id.as_str()), Some("ahead"));
        assert_eq!(plan(&both, &names, LIVES, at(61)).make, None, "one is enough");
        assert_eq!(signing(&both, &names, at(60) + LIVES.lead).map(|key| key.key_id.as_str()), Some("today"));
        // What the one from ahead has signed until then ends while it is still believed.
        assert!(LIVES.doubt() >= LIVES.lead + LIVES.token);
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = key("a", at(7), at(0));
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<JwtKey>(&text).unwrap(), key);
    }

    /// A token, as whoever checks it knows it.
    #[derive(Debug)]
    struct Token {
        key: String,
        expires: SystemTime,
    }

    proptest! {
        /// Replicas that come, sleep and lose their keys: whoever signs, signs with a key that has been in the bundle for the
        /// lead (or there was no other), and that stays there as long as the token is good.
        #[test]
        fn what_is_signed_can_be_checked_for_as_long_as_it_is_good(
            steps in proptest::collection::vec((0usize..3, 1u64..200_000, 0u8..20), 1..60),
        ) {
            let (mut keys, mut tokens): (Vec<JwtKey>, Vec<Token>) = (Vec::new(), Vec::new());
            let mut alone = BTreeSet::new();
            let mut held = vec![BTreeSet::new(); 3];
            let mut now = at(0);
            for (step, (replica, pause, fate)) in steps.into_iter().enumerate() {
                now += Duration::from_secs(pause);
                if fate == 0 {
                    held[replica].clear();
                }
                if fate == 1 && !keys.is_empty() {
                    let next = JwtKey::new(format!("forced {step}"), vec![1], now + LIVES.lead, LIVES, now);
                    held[replica].insert(next.key_id.clone());
                    keys = replaced_by(&keys, &next, LIVES);
                }
                let Plan { make, over } = plan(&keys, &held[replica], LIVES, now);
                let nobody = keys.iter().all(|key| key.gone_at <= now);
                // At once, which is the soonest that it can be.
                for key in &over {
                    let good = tokens.iter().find(|token| token.key == *key && now < token.expires);
                    prop_assert!(good.is_none(), "{key} is gone and {good:?} is good");
                }
                keys.retain(|key| !over.contains(&key.key_id));
                if let Some(signs_from) = make {
                    let name = format!("{step}");
                    if nobody {
                        alone.insert(name.clone());
                    }
                    held[replica].insert(name.clone());
                    keys.push(JwtKey::new(name, vec![1], signs_from, LIVES, now));
                }
                if let Some(key) = signing(&keys, &held[replica], now) {
                    prop_assert!(key.published + LIVES.lead <= now || alone.contains(&key.key_id), "{key:?} at {now:?}");
                    let expires = (now + LIVES.token - alcazar_api::spiffe::LEEWAY).min(key.last_expiry());
                    prop_assert!(now < expires);
                    tokens.push(Token { key: key.key_id.clone(), expires });
                }
                // A replica that holds a key and looks in time always has one to sign with.
                let ours: Vec<_> = keys.iter().filter(|key| held[replica].contains(&key.key_id)).collect();
                prop_assert!(ours.iter().any(|key| key.signs_until > now));
            }
        }
    }
}
