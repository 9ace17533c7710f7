//! Which of many exact, prefix and suffix patterns a text matches, without trying each.

use std::cmp::Ordering;
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
        self.exact.is_empty() && self.prefixes.sorted.is_empty() && self.suffixes.sorted.is_empty()
    }

    /// Pushes the list of each pattern that `text` matches.
    pub(crate) fn look_up<'a>(&'a self, text: &str, lists: &mut Lists<'a>) {
        if !self.exact.is_empty() {
            lists.push(self.exact.get(text).map_or(&[], Vec::as_slice));
        }
        self.prefixes.look_up(text, Order::Forwards, lists);
        self.suffixes.look_up(text, Order::Backwards, lists);
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
            prefixes: Affixes::new(self.prefixes, Order::Forwards),
            suffixes: Affixes::new(self.suffixes, Order::Backwards),
        }
    }
}

/// Prefixes (or, read backwards, suffixes) in sorted order, each linked to the longest other one that it
/// starts with. All that a text starts with are on one such chain, and one binary search finds its head.
#[derive(Debug)]
struct Affixes {
    sorted: Vec<Affix>,
}

#[derive(Debug)]
struct Affix {
    text: Box<str>,
    parent: Option<usize>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Forwards,
    Backwards,
}

impl Order {
    fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Self::Forwards => a.cmp(b),
            Self::Backwards => a.bytes().rev().cmp(b.bytes().rev()),
        }
    }

    fn starts_with(self, text: &str, affix: &str) -> bool {
        match self {
            Self::Forwards => text.starts_with(affix),
            Self::Backwards => text.ends_with(affix),
        }
    }
}

impl Affixes {
    fn new(texts: BTreeMap<String, Vec<Entry>>, order: Order) -> Self {
        let mut texts: Vec<_> = texts.into_iter().collect();
        texts.sort_by(|(a, _), (b, _)| order.compare(a, b));
        let mut sorted: Vec<Affix> = Vec::with_capacity(texts.len());
        for (text, entries) in texts {
            let mut parent = sorted.len().checked_sub(1);
            while let Some(candidate) = parent.and_then(|at| sorted.get(at)) {
                if order.starts_with(&text, &candidate.text) {
                    break;
                }
                parent = candidate.parent;
            }
            sorted.push(Affix { text: text.into(), parent, entries });
        }
        Self { sorted }
    }

    fn look_up<'a>(&'a self, text: &str, order: Order, lists: &mut Lists<'a>) {
        let after = self.sorted.partition_point(|affix| order.compare(&affix.text, text) != Ordering::Greater);
        let mut at = after.checked_sub(1);
        let mut matched = false;
        while let Some(affix) = at.and_then(|at| self.sorted.get(at)) {
            // Once one matches, so do all that it starts with.
            matched = matched || order.starts_with(text, &affix.text);
            if matched {
                lists.push(&affix.entries);
            }
            at = affix.parent;
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
