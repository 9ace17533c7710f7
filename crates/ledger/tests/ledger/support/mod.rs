//! A log of small texts, in small segments.

use std::{ops::ControlFlow, path::Path};

use alcazar_ledger::{Facts, Ledger, LogId, OpenError, Options, Query, Term};

/// Segments of eight entries.
pub(crate) const HEIGHT: u32 = 3;
pub(crate) const LOG: LogId = LogId([0x5a; 16]);

/// `<moment> <until> <term> <term> <term>`.
pub(crate) fn describe(entry: &[u8]) -> Option<Facts> {
    let text = std::str::from_utf8(entry).ok()?;
    let words: Vec<&str> = text.split(' ').collect();
    let [at, until, a, b, c] = words[..] else { return None };
    let terms = [a, b, c].map(|word| Term::of(word.as_bytes()));
    Some(Facts { at: at.parse().ok()?, until: until.parse().ok()?, terms })
}

pub(crate) fn options() -> Options {
    Options { height: HEIGHT, ..Options::new(describe, LOG.0) }
}

pub(crate) fn open(dir: &Path) -> Result<Ledger, OpenError> {
    Ledger::open(dir, options())
}

/// The text of entry `n`: its own name, one of three groups, and a word that all have.
pub(crate) fn text(n: u64) -> String {
    format!("{} {} name-{n} group-{} all", 1000 + n, 2000 + n, n % 3)
}

pub(crate) async fn append(ledger: &Ledger, text: &str) -> u64 {
    let facts = describe(text.as_bytes()).unwrap();
    ledger.append(text.as_bytes().to_vec(), facts).await.unwrap()
}

/// A closed log of `n` entries.
pub(crate) async fn make(dir: &Path, n: u64) {
    let ledger = open(dir).unwrap();
    for i in 0..n {
        assert_eq!(append(&ledger, &text(i)).await, i);
    }
    ledger.close().await;
}

/// The numbers and texts of all that is found.
pub(crate) fn found(ledger: &Ledger, query: &Query) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let visit = |index: u64, entry: &[u8]| {
        found.push((index, String::from_utf8(entry.to_vec()).unwrap()));
        ControlFlow::Continue(())
    };
    ledger.search(query, visit).unwrap();
    found
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// The names of the files, but for the lock, which has no bytes.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
    names.sort();
    names
}
