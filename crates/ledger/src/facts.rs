//! What an entry is found by.

use ring::digest::{Context, SHA256};

/// How many terms an entry has.
pub const TERMS: usize = 3;

/// What the indexes hold of an entry. The log itself does not look into entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// When it was recorded, in seconds since 1970.
    pub at: u64,
    /// Until when it matters, in seconds since 1970.
    pub until: u64,
    /// By what it is searched; each place has a meaning of its own, the same for all entries.
    pub terms: [Term; TERMS],
}

/// How the facts of an entry are read from its bytes; `None` where they are no entry.
///
/// It is asked at a start, for the open segment, and when everything is verified.
pub type Describe = fn(&[u8]) -> Option<Facts>;

/// A text to search by, as the indexes hold it: 48 bits of its SHA-256. Two texts may have the same one, so whoever searches
/// looks at what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(u64);

impl Term {
    /// The term of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(bytes);
        let digest = context.finish();
        let first = digest.as_ref().first_chunk::<8>().copied().unwrap_or_default();
        Self(u64::from_be_bytes(first) >> ORDINAL_BITS)
    }

    /// The term and the number of an entry in its segment, as one number that sorts by both.
    pub(crate) fn with(self, ordinal: u16) -> u64 {
        (self.0 << ORDINAL_BITS) | u64::from(ordinal)
    }

    pub(crate) fn is_of(self, posting: u64) -> bool {
        posting >> ORDINAL_BITS == self.0
    }
}

/// The number of an entry in its segment, from what [`Term::with`] made.
pub(crate) fn ordinal(posting: u64) -> u16 {
    #[allow(clippy::cast_possible_truncation, reason = "the low 16 bits are what is meant")]
    let low = posting as u16;
    low
}

const ORDINAL_BITS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_posting_holds_its_term_and_its_ordinal() {
        let (one, other) = (Term::of(b"one"), Term::of(b"other"));
        for number in [0, 1, 513, u16::MAX] {
            let posting = one.with(number);
            assert!(one.is_of(posting) && !other.is_of(posting));
            assert_eq!(ordinal(posting), number);
        }
        assert!(one.with(3) < one.with(4));
    }
}
