use ring::rand::{SecureRandom, SystemRandom};

use crate::schedule::Jitter;

/// Chance, for the loops; decisions take it as an argument.
pub(crate) fn jitter() -> Jitter {
    let mut bytes = [0; 4];
    // Without randomness renewals are merely less spread.
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => Jitter::new(u32::from_ne_bytes(bytes)),
        Err(_) => Jitter::new(0),
    }
}
