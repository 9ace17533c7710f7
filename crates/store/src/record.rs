//! How a value stands in a file: versioned, checksummed, bound to its key; and the digest of all of them.

use ring::digest;
use thiserror::Error;

use crate::{Entry, Key, Revision};

const VERSION: u8 = 1;
const HEAD: usize = 1 + 8;
const SUM: usize = 16;

/// A record as it stands on the disk.
///
/// Version (1 byte), revision (8, big endian), value, checksum (16: the front of SHA-256 over all of that and the key).
pub fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + entry.value().len() + SUM);
    bytes.push(VERSION);
    bytes.extend_from_slice(&entry.revision().get().to_be_bytes());
    bytes.extend_from_slice(entry.value());
    let sum = checksum(entry.key(), &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

/// The entry that `bytes` hold for `key`.
///
/// # Errors
/// When they are not what was written for that key.
pub fn decode(key: &Key, bytes: &[u8]) -> Result<Entry, DecodeRecordError> {
    let (body, sum) = bytes.split_last_chunk::<SUM>().ok_or(DecodeRecordError::Short(bytes.len()))?;
    if checksum(key, body) != *sum {
        return Err(DecodeRecordError::Checksum);
    }
    let (&version, rest) = body.split_first().ok_or(DecodeRecordError::Short(bytes.len()))?;
    if version != VERSION {
        return Err(DecodeRecordError::Version(version));
    }
    let (revision, value) = rest.split_first_chunk::<8>().ok_or(DecodeRecordError::Short(bytes.len()))?;
    Ok(Entry::new(key.clone(), value, Revision::new(u64::from_be_bytes(*revision))))
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeRecordError {
    /// Fewer bytes than any record has.
    #[error("a record of {0} bytes is too short")]
    Short(usize),
    /// Altered, or written for another key.
    #[error("the record's checksum does not match")]
    Checksum,
    /// Written by a later version of this program.
    #[error("the record has version {0}, and this program knows version {VERSION} only: it was written by a later one")]
    Version(u8),
}

fn checksum(key: &Key, body: &[u8]) -> [u8; SUM] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(key.as_str().len() as u64).to_be_bytes());
    context.update(key.as_str().as_bytes());
    context.update(body);
    front(context.finish().as_ref())
}

/// The first 16 bytes of a digest.
fn front(digest: &[u8]) -> [u8; SUM] {
    digest.first_chunk::<SUM>().copied().unwrap_or_default()
}

/// The first 16 bytes of the SHA-256 of `bytes`.
pub(crate) fn seal(bytes: &[u8]) -> [u8; SUM] {
    front(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// How many records there are, and the sum of their checksums: one lost, added, altered or turned back changes it.
///
/// It guards against accidents, not against a person who can write the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) sum: u128,
}

impl Tally {
    /// Counts a record in.
    pub(crate) fn add(&mut self, record: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(weight(record));
    }

    /// Counts a record out.
    pub(crate) fn remove(&mut self, record: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(weight(record));
    }
}

fn weight(record: &[u8]) -> u128 {
    record.last_chunk::<SUM>().map_or(0, |sum| u128::from_be_bytes(*sum))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(key: &str, value: Vec<u8>, revision: u64) -> Entry {
        Entry::new(key.parse().unwrap(), value, Revision::new(revision))
    }

    proptest! {
        #[test]
        fn a_record_reads_back(value in proptest::collection::vec(any::<u8>(), 0..200), revision: u64) {
            let entry = entry("a/b", value, revision);
            prop_assert_eq!(decode(entry.key(), &encode(&entry)), Ok(entry));
        }

        #[test]
        fn one_flipped_bit_is_noticed(value in proptest::collection::vec(any::<u8>(), 0..50), at: prop::sample::Index, bit in 0..8u8) {
            let entry = entry("a/b", value, 7);
            let mut bytes = encode(&entry);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(decode(entry.key(), &bytes), Err(DecodeRecordError::Checksum));
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(decode(&"k".parse().unwrap(), &bytes).is_err());
        }
    }

    #[test]
    fn a_record_belongs_to_its_key() {
        let entry = entry("a", vec![1], 1);
        assert_eq!(decode(&"b".parse().unwrap(), &encode(&entry)), Err(DecodeRecordError::Checksum));
    }

    #[test]
    fn the_tally_is_of_the_set_and_not_of_its_order() {
        let records: Vec<_> = ["a", "b", "c"].map(|k| encode(&entry(k, vec![1], 1))).into();
        let (mut left, mut right) = (Tally::default(), Tally::default());
        records.iter().for_each(|r| left.add(r));
        records.iter().rev().for_each(|r| right.add(r));
        assert_eq!(left, right);
        left.remove(&records[1]);
        assert_ne!(left, right);
        left.add(&records[1]);
        assert_eq!(left, right);
    }
}
