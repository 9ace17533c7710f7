//! What a pair of proxies costs: a request through outbound and inbound, beside the same request without them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark stops at the first surprise"
)]

#[path = "../tests/relaying/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use common::app::{self, App};
use common::client::{Client, connect, get};
use common::{FRONTEND, Mesh, Wanted, policy};

/// The same request as through the proxies, straight to the application.
fn direct(app: SocketAddr) -> http::Request<Full<Bytes>> {
    http::Request::get("/").header("host", app.to_string()).body(Full::default()).unwrap()
}

fn relay(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let (mesh, app) = runtime.block_on(async {
        let app = App::start(&[]).await;
        let tcp = app::tcp(app::echo).await;
        let wanted = Wanted { tcp: Some(tcp), policy: policy::allow_all(FRONTEND), ..Wanted::new(app.address) };
        (Mesh::start(&wanted), app)
    });
    let outbound = mesh.outbound();
    let mut group = criterion.benchmark_group("relay");
    group.sample_size(20).measurement_time(Duration::from_secs(5));

    group.throughput(Throughput::Elements(1));
    let mut client = runtime.block_on(Client::new(app.address));
    group.bench_function("direct", |bencher| {
        bencher.iter(|| assert_eq!(runtime.block_on(client.send(direct(app.address))).status(), 200));
    });
    let mut client = runtime.block_on(Client::new(outbound));
    group.bench_function("pair", |bencher| {
        bencher.iter(|| assert_eq!(runtime.block_on(client.get("http://reviews.shop/")).status(), 200));
    });
    // Requests of 64 kept connections at once: what multiplexing between the proxies is for.
    group.bench_function("direct, 64 at once", |bencher| {
        let request = || direct(app.address);
        bencher.iter_custom(|requests| runtime.block_on(at_once(app.address, requests, request)));
    });
    group.bench_function("pair, 64 at once", |bencher| {
        let request = || get("http://reviews.shop/", &[]);
        bencher.iter_custom(|requests| runtime.block_on(at_once(outbound, requests, request)));
    });

    group.throughput(Throughput::Bytes(BULK as u64));
    let mut tunnel = runtime.block_on(connect(outbound, "reviews.shop:5432")).unwrap();
    group.bench_function("tunnelled echo of 1 MiB", |bencher| {
        bencher.iter(|| runtime.block_on(echoed(&mut tunnel)));
    });
    group.finish();
    // The workers are threads that serve until they are told; nothing is owed to what is still open.
    drop((mesh, app));
    runtime.shutdown_background();
}

/// How long so many requests take over 64 connections; connecting is not counted.
async fn at_once(address: SocketAddr, requests: u64, request: impl Fn() -> http::Request<Full<Bytes>>) -> Duration {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::new(address).await);
    }
    let start = Instant::now();
    let each = requests.div_ceil(CLIENTS);
    let running = clients.into_iter().map(|mut client| {
        let requests: Vec<_> = (0..each).map(|_| request()).collect();
        tokio::spawn(async move {
            for request in requests {
                assert_eq!(client.send(request).await.status(), 200);
            }
        })
    });
    for ended in futures::future::join_all(running).await {
        ended.unwrap();
    }
    // What was asked is what is reported: the last round is complete.
    start.elapsed().mul_f64(requests as f64 / (each * CLIENTS) as f64)
}

async fn echoed(tunnel: &mut TcpStream) {
    let (mut read, mut write) = tunnel.split();
    let sent = vec![7; BULK];
    let mut got = vec![0; BULK];
    let (written, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
    written.unwrap();
    read.unwrap();
}

const CLIENTS: u64 = 64;
const BULK: usize = 1 << 20;

criterion_group!(benches, relay);
criterion_main!(benches);
