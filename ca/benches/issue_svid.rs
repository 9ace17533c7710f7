//! What one certificate costs the CA's processor: read the request, verify its signature, sign the leaf.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark stops at the first surprise")]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_ca::{Authority, Csr, Serial, SignError, Signer, issue};
use alcazar_identity::{SpiffeId, TrustDomain};
use criterion::{Criterion, criterion_group, criterion_main};
use rcgen::{CertificateParams, KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};

struct Key(KeyPair);

impl Signer for Key {
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }

    fn public_key(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        SigningKey::sign(&self.0, message).map_err(|error| SignError(Box::new(error)))
    }
}

fn issue_svid(criterion: &mut Criterion) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let trust_domain: TrustDomain = "cluster.local".parse().unwrap();
    let key = || Arc::new(Key(KeyPair::generate().unwrap()));
    let root = Authority::root(&trust_domain, key(), Serial::random().unwrap(), now).unwrap();
    let issuer = Authority::intermediate(&root, &trust_domain, "local", key(), Serial::random().unwrap(), now).unwrap();
    let id = SpiffeId::workload(&trust_domain, "shop", "web").unwrap();
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let csr = csr.der();

    let mut group = criterion.benchmark_group("issue_svid");
    group.bench_function("read_and_verify", |bench| bench.iter(|| Csr::from_der(black_box(csr)).unwrap()));
    group.bench_function("all", |bench| {
        bench.iter(|| {
            let csr = Csr::from_der(black_box(csr)).unwrap();
            let serial = Serial::random().unwrap();
            issue(&csr, (&id).into(), Duration::from_secs(3600), &issuer, serial, now).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, issue_svid);
criterion_main!(benches);
