//! The time to read and verify one token, by algorithm.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark stops at the first surprise")]

#[path = "../tests/jwt/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod support;

use std::hint::black_box;

use alcazar_jwt::{Algorithm, verify};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{Issuing, NOW, claims, expected};

fn jwt_verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("jwt_verify");
    for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa] {
        let issuer = Issuing::new(algorithm);
        let (keys, token) = (issuer.jwks(), issuer.token(&claims()));
        group.bench_function(algorithm.as_str(), |b| {
            b.iter(|| verify(black_box(&token), &keys, &expected(NOW)).unwrap())
        });
    }
    group.finish();
}

criterion_group!(benches, jwt_verify);
criterion_main!(benches);
