//! A quick hash for tables whose keys come from the policy.
//!
//! Requests only look up and never insert, so that nobody who sends them can make a table slow: the standard
//! library's keyed hash would cost its time for nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map with keys from the policy.
pub(crate) type Table<K, V> = HashMap<K, V, BuildHasherDefault<Multiplicative>>;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Multiplicative(u64);

/// 2^64 divided by the golden ratio, made odd.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Multiplicative {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for Multiplicative {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.add(u64::from_le_bytes(*word)));
        let rest = rest.iter().fold(0u64, |word, byte| (word << 8) | u64::from(*byte));
        // The length tells "a" and "a\0" apart.
        self.add(rest ^ ((bytes.len() as u64) << 56));
    }

    fn write_u8(&mut self, byte: u8) {
        self.add(byte.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn finish(&self) -> u64 {
        // The table takes its bits from both ends; the multiplication mixes upwards only.
        self.0 ^ (self.0 >> 32)
    }
}
