//! Which of many exact, prefix and suffix patterns a text matches, without trying each.

use std::collections::BTreeMap;

use crate::hash::Table;
use crate::index::{Entry, Lists, file};
use crate::model::Matcher;

/// Patterns, each with the entries filed under it.
#[derive(Debug)]
pub(crate) struct PatternIndex {
    exact: Table<Box<str>, Vec<Entry>>,
    prefixes: Affixes,
    suffixes: Affixes,
}

impl PatternIndex {
    /// Whether no text can match.
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.lengths.is_empty() && self.suffixes.lengths.is_empty()
    }

    /// Pushes the list of each pattern that `text` matches.
    pub(crate) fn look_up<'a>(&'a self, text: &str, lists: &mut Lists<'a>) {
        if !self.exact.is_empty() {
            lists.push(self.exact.get(text).map_or(&[], Vec::as_slice));
        }
        self.prefixes.look_up(text, lists);
        self.suffixes.look_up(text, lists);
    }
}

/// Collects what a [`PatternIndex`] is built from. Entries must come in order.
#[derive(Debug, Default)]
pub(crate) struct PatternIndexBuilder {
    exact: Table<Box<str>, Vec<Entry>>,
    prefixes: BTreeMap<String, Vec<Entry>>,
    suffixes: BTreeMap<String, Vec<Entry>>,
}

impl PatternIndexBuilder {
    /// Files `entry` under every value that is a text pattern.
    pub(crate) fn file(&mut self, values: &[Matcher], entry: Entry) {
        for value in values {
            match value {
                Matcher::Exact(text) => file(self.exact.entry(text.as_str().into()).or_default(), entry),
                Matcher::Prefix(text) => file(self.prefixes.entry(text.clone()).or_default(), entry),
                Matcher::Suffix(text) => file(self.suffixes.entry(text.clone()).or_default(), entry),
                Matcher::Present | Matcher::Cidr(_) | Matcher::Port(_) => {}
            }
        }
    }

    pub(crate) fn build(self) -> PatternIndex {
        PatternIndex {
            exact: self.exact,
            prefixes: Affixes::new(self.prefixes, End::Start),
            suffixes: Affixes::new(self.suffixes, End::Finish),
        }
    }
}

/// Prefixes or suffixes, found by hash: the text is read once from its start (or end), and wherever some affix
/// could end, the hash so far is looked up. The cost is that of the text's length and of the number of lengths,
/// not of the number of affixes.
#[derive(Debug)]
struct Affixes {
    end: End,
    /// The lengths that affixes have, ascending.
    lengths: Vec<usize>,
    /// By hash. Two affixes with one hash are rare, but both are here.
    by_hash: Table<u64, Vec<Affix>>,
}

#[derive(Debug)]
struct Affix {
    text: Box<str>,
    entries: Vec<Entry>,
}

/// Which end of a text an affix is at.
#[derive(Debug, Clone, Copy)]
enum End {
    Start,
    Finish,
}

impl End {
    fn has(self, text: &str, affix: &str) -> bool {
        match self {
            Self::Start => text.starts_with(affix),
            Self::Finish => text.ends_with(affix),
        }
    }

    /// The hash of the bytes from this end on, carried on from `hash`.
    fn hash(self, hash: u64, bytes: &[u8]) -> u64 {
        let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        match self {
            Self::Start => bytes.iter().fold(hash, add),
            Self::Finish => bytes.iter().rev().fold(hash, add),
        }
    }
}

impl Affixes {
    fn new(texts: BTreeMap<String, Vec<Entry>>, end: End) -> Self {
        let mut lengths: Vec<usize> = texts.keys().map(String::len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut by_hash: Table<u64, Vec<Affix>> = Table::default();
        for (text, entries) in texts {
            let hash = end.hash(0, text.as_bytes());
            by_hash.entry(hash).or_default().push(Affix { text: text.into(), entries });
        }
        Self { end, lengths, by_hash }
    }

    fn look_up<'a>(&'a self, text: &str, lists: &mut Lists<'a>) {
        let bytes = text.as_bytes();
        let (mut hash, mut read) = (0, 0);
        for &length in &self.lengths {
            let next = match self.end {
                End::Start => bytes.get(read..length),
                End::Finish => bytes.len().checked_sub(length).and_then(|start| bytes.get(start..bytes.len() - read)),
            };
            let Some(next) = next else { return };
            hash = self.end.hash(hash, next);
            read = length;
            for affix in self.by_hash.get(&hash).map_or(&[][..], Vec::as_slice) {
                if affix.text.len() == length && self.end.has(text, &affix.text) {
                    lists.push(&affix.entries);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn looking_up_finds_what_trying_each_finds(
            patterns in proptest::collection::vec(("[ab/]{0,4}", 0..3usize), 0..40),
            text in "[ab/]{0,8}",
        ) {
            let mut builder = PatternIndexBuilder::default();
            let mut expected = Vec::new();
            for (role, (pattern, kind)) in (0u32..).zip(patterns) {
                let (value, matches) = match kind {
                    0 => (Matcher::Exact(pattern.clone()), text == pattern),
                    1 => (Matcher::Prefix(pattern.clone()), text.starts_with(&pattern)),
                    _ => (Matcher::Suffix(pattern.clone()), text.ends_with(&pattern)),
                };
                builder.file(&[value], Entry { role, binding: 0, item: 0 });
                expected.extend(matches.then_some(role));
            }
            let index = builder.build();
            let mut lists = Lists::new();
            index.look_up(&text, &mut lists);
            let mut found: Vec<u32> = lists.iter().flatten().map(|entry| entry.role).collect();
            found.sort_unstable();
            proptest::prop_assert_eq!(found, expected);
        }
    }
}
