//! A segment: in memory while it is open, in two files once it is sealed.
//!
//! ```text
//! .tree   header │ offset of each entry │ moment of each │ sorted postings of each term │ hashes, level by level
//! ```

use std::path::{Path, PathBuf};

use crate::{
    facts::{Facts, TERMS},
    format::{self, FRAME, HEADER, TREE_HEADER, TreeHeader},
    ledger::LogId,
    merkle::{Hash, Levels, Node},
};

/// The file of a segment's entries.
pub(crate) fn entries_file(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:012}.entries"))
}

/// The file of a sealed segment's hashes and indexes.
pub(crate) fn tree_file(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:012}.tree"))
}

/// The open segment, as memory has it.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    pub(crate) first: u64,
    pub(crate) levels: Levels,
    /// Where each entry's frame begins.
    pub(crate) offsets: Vec<u32>,
    pub(crate) moments: Vec<u64>,
    /// Unsorted: in the order of the entries.
    pub(crate) postings: [Vec<u64>; TERMS],
    /// How long the file is, as far as it is durable.
    pub(crate) bytes: u64,
    from: u64,
    to: u64,
    pub(crate) until: u64,
}

impl Growing {
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Begins a segment, in the room of the one before.
    pub(crate) fn begin(&mut self, first: u64) {
        self.first = first;
        self.levels.clear();
        self.offsets.clear();
        self.moments.clear();
        self.postings.iter_mut().for_each(Vec::clear);
        (self.bytes, self.from, self.to, self.until) = (HEADER as u64, u64::MAX, 0, 0);
    }

    /// Takes in an entry of `length` bytes, which comes after the others in the file.
    pub(crate) fn push(&mut self, leaf: Hash, length: usize, facts: &Facts) {
        // A segment has at most 2^15 entries of at most 64 KiB.
        self.offsets.push(u32::try_from(self.bytes).unwrap_or(u32::MAX));
        let ordinal = u16::try_from(self.offsets.len() - 1).unwrap_or(u16::MAX);
        for (postings, term) in self.postings.iter_mut().zip(facts.terms) {
            postings.push(term.with(ordinal));
        }
        self.moments.push(facts.at);
        self.levels.push(leaf);
        self.bytes += (FRAME + length) as u64;
        self.from = self.from.min(facts.at);
        self.to = self.to.max(facts.at);
        self.until = self.until.max(facts.until);
    }

    /// Where the entry `index` of the log begins, or would; the first or the end, where it is in another segment.
    pub(crate) fn offset_of(&self, index: u64) -> u64 {
        match index.checked_sub(self.first).map(usize::try_from) {
            None => HEADER as u64,
            Some(ordinal) => {
                let offset = ordinal.ok().and_then(|ordinal| self.offsets.get(ordinal));
                offset.map_or(self.bytes, |offset| u64::from(*offset))
            }
        }
    }

    /// The root of the segment's subtree, once it is full.
    pub(crate) fn root(&self, height: u32) -> Option<Hash> {
        self.levels.node(Node { level: height, index: 0 })
    }

    /// The whole `.tree` file of the full segment, and what it begins with.
    pub(crate) fn tree(&self, log: LogId, height: u32) -> Option<(TreeHeader, Vec<u8>)> {
        let root = self.root(height)?;
        let mut file = vec![0; TREE_HEADER];
        file.reserve(usize::try_from(Layout::new(height).size()).unwrap_or_default());
        self.encode(&mut file);
        let Self { first, bytes, from, to, until, .. } = *self;
        let (front, rest) = file.split_at_mut_checked(TREE_HEADER)?;
        let header = TreeHeader { log, height, first, bytes, root, from, to, until, sum: format::sum(rest) };
        front.copy_from_slice(&header.encode());
        Some((header, file))
    }

