//! The ledger: appends that are fsynced, and what a log of a million entries answers and opens in.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark stops at the first surprise")]

use std::{hint::black_box, ops::ControlFlow, sync::Arc};

use alcazar_ledger::{Facts, Ledger, Options, Query, Term, merkle::Hash};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::{runtime::Runtime, task::JoinSet};

const ENTRIES: u64 = 1_000_000;
/// About what a P-256 leaf and its caller take.
const BYTES: usize = 600;
const IDENTITIES: u64 = 10_000;

fn describe(entry: &[u8]) -> Option<Facts> {
    let n = u64::from_be_bytes(*entry.first_chunk()?);
    let of = |kind: u8, n: u64| Term::of(&[&[kind], &n.to_be_bytes()[..]].concat());
    Some(Facts { at: n / 100, until: n / 100 + 3600, terms: [of(0, n), of(1, n % IDENTITIES), of(2, n % 100)] })
}

fn entry(n: u64) -> Vec<u8> {
    let mut entry = n.to_be_bytes().to_vec();
    entry.resize(BYTES, 7);
    entry
}

async fn append(ledger: &Arc<Ledger>, from: u64, count: u64) {
    let mut waiting = JoinSet::new();
    for n in from..from + count {
        let ledger = ledger.clone();
        waiting.spawn(async move {
            let entry = entry(n);
            let facts = describe(&entry).unwrap();
            ledger.append(entry, facts).await.unwrap()
        });
    }
    waiting.join_all().await;
}

fn ledger(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = || Options::new(describe, [1; 16]);

    let mut group = criterion.benchmark_group("ledger/append");
    for together in [1, 64, 1024] {
        let ledger = Arc::new(Ledger::open(folder.path().join(together.to_string()), options()).unwrap());
        group.throughput(Throughput::Elements(together));
        group.bench_function(together.to_string(), |bencher| {
            bencher.iter(|| runtime.block_on(append(&ledger, ledger.head().size, together)));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("ledger/1m");
    group.sample_size(20);
    let dir = folder.path().join("1m");
    let ledger = Arc::new(Ledger::open(&dir, options()).unwrap());
    for from in (0..ENTRIES).step_by(4000) {
        runtime.block_on(append(&ledger, from, 4000));
    }
    let bytes: u64 = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("ledger/1m: {} bytes on disk for each entry of {BYTES}", bytes / ENTRIES);
    let mut n = 0u64;
    let mut next = || {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (n >> 33) % ENTRIES
    };
    group.bench_function("inclusion", |bencher| bencher.iter(|| ledger.inclusion(next(), ENTRIES).unwrap()));
    group.bench_function("consistency", |bencher| bencher.iter(|| ledger.consistency(next(), ENTRIES).unwrap()));
    group.bench_function("find", |bencher| {
        bencher.iter(|| {
            let wanted = entry(next());
            let term = describe(&wanted).map(|facts| (0, facts.terms[0]));
            let mut found = None;
            let visit = |index, entry: &[u8]| {
                found = (entry == wanted).then_some(index);
                if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            ledger.search(&Query { term, ..Query::default() }, visit).unwrap();
            found.unwrap()
        });
    });
    drop(ledger);
    group.sample_size(10);
    group.bench_function("open", |bencher| bencher.iter(|| Ledger::open(&dir, options()).unwrap().head()));
    group.finish();

    let bytes = entry(1);
    criterion.bench_function("ledger/leaf_hash", |bencher| bencher.iter(|| Hash::leaf(black_box(&bytes))));
}

criterion_group!(benches, ledger);
criterion_main!(benches);
