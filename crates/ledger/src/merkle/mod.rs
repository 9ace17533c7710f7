//! Merkle trees as RFC 9162 has them: hashes, roots, and the state that appending needs. Pure.

mod proof;

use std::fmt;

use ring::digest::{Context, SHA256};

pub use self::proof::{ProofError, consistency, inclusion, root_of, verify_consistency, verify_inclusion};

/// A SHA-256 hash: of an entry, of two hashes, or of a whole tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The root of the tree without entries: the hash of nothing.
    pub fn empty() -> Self {
        Self::finish(Context::new(&SHA256))
    }

    /// The hash of an entry: SHA-256 of a zero byte and its bytes.
    ///
    /// **Source**: RFC 9162 §2.1.1.
    pub fn leaf(entry: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&[0]);
        context.update(entry);
        Self::finish(context)
    }

    /// The hash of two subtrees: SHA-256 of a one byte and their hashes.
    ///
    /// **Source**: RFC 9162 §2.1.1.
    pub fn node(left: &Self, right: &Self) -> Self {
        let mut bytes = [1; 65];
        let (left_half, right_half) = bytes.split_at_mut(33);
        left_half.iter_mut().skip(1).zip(left.0).for_each(|(to, from)| *to = from);
        right_half.copy_from_slice(&right.0);
        let mut context = Context::new(&SHA256);
        context.update(&bytes);
        Self::finish(context)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn finish(context: Context) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self(hash)
    }
}

impl From<[u8; 32]> for Hash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for Hash {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// A subtree that is full: the `index`th, from the left, of those with 2^`level` entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// How high it is; a single entry has level 0.
    pub level: u32,
    /// Which of its level it is.
    pub index: u64,
}

/// The root of a tree that grows, with nothing kept but the hashes of its full subtrees: one for each bit of its size.
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    size: u64,
    /// The largest, leftmost first.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// How many entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends an entry's hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Each trailing one bit of the size is a subtree as large as what is being added.
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.peaks.pop() else { break };
            hash = Hash::node(&left, &hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return Hash::empty() };
        peaks.fold(*last, |right, left| Hash::node(left, &right))
    }
}

/// Every full subtree of a tree that grows, in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Levels(Vec<Vec<Hash>>);

impl Levels {
    pub(crate) fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        let mut height = 0;
        loop {
            if self.0.len() <= height {
                self.0.push(Vec::new());
            }
            let Some(level) = self.0.get_mut(height) else { return };
            level.push(hash);
            let (pairs, []) = level.as_chunks::<2>() else { return };
            let Some([left, right]) = pairs.last() else { return };
            hash = Hash::node(left, right);
            height += 1;
        }
    }

    pub(crate) fn node(&self, node: Node) -> Option<Hash> {
        let level = self.0.get(usize::try_from(node.level).ok()?)?;
        level.get(usize::try_from(node.index).ok()?).copied()
    }

    /// Level by level, leaves first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Hash> {
        self.0.iter().flatten()
    }

    /// Forgets all, and keeps the room for as many again.
    pub(crate) fn clear(&mut self) {
        self.0.iter_mut().for_each(Vec::clear);
    }
}

#[cfg(test)]
mod tests;
