//! What a connection costs before its first byte: a full mutual handshake, both sides, on one core.
//!
//! `hybrid` is our connector against our acceptor (X25519MLKEM768 with feature `pq`). `classical` is a client
//! that does not offer the hybrid group, as a stock one may not; it verifies the server as ours does.
//! `verify_peer` is the part of it that our verifier takes, which each side does once, for a peer that has been here
//! before; `verify_peer_first` for one whose certificate has never been seen. Handshakes here are of peers that come again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a benchmark stops at the first surprise, and criterion's macros write no documentation"
)]

#[path = "../tests/mtls/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod common;

use alcazar_mtls::{Clients, Expected, Side, verify_peer};
use common::strangers::verifying_client;
use common::*;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rustls_pki_types::ServerName;
use tokio::io::duplex;
use tokio_rustls::TlsConnector;

fn handshake(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mesh = Mesh::new();
    let acceptor = mesh.acceptor(Clients::Required, &[b"h2"]);
    let connector = mesh.connector(&[b"h2"]);
    let expected = Expected::id(REVIEWS.parse().unwrap());
    let holder = mesh.cluster.leaf(RATINGS);
    let bundles = mesh.bundles();
    let mut group = criterion.benchmark_group("handshake");

    let hybrid = async || {
        let (client, server) = duplex(64 * 1024);
        let (connected, accepted) = tokio::join!(connector.connect(client, &expected), acceptor.accept(server));
        (connected.unwrap(), accepted.unwrap())
    };
    let agreed = runtime.block_on(hybrid()).0.stream.key_exchange().unwrap();
    assert_eq!(agreed == "X25519MLKEM768", cfg!(feature = "pq"));
    group.bench_function("hybrid", |bencher| bencher.iter(|| runtime.block_on(hybrid())));

    let stock = TlsConnector::from(verifying_client(&holder, &bundles));
    let classical = async || {
        let (client, server) = duplex(64 * 1024);
        let name = ServerName::try_from("nobody.invalid").unwrap();
        let (connected, accepted) = tokio::join!(stock.connect(name, client), acceptor.accept(server));
        (connected.unwrap(), accepted.unwrap())
    };
    assert_eq!(runtime.block_on(classical()).1.stream.key_exchange().as_deref(), Some("X25519"));
    group.bench_function("classical", |bencher| bencher.iter(|| runtime.block_on(classical())));

    group.bench_function("verify_peer", |bencher| {
        bencher.iter(|| verify_peer(&holder.chain, &bundles, Side::Client, now()).unwrap());
    });
    let stranger = || mesh.cluster.leaf(RATINGS).chain;
    group.bench_function("verify_peer_first", |bencher| {
        bencher.iter_batched(
            stranger,
            |chain| verify_peer(&chain, &bundles, Side::Client, now()).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, handshake);
criterion_main!(benches);
