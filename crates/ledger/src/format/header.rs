//! What stands at the beginning of each file of a segment.

use super::{Pieces, seal, unseal};
use crate::{ledger::LogId, merkle::Hash};

/// The beginning of a file of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) log: LogId,
    /// The log's segments have 2^height entries.
    pub(crate) height: u32,
    /// The number of its first entry in the log.
    pub(crate) first: u64,
    /// The root of all entries before it.
    pub(crate) before: Hash,
}

/// Bytes of an encoded [`SegmentHeader`].
pub(crate) const HEADER: usize = 8 + 16 + 4 + 8 + 32 + 16;

const SEGMENT_MAGIC: [u8; 8] = *b"alczlog\x01";

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = SEGMENT_MAGIC.to_vec();
        bytes.extend_from_slice(&self.log.0);
        bytes.extend_from_slice(&self.height.to_be_bytes());
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(self.before.as_bytes());
        let sum = seal(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut pieces = Pieces(unseal(bytes, HEADER)?);
        if pieces.take()? != SEGMENT_MAGIC {
            return None;
        }
        let header = Self {
            log: LogId(pieces.take()?),
            height: u32::from_be_bytes(pieces.take()?),
            first: pieces.number()?,
            before: pieces.take::<32>()?.into(),
        };
        (1..=15).contains(&header.height).then_some(header)
    }
}

/// The beginning of the `.tree` file of a sealed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeHeader {
    pub(crate) log: LogId,
    pub(crate) height: u32,
    pub(crate) first: u64,
    /// How long the file of entries is, in bytes.
    pub(crate) bytes: u64,
    /// The root of the segment's subtree.
    pub(crate) root: Hash,
    /// The earliest and the latest moment at which an entry was recorded.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// The latest moment until which one matters.
    pub(crate) until: u64,
    /// The checksum of everything behind the header.
    pub(crate) sum: [u8; 32],
}

/// Bytes of an encoded [`TreeHeader`].
pub(crate) const TREE_HEADER: usize = 8 + 16 + 4 + 8 + 8 + 32 + 3 * 8 + 32 + 16;

const TREE_MAGIC: [u8; 8] = *b"alcztre\x02";
/// As the first version of this program began it, without a checksum of the rest.
const TREE_MAGIC_BEFORE: [u8; 8] = *b"alcztre\x01";

impl TreeHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = TREE_MAGIC.to_vec();
        bytes.extend_from_slice(&self.log.0);
        bytes.extend_from_slice(&self.height.to_be_bytes());
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&self.bytes.to_be_bytes());
        bytes.extend_from_slice(self.root.as_bytes());
        for moment in [self.from, self.to, self.until] {
            bytes.extend_from_slice(&moment.to_be_bytes());
        }
        bytes.extend_from_slice(&self.sum);
        let sum = seal(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut pieces = Pieces(unseal(bytes, TREE_HEADER)?);
        if pieces.take()? != TREE_MAGIC {
            return None;
        }
        Some(Self {
            log: LogId(pieces.take()?),
            height: u32::from_be_bytes(pieces.take()?),
            first: pieces.number()?,
            bytes: pieces.number()?,
            root: pieces.take::<32>()?.into(),
            from: pieces.number()?,
            to: pieces.number()?,
            until: pieces.number()?,
            sum: pieces.take()?,
        })
    }

    /// Whether a file that begins so is of an earlier version: it is made again from its entries.
    pub(crate) fn is_outdated(bytes: &[u8]) -> bool {
        bytes.starts_with(&TREE_MAGIC_BEFORE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back_and_one_flipped_bit_is_found() {
        let segment = SegmentHeader { log: LogId([7; 16]), height: 14, first: 1 << 14, before: Hash::leaf(b"before") };
        let bytes = segment.encode();
        assert_eq!(bytes.len(), HEADER);
        assert_eq!(SegmentHeader::decode(&bytes), Some(segment));
        assert!(flips(&bytes).all(|bytes| SegmentHeader::decode(&bytes).is_none()));

        let tree = TreeHeader {
            log: LogId([7; 16]),
            height: 14,
            first: 0,
            bytes: 99,
            root: Hash::leaf(b"root"),
            from: 1,
            to: 2,
            until: 3,
            sum: [9; 32],
        };
        let bytes = tree.encode();
        assert_eq!(bytes.len(), TREE_HEADER);
        assert_eq!(TreeHeader::decode(&bytes), Some(tree));
        assert!(flips(&bytes).all(|bytes| TreeHeader::decode(&bytes).is_none()));
    }

    fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        (0..bytes.len() * 8).map(move |bit| {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        })
    }
}
