//! Nonces for proofs of possession: short-lived, good once, and kept nowhere until they are used.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_identity::rfc3339;
use ring::hmac;
use thiserror::Error;

use crate::{
    records::seconds,
    serial::{NoRandomness, random_bytes},
};

/// Makes nonces and takes them back.
///
/// A nonce is random bytes, its end, and a tag over both by a key that this process alone has: strangers can ask for as many as
/// they like and nothing grows. Only those that were used are remembered, until their end.
pub(crate) struct Challenges {
    key: hmac::Key,
    spent: Mutex<HashMap<[u8; RANDOM], SystemTime>>,
}

impl Challenges {
    pub(crate) fn new() -> Result<Self, NoRandomness> {
        let secret: [u8; 32] = random_bytes()?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &secret), spent: Mutex::default() })
    }

    /// A nonce, and its end.
    pub(crate) fn make(&self, now: SystemTime) -> Result<(Vec<u8>, SystemTime), NoRandomness> {
        let random: [u8; RANDOM] = random_bytes()?;
        let end = crate::issue::whole_seconds(now + LIFE);
        let mut nonce = [random.as_slice(), &seconds::of(end).to_be_bytes()].concat();
        nonce.extend(hmac::sign(&self.key, &nonce).as_ref());
        Ok((nonce, end))
    }

    /// Whether it was made here and its time is not over.
    ///
    /// # Errors
    /// When it was not, or it is.
    pub(crate) fn check(&self, nonce: &[u8], now: SystemTime) -> Result<(), ChallengeError> {
        self.read(nonce, now).map(drop)
    }

    /// Uses it up. To be called once what it stands for is proved, so that nobody uses up what he only saw.
    ///
    /// # Errors
    /// When it was used before, or is none.
    pub(crate) fn spend(&self, nonce: &[u8], now: SystemTime) -> Result<(), ChallengeError> {
        let (random, end) = self.read(nonce, now)?;
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        spent.retain(|_, end| now < *end);
        match spent.insert(random, end) {
            None => Ok(()),
            Some(_) => Err(ChallengeError::Spent),
        }
    }

    fn read(&self, nonce: &[u8], now: SystemTime) -> Result<([u8; RANDOM], SystemTime), ChallengeError> {
        let (said, tag) = nonce.split_at_checked(RANDOM + 8).ok_or(ChallengeError::Foreign)?;
        hmac::verify(&self.key, said, tag).map_err(|_unspecified| ChallengeError::Foreign)?;
        let (random, end) = said.split_first_chunk().ok_or(ChallengeError::Foreign)?;
        let end = end.try_into().map(u64::from_be_bytes).map_err(|_length| ChallengeError::Foreign)?;
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(end);
        if now >= end {
            return Err(ChallengeError::Expired { end, now });
        }
        Ok((*random, end))
    }
}

/// Why a nonce proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ChallengeError {
    #[error("the nonce was not made by this process; ask for one over the same connection")]
    Foreign,
    #[error("the nonce was good until {}, and the clock here says {}", rfc3339(*end), rfc3339(*now))]
    Expired { end: SystemTime, now: SystemTime },
    #[error("the nonce was used before")]
    Spent,
}

const RANDOM: usize = 16;
const LIFE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_nonce_is_good_once_here_for_a_minute() {
        let (here, there) = (Challenges::new().unwrap(), Challenges::new().unwrap());
        let (nonce, end) = here.make(at(1000)).unwrap();
        assert_eq!(end, at(1060));
        assert_eq!(there.check(&nonce, at(1000)), Err(ChallengeError::Foreign));
        assert_eq!(here.spend(&nonce, at(1060)), Err(ChallengeError::Expired { end, now: at(1060) }));
        assert_eq!((here.check(&nonce, at(1059)), here.check(&nonce, at(1059))), (Ok(()), Ok(())));
        assert_eq!(here.spend(&nonce, at(1059)), Ok(()));
        assert_eq!(here.spend(&nonce, at(1059)), Err(ChallengeError::Spent));
        let (next, _) = here.make(at(1000)).unwrap();
        assert_eq!(here.spend(&next, at(1001)), Ok(()));
        // Those that are over are forgotten.
        let (last, _) = here.make(at(5000)).unwrap();
        here.spend(&last, at(5000)).unwrap();
        assert_eq!(here.spent.lock().unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_but_those_that_were_made_are_a_nonce(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), place in any::<prop::sample::Index>(), bit in 0_u8..8
        ) {
            let challenges = Challenges::new().unwrap();
            prop_assert!(challenges.check(&bytes, at(0)).is_err());
            let (mut nonce, _) = challenges.make(at(0)).unwrap();
            let place = place.index(nonce.len());
            nonce[place] ^= 1 << bit;
            prop_assert_eq!(challenges.check(&nonce, at(0)), Err(ChallengeError::Foreign));
        }
    }
}
