//! An entry in a segment file: its length, a checksum, its bytes.
//!
//! The checksum is the front of the entry's leaf hash, which the tree needs anyhow.

use std::io::{self, Read};

use crate::merkle::Hash;

/// The longest entry, in bytes.
pub const MAX_ENTRY: usize = 64 << 10;

/// What stands before an entry's bytes: four bytes of length, twelve of checksum.
pub(crate) const FRAME: usize = 16;

/// Appends an entry, whose leaf hash is known, to what is about to be written.
pub(crate) fn frame(buffer: &mut Vec<u8>, entry: &[u8], leaf: &Hash) {
    // An append refuses longer ones.
    buffer.extend_from_slice(&u32::try_from(entry.len()).unwrap_or(u32::MAX).to_be_bytes());
    buffer.extend_from_slice(checksum(leaf));
    buffer.extend_from_slice(entry);
}

/// The length of the entry behind this front of a frame, where it can be one.
fn length(front: &[u8; FRAME]) -> Option<usize> {
    let (length, _) = front.split_first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*length)).ok().filter(|length| (1..=MAX_ENTRY).contains(length))
}

/// The leaf hash of a frame's entry, where front and entry are those that were written.
pub(crate) fn check(front: &[u8; FRAME], entry: &[u8]) -> Option<Hash> {
    let leaf = Hash::leaf(entry);
    let (_, sum) = front.split_first_chunk::<4>()?;
    (length(front) == Some(entry.len()) && checksum(&leaf) == sum).then_some(leaf)
}

fn checksum(leaf: &Hash) -> &[u8] {
    leaf.as_bytes().get(..FRAME - 4).unwrap_or_default()
}

/// Reads frames one after another.
pub(crate) struct Frames<R> {
    from: R,
    offset: u64,
    entry: Vec<u8>,
}

/// A frame that was read.
pub(crate) struct Frame<'a> {
    /// Where it begins in its file.
    pub(crate) offset: u64,
    pub(crate) entry: &'a [u8],
    pub(crate) leaf: Hash,
}

/// Why there is no next frame.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something else than a whole frame begins here.
    NoFrame {
        what: &'static str,
    },
    Io(io::Error),
}

impl<R: Read> Frames<R> {
    /// Reads from where `from` is, which is `offset` of its file.
    pub(crate) fn new(from: R, offset: u64) -> Self {
        Self { from, offset, entry: Vec::new() }
    }

    /// Where the next frame begins: after the last whole one.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, Stop> {
        let mut front = [0; FRAME];
        match fill(&mut self.from, &mut front)? {
            0 => return Ok(None),
            FRAME => {}
            _ => return Err(Stop::NoFrame { what: "the file ends within the front of an entry" }),
        }
        let Some(length) = length(&front) else {
            return Err(Stop::NoFrame { what: "the length of an entry cannot be right" });
        };
        self.entry.resize(length, 0);
        if fill(&mut self.from, &mut self.entry)? != length {
            return Err(Stop::NoFrame { what: "the file ends within an entry" });
        }
        let Some(leaf) = check(&front, &self.entry) else {
            return Err(Stop::NoFrame { what: "an entry does not have its checksum" });
        };
        let offset = self.offset;
        self.offset += (FRAME + length) as u64;
        Ok(Some(Frame { offset, entry: &self.entry, leaf }))
    }
}

/// Reads until the buffer is full or the file ends; how much was read.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Stop> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Stop::Io(error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| frame(&mut bytes, entry, &Hash::leaf(entry)));
        bytes
    }

    fn read(bytes: &[u8]) -> (Vec<Vec<u8>>, u64, bool) {
        let mut frames = Frames::new(bytes, 0);
        let mut entries = Vec::new();
        loop {
            match frames.next() {
                Ok(Some(frame)) => entries.push(frame.entry.to_vec()),
                Ok(None) => return (entries, frames.offset(), true),
                Err(_) => return (entries, frames.offset(), false),
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..20)) {
            let bytes = written(&entries);
            prop_assert_eq!(read(&bytes), (entries, bytes.len() as u64, true));
        }

        #[test]
        fn one_flipped_bit_ends_the_reading_before_it(
            entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 1..10),
            at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let mut bytes = written(&entries);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (found, offset, whole) = read(&bytes);
            prop_assert!(!whole);
            prop_assert!(offset <= at as u64);
            prop_assert_eq!(&found[..], &entries[..found.len()]);
        }

        #[test]
        fn a_cut_leaves_the_whole_frames_before_it(
            entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 1..10), at in any::<prop::sample::Index>(),
        ) {
            let bytes = written(&entries);
            let cut = at.index(bytes.len());
            let (found, offset, whole) = read(&bytes[..cut]);
            prop_assert_eq!(&found[..], &entries[..found.len()]);
            prop_assert_eq!(offset as usize, written(&found).len());
            prop_assert_eq!(whole, offset as usize == cut);
        }
    }

    #[test]
    fn zeros_are_no_frame() {
        assert!(matches!(Frames::new(&[0; 64][..], 0).next(), Err(Stop::NoFrame { .. })));
    }
}
