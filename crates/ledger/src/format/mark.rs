//! The mark: how far the log went when an append was last acknowledged.

use super::{Pieces, seal, unseal};
use crate::{
    ledger::{Head, LogId},
    merkle::Hash,
};

/// What the file `acknowledged` holds, twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) log: LogId,
    pub(crate) head: Head,
}

/// Bytes of an encoded [`Mark`].
pub(crate) const MARK_BYTES: usize = 8 + 16 + 8 + 32 + 16;

/// Two slots, written in turn, each in a sector of its own: a torn write spoils one and leaves the other.
pub(crate) const SLOT_BYTES: u64 = 4096;

const MAGIC: [u8; 8] = *b"alczack\x01";

impl Mark {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.log.0);
        bytes.extend_from_slice(&self.head.size.to_be_bytes());
        bytes.extend_from_slice(self.head.root.as_bytes());
        let sum = seal(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut pieces = Pieces(unseal(bytes, MARK_BYTES)?);
        if pieces.take()? != MAGIC {
            return None;
        }
        let log = LogId(pieces.take()?);
        let size = pieces.number()?;
        Some(Self { log, head: Head { size, root: Hash::from(pieces.take::<32>()?) } })
    }
}
