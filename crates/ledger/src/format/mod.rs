//! The bytes of the files. Numbers are big-endian; every record has a checksum of its own.

mod frame;
mod header;
mod mark;

pub(crate) use self::{
    frame::{FRAME, Frames, Stop, check, frame},
    header::{HEADER, SegmentHeader, TREE_HEADER, TreeHeader},
    mark::{MARK_BYTES, Mark, SLOT_BYTES},
};
pub use frame::MAX_ENTRY;

use ring::digest::{SHA256, digest};

/// Reads bytes as each kind of record that the log keeps, and as the frames of a segment; how many were whole. For the
/// fuzzer, which finds inputs that panic.
pub fn examine(bytes: &[u8]) -> usize {
    let records =
        [SegmentHeader::decode(bytes).is_some(), TreeHeader::decode(bytes).is_some(), Mark::decode(bytes).is_some()];
    let mut frames = Frames::new(bytes, 0);
    let mut whole = records.into_iter().filter(|record| *record).count();
    while let Ok(Some(_)) = frames.next() {
        whole += 1;
    }
    whole
}

/// The checksum of the larger part of a file.
pub(crate) fn sum(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().first_chunk().copied().unwrap_or_default()
}

/// The checksum of a record.
fn seal(body: &[u8]) -> [u8; 16] {
    digest(&SHA256, body).as_ref().first_chunk().copied().unwrap_or_default()
}

/// The record without its checksum, where that is right.
fn unseal(bytes: &[u8], size: usize) -> Option<&[u8]> {
    let (body, sum) = bytes.get(..size)?.split_last_chunk::<16>()?;
    (seal(body) == *sum).then_some(body)
}

/// Takes the front off a record, piece by piece.
struct Pieces<'a>(&'a [u8]);

impl Pieces<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (piece, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*piece)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}