    /// Everything behind the header.
    fn encode(&self, bytes: &mut Vec<u8>) {
        self.offsets.iter().for_each(|offset| bytes.extend_from_slice(&offset.to_be_bytes()));
        self.moments.iter().for_each(|moment| bytes.extend_from_slice(&moment.to_be_bytes()));
        let mut sorted = Vec::with_capacity(self.len());
        for postings in &self.postings {
            sorted.clone_from(postings);
            sorted.sort_unstable();
            sorted.iter().for_each(|posting| bytes.extend_from_slice(&posting.to_be_bytes()));
        }
        self.levels.iter().for_each(|hash| bytes.extend_from_slice(hash.as_bytes()));
    }
}

/// Where everything is in a `.tree` file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    entries: u64,
}

impl Layout {
    pub(crate) fn new(height: u32) -> Self {
        Self { entries: 1 << height }
    }

    pub(crate) fn offset(self, ordinal: u64) -> u64 {
        TREE_HEADER as u64 + 4 * ordinal
    }

    pub(crate) fn moment(self, ordinal: u64) -> u64 {
        self.offset(self.entries) + 8 * ordinal
    }

    /// The `at`th posting, in sorted order, of a term.
    pub(crate) fn posting(self, term: usize, at: u64) -> u64 {
        self.moment(self.entries) + 8 * (term as u64 * self.entries + at)
    }

    pub(crate) fn node(self, node: Node) -> u64 {
        let below = 2 * self.entries - ((2 * self.entries) >> node.level);
        self.posting(TERMS, 0) + 32 * (below + node.index)
    }

    /// The size of the file.
    pub(crate) fn size(self) -> u64 {
        self.posting(TERMS, 0) + 32 * (2 * self.entries - 1)
    }

    /// What an offset belongs to, for people.
    pub(crate) fn part(self, offset: u64) -> &'static str {
        match offset {
            at if at < self.offset(0) => "the header",
            at if at < self.moment(0) => "the places of the entries",
            at if at < self.posting(0, 0) => "the moments of the entries",
            at if at < self.posting(TERMS, 0) => "the search index",
            _ => "the tree's hashes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Term;

    #[test]
    fn everything_in_a_tree_file_is_where_the_layout_says() {
        const HEIGHT: u32 = 3;
        let mut growing = Growing::default();
        growing.begin(16);
        for n in 0u64..8 {
            let terms = [Term::of(&n.to_be_bytes()), Term::of(b"all"), Term::of(&[(n % 2) as u8])];
            let leaf = Hash::leaf(&n.to_be_bytes());
            growing.push(leaf, 100, &Facts { at: 1000 + n, until: 2000 + n, terms });
        }
        let (header, bytes) = growing.tree(LogId([1; 16]), HEIGHT).unwrap();
        assert_eq!((header.from, header.to, header.until, header.first), (1000, 1007, 2007, 16));
        let layout = Layout::new(HEIGHT);
        assert_eq!(TreeHeader::decode(&bytes), Some(header));
        assert_eq!(bytes.len() as u64, layout.size());
        let number = |at: u64| u64::from_be_bytes(*bytes[at as usize..].first_chunk().unwrap());
        assert_eq!(number(layout.moment(5)), 1005);
        let second: Vec<u64> = (0..8).map(|at| number(layout.posting(1, at))).collect();
        assert_eq!(second, (0..8).map(|n| Term::of(b"all").with(n)).collect::<Vec<_>>());
        assert!((1..8).all(|at| number(layout.posting(0, at - 1)) < number(layout.posting(0, at))));
        for level in 0..=HEIGHT {
            for index in 0..(8 >> level) {
                let node = Node { level, index };
                let at = layout.node(node) as usize;
                assert_eq!(bytes[at..at + 32], *growing.levels.node(node).unwrap().as_bytes(), "{node:?}");
            }
        }
        let offset = u32::from_be_bytes(*bytes[layout.offset(2) as usize..].first_chunk().unwrap());
        assert_eq!(u64::from(offset), HEADER as u64 + 2 * (FRAME as u64 + 100));
    }
}
