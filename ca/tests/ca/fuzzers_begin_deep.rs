//! What the fuzz targets begin with is what their parsers take, or refuse for the reason that it was made for: a fuzzer that has it
//! begins behind the first checks.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use alcazar_api::spiffe::read_bundle;
use alcazar_ca::{CacertsError, CacertsFiles, Csr, CsrError, PluggedIn, check_cacerts};
use alcazar_jwt::{Expectations, Issuer, Jwks, verify};

fn seed(target: &str, name: &str) -> Vec<u8> {
    let seeds = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds"));
    fs::read(seeds.join(target).join(name)).unwrap()
}

#[test]
fn requests() {
    for name in ["p256.der", "p384.der", "ed.der", "rsa.der"] {
        Csr::from_der(&seed("csr_parse", name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    Csr::from_pem(&String::from_utf8(seed("csr_parse", "p256.pem")).unwrap()).unwrap();
    assert_eq!(Csr::from_der(&seed("csr_parse", "weak.der")), Err(CsrError::RsaSize(1024)));
    assert_eq!(Csr::from_der(&seed("csr_parse", "authority.der")), Err(CsrError::AsksForAuthority));
}

#[test]
fn tokens_and_keys() {
    let keys = Jwks::parse(&seed("jwt", "jwks.json")).unwrap();
    assert_eq!(keys.keys().len(), 4);
    let both = String::from_utf8(seed("jwt", "verified")).unwrap();
    let (document, token) = both.split_once('\n').unwrap();
    let (now, leeway) = (SystemTime::UNIX_EPOCH, Duration::from_secs(60));
    let expected = Expectations { audiences: &["a"], issuer: Issuer::Any, now, leeway };
    verify(token, &Jwks::parse(document.as_bytes()).unwrap(), &expected).unwrap();
}

#[test]
fn bundle_documents() {
    let read = read_bundle("td".parse().unwrap(), &seed("bundle_document", "whole.json")).unwrap();
    assert_eq!((read.bundle.roots().len(), read.bundle.jwt_authorities().len(), read.bundle.sequence()), (1, 1, 7));
}

#[test]
fn plugged_in_certificates() {
    let check = |name: &str| -> Result<PluggedIn, CacertsError> {
        // As the target cuts them.
        let text = String::from_utf8(seed("cacerts", name)).unwrap();
        let names = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem", "ca-crl.pem"];
        let files =
            CacertsFiles::new(names.into_iter().zip(text.split("\n---\n").map(|part| part.as_bytes().to_vec())));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        check_cacerts(&files, &[], Some(b"passphrase"), &"cluster.local".parse().unwrap(), now)
    };
    for name in ["whole", "sealed"] {
        let found = check(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!found.chain.is_empty() && found.roots.contains(&found.root));
    }
    assert!(check("wrong_key").is_err());
}
