//! Searching: sealed segments by their indexes, the open one in memory, the newest first.

use std::{fs::File, ops::ControlFlow, path::Path};

use crate::{
    error::ReadError,
    facts::{TERMS, Term, ordinal},
    format::TreeHeader,
    ledger::Ledger,
    read::{Segment, read_at},
    segment::{Growing, Layout, tree_file},
};

/// What is looked for. By default, everything.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Entries with this term in this place.
    pub term: Option<(usize, Term)>,
    /// Recorded at this moment or later, in seconds since 1970.
    pub since: Option<u64>,
    /// Recorded before this moment.
    pub until: Option<u64>,
    /// In segments where something matters beyond this moment; entries that do not may be among what is found.
    pub lasting: Option<u64>,
    /// With a smaller number than this: where an earlier search ended.
    pub before: Option<u64>,
}

impl Ledger {
    /// Shows the number and the bytes of each entry that is found to `visit`, the newest first, until it breaks.
    ///
    /// Two terms may look the same to the index: `visit` looks whether it is the right one. Blocks on the disk.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what was acknowledged.
    pub fn search(&self, query: &Query, mut visit: impl FnMut(u64, &[u8]) -> ControlFlow<()>) -> Result<(), ReadError> {
        let (sealed, height, size, open) = {
            let state = self.shared.read();
            let open: Vec<_> = state.in_memory().map(|(_, segment)| query.in_memory(segment)).collect();
            (state.sealed.clone(), state.height, state.head.size, open)
        };
        let before = query.before.unwrap_or(u64::MAX).min(size);
        let segments = (0..(sealed.len() + open.len()) as u64).rev().skip_while(|number| number << height >= before);
        for number in segments {
            let first = number << height;
            let at = usize::try_from(number).unwrap_or(usize::MAX);
            let in_memory = at.checked_sub(sealed.len()).and_then(|at| open.get(at));
            let sealed = sealed.get(at);
            if sealed.is_some_and(|header| query.passes_over(header)) {
                continue;
            }
            let mut segment = Segment::open(&self.shared, number)?;
            let found = match (sealed, &segment.tree) {
                (Some(header), Some(tree)) => query.on_disk(tree, &tree_file(&self.shared.dir, first), header)?,
                _ => in_memory.cloned().unwrap_or_default(),
            };
            for ordinal in found.into_iter().rev().map(u64::from).skip_while(|ordinal| first + ordinal >= before) {
                if visit(first + ordinal, segment.read(ordinal)?).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Query {
    /// Whether nothing in this segment can be meant.
    fn passes_over(&self, segment: &TreeHeader) -> bool {
        self.since.is_some_and(|since| segment.to < since)
            || self.until.is_some_and(|until| segment.from >= until)
            || self.lasting.is_some_and(|moment| segment.until <= moment)
    }

    fn is_when(&self, moment: u64) -> bool {
        self.since.is_none_or(|since| moment >= since) && self.until.is_none_or(|until| moment < until)
    }

    /// Which entries of a segment in memory are meant, the oldest first.
    fn in_memory(&self, growing: &Growing) -> Vec<u16> {
        if self.lasting.is_some_and(|moment| growing.until <= moment) {
            return Vec::new();
        }
        let is_when = |ordinal: &u16| growing.moments.get(usize::from(*ordinal)).is_some_and(|at| self.is_when(*at));
        match self.term.and_then(|(place, term)| growing.postings.get(place).map(|postings| (postings, term))) {
            Some((postings, term)) => {
                let found = postings.iter().filter(|posting| term.is_of(**posting));
                found.map(|posting| ordinal(*posting)).filter(is_when).collect()
            }
            None => (0..growing.len()).filter_map(|ordinal| u16::try_from(ordinal).ok()).filter(is_when).collect(),
        }
    }

    /// Which entries of a sealed segment are meant, the oldest first.
    fn on_disk(&self, tree: &File, path: &Path, header: &TreeHeader) -> Result<Vec<u16>, ReadError> {
        let entries = 1u64 << header.height;
        let layout = Layout::new(header.height);
        let found = match self.term {
            Some((place, term)) if place < TERMS => {
                let first = partition(entries, |at| {
                    posting(tree, path, layout.posting(place, at)).map(|found| found < term.with(0))
                })?;
                let mut found = Vec::new();
                for at in first..entries {
                    let posting = posting(tree, path, layout.posting(place, at))?;
                    if !term.is_of(posting) {
                        break;
                    }
                    found.push(ordinal(posting));
                }
                found
            }
            _ => (0..entries).filter_map(|ordinal| u16::try_from(ordinal).ok()).collect(),
        };
        let all =
            self.since.is_none_or(|since| since <= header.from) && self.until.is_none_or(|until| until > header.to);
        if all || found.is_empty() {
            return Ok(found);
        }
        let mut moments = vec![0; usize::try_from(8 * entries).unwrap_or_default()];
        read_at(tree, path, &mut moments, layout.moment(0))?;
        let (moments, _) = moments.as_chunks::<8>();
        let is_when = |ordinal: &u16| {
            moments.get(usize::from(*ordinal)).is_some_and(|moment| self.is_when(u64::from_be_bytes(*moment)))
        };
        Ok(found.into_iter().filter(is_when).collect())
    }
}

fn posting(tree: &File, path: &Path, at: u64) -> Result<u64, ReadError> {
    let mut bytes = [0; 8];
    read_at(tree, path, &mut bytes, at)?;
    Ok(u64::from_be_bytes(bytes))
}

/// The first of `0..count` for which `before` does not hold, where it holds for none after one for which it does not.
fn partition<E>(count: u64, mut before: impl FnMut(u64) -> Result<bool, E>) -> Result<u64, E> {
    let (mut from, mut to) = (0, count);
    while from < to {
        let middle = from + (to - from) / 2;
        if before(middle)? {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    Ok(from)
}
