//! Signatures on certificates that were found right before.
//!
//! A mesh sees the same few intermediates in every handshake, and the same leaf whenever a peer connects again. Whether a
//! signature is right by a key never changes, so it is computed once: a check costs fifty microseconds, a look-up one.
//!
//! - Right ones alone are remembered, by the SHA-256 of algorithm, key, message and signature. Whatever may change (dates,
//!   trust, revocations, our own rules) is judged anew each time, and so is what a peer signs in its handshake.
//! - What is remembered is bounded: a stranger who fills it costs others time, and nothing else.

use std::{
    collections::HashSet,
    fmt,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use ring::digest::{Context, SHA256};
use rustls_pki_types::{AlgorithmIdentifier, FipsStatus, InvalidSignature, SignatureVerificationAlgorithm};

use crate::provider;

/// The algorithms of signatures on certificates, which remember what they found right.
pub(super) fn signatures() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| {
        let wrapped = provider::signatures().all.iter().zip(0u8..);
        // As many as there are algorithms, once.
        wrapped.map(|(of, number)| &*Box::leak(Box::new(Remembering { of: *of, number, known: &KNOWN })) as _).collect()
    });
    &ALL
}

/// An algorithm that remembers what it found right.
struct Remembering {
    of: &'static dyn SignatureVerificationAlgorithm,
    /// Which of the algorithms it is: two may take the same keys.
    number: u8,
    known: &'static Known,
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let print = print(self.number, [public_key, message, signature]);
        if self.known.has(&print) {
            return Ok(());
        }
        self.of.verify_signature(public_key, message, signature)?;
        self.known.remember(print);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.of.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.of.signature_alg_id()
    }

    fn fips_status(&self) -> FipsStatus {
        self.of.fips_status()
    }

    fn fips(&self) -> bool {
        self.of.fips()
    }
}

impl fmt::Debug for Remembering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remembering").field(&self.of).finish()
    }
}

type Print = [u8; 32];

/// Each part with its length before it, so that no two lists of parts have the same bytes.
fn print(algorithm: u8, parts: [&[u8]; 3]) -> Print {
    let mut context = Context::new(&SHA256);
    context.update(&[algorithm]);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut print = Print::default();
    print.copy_from_slice(context.finish().as_ref());
    print
}

static KNOWN: Known = Known { generations: Mutex::new(None) };

/// What was found right of late: at least the last [`GENERATION`], at most twice as many.
struct Known {
    generations: Mutex<Option<Generations>>,
}

#[derive(Default)]
struct Generations {
    young: HashSet<Print>,
    old: HashSet<Print>,
}

impl Known {
    fn has(&self, print: &Print) -> bool {
        let mut generations = self.lock();
        let Some(generations) = generations.as_mut() else { return false };
        if generations.young.contains(print) {
            return true;
        }
        // What is in use stays.
        let found = generations.old.contains(print);
        if found {
            generations.insert(*print);
        }
        found
    }

    fn remember(&self, print: Print) {
        self.lock().get_or_insert_default().insert(print);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Generations>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn insert(&mut self, print: Print) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(print);
    }
}

const GENERATION: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Takes the signature `right`, and counts how often it is asked.
    #[derive(Debug)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, _: &[u8], _: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if signature == b"right" { Ok(()) } else { Err(InvalidSignature) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(&[])
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(&[])
        }
    }

    fn remembering() -> (&'static Counting, Remembering) {
        let counting = &*Box::leak(Box::new(Counting(AtomicUsize::new(0))));
        let known = Box::leak(Box::new(Known { generations: Mutex::new(None) }));
        (counting, Remembering { of: counting, number: 0, known })
    }

    #[test]
    fn a_right_signature_is_computed_once_and_a_wrong_one_each_time() {
        let (counting, algorithm) = remembering();
        let asked = || counting.0.load(Ordering::Relaxed);
        for _ in 0..3 {
            assert!(algorithm.verify_signature(b"key", b"message", b"right").is_ok());
        }
        assert_eq!(asked(), 1);
        for _ in 0..3 {
            assert!(algorithm.verify_signature(b"key", b"message", b"wrong").is_err());
        }
        assert_eq!(asked(), 4);
        // Anything else is another question, also where the bytes in a row are the same.
        for (key, message) in [(&b"ke"[..], &b"ymessage"[..]), (b"key", b"messagf"), (b"kez", b"message")] {
            assert!(algorithm.verify_signature(key, message, b"right").is_ok());
        }
        assert_eq!(asked(), 7);
        let other = Remembering { number: 1, ..algorithm };
        assert!(other.verify_signature(b"key", b"message", b"right").is_ok());
        assert_eq!(asked(), 8);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_in_use_stays() {
        let (counting, algorithm) = remembering();
        let mut once = 0;
        for number in 0u32..10 * GENERATION as u32 {
            assert!(algorithm.verify_signature(b"key", &number.to_be_bytes(), b"right").is_ok());
            if number % 1000 == 0 {
                assert!(algorithm.verify_signature(b"key", b"in use", b"right").is_ok());
                once += 1;
            }
        }
        assert!(once > 10);
        assert_eq!(counting.0.load(Ordering::Relaxed), 10 * GENERATION + 1);
        let generations = algorithm.known.lock();
        let generations = generations.as_ref().unwrap();
        assert!(generations.young.len() <= GENERATION && generations.old.len() <= GENERATION);
    }

    #[test]
    fn every_algorithm_of_the_provider_is_there() {
        let ids = |all: &[&'static dyn SignatureVerificationAlgorithm]| {
            all.iter().map(|one| (one.public_key_alg_id(), one.signature_alg_id())).collect::<Vec<_>>()
        };
        assert_eq!(ids(signatures()), ids(provider::signatures().all));
    }
}
