//! No bytes in a ledger's files panic the process that reads them: headers, marks, frames, and whole segments at a start.
#![no_main]

use std::fs;

use alcazar_ledger::{Facts, Ledger, Options, Term, verify_files};
use libfuzzer_sys::fuzz_target;

fn describe(entry: &[u8]) -> Option<Facts> {
    let term = Term::of(entry);
    (entry.first() != Some(&0xff)).then_some(Facts { at: 1, until: 2, terms: [term; 3] })
}

fuzz_target!(|bytes: &[u8]| {
    std::hint::black_box(alcazar_ledger::examine(bytes));
    // A good log of a few entries, with these bytes behind them, in the place of one of its files, or changing some of it: place
    // and value in two bytes each time.
    let Some((&which, bytes)) = bytes.split_first() else { return };
    let dir = std::env::temp_dir().join(format!("alcazar-fuzz-ledger-{}", std::process::id()));
    fs::remove_dir_all(&dir).ok();
    let options = || Options { height: 1, ..Options::new(describe, [1; 16]) };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ledger = Ledger::open(&dir, options()).unwrap();
    runtime.block_on(async {
        for entry in [b"one", b"two", b"six"] {
            ledger.append(entry.to_vec(), describe(entry).unwrap()).await.unwrap();
        }
    });
    drop(ledger);
    let names = ["000000000000.entries", "000000000000.tree", "000000000002.entries", "acknowledged"];
    let path = dir.join(names[usize::from(which) % 4]);
    let mut found = fs::read(&path).unwrap();
    match which >> 6 {
        0 => found.extend_from_slice(bytes),
        1 => found = bytes.to_vec(),
        2 => bytes.chunks_exact(2).for_each(|change| {
            let place = usize::from(change[0]) % found.len();
            found[place] = change[1];
        }),
        _ => {
            let keep = bytes.first().map_or(0, |keep| usize::from(*keep)).min(found.len());
            found.truncate(keep);
            found.extend_from_slice(bytes.get(1..).unwrap_or_default());
        }
    }
    fs::write(&path, found).unwrap();
    std::hint::black_box(verify_files(&dir, describe).is_ok());
    if let Ok(ledger) = Ledger::open(&dir, options()) {
        assert!(ledger.head().size >= 3, "an acknowledged entry was cut");
        // What is damaged is said, and never given out as something else.
        for (index, entry) in (0..).zip([b"one", b"two", b"six"]) {
            assert!(ledger.entry(index).map_or(true, |found| found == entry), "an acknowledged entry was changed");
        }
    }
});
