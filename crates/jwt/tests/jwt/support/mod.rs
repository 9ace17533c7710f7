//! Issuers for tests: one of each kind of key.
#![allow(unreachable_pub, reason = "the tests' own")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::{
    error::Error,
    process::Command,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use alcazar_jwt::{Algorithm, Expectations, Issuer, Jwk, Jwks, PublicKey, SignJwt};
use ring::{
    rand::SystemRandom,
    rsa,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding, RsaKeyPair},
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

pub const NOW: u64 = 1_800_000_000;

pub const EVERY: [Algorithm; 9] = [
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
    Algorithm::Es256,
    Algorithm::Es384,
    Algorithm::EdDsa,
];

pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A key pair that signs tokens.
pub struct Issuing {
    pair: Pair,
    algorithm: Algorithm,
    key_id: String,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Issuing {
    /// Fresh, but for RSA: OpenSSL makes one for the whole run, because that takes long.
    pub fn new(algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let ec = |how| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
            Pair::Ec(EcdsaKeyPair::from_pkcs8(how, pkcs8.as_ref(), &random).unwrap())
        };
        let pair = match algorithm {
            Algorithm::Es256 => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDsa => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                Pair::Ed(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
            }
            _ => Pair::Rsa(RsaKeyPair::from_pkcs8(rsa_pkcs8(2048)).unwrap()),
        };
        Self { pair, algorithm, key_id: format!("key-{algorithm}") }
    }

    pub fn public(&self) -> PublicKey {
        let json = match &self.pair {
            Pair::Rsa(pair) => {
                let rsa::PublicKeyComponents { n, e } = pair.public().into();
                let (n, e): (Vec<u8>, Vec<u8>) = (n, e);
                json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)})
            }
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Pair::Ed(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref())}),
        };
        Jwk::from_json(json.as_object().unwrap()).unwrap().key().clone()
    }

    pub fn jwk(&self) -> Jwk {
        Jwk::new(&self.key_id, self.public())
    }

    pub fn jwks(&self) -> Jwks {
        [self.jwk()].into_iter().collect()
    }

    pub fn token(&self, claims: &Value) -> String {
        alcazar_jwt::sign(Some("JWT"), claims, self).unwrap()
    }

    /// A token with a header that no honest issuer would write.
    pub fn token_with_header(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        format!("{signed}.{}", encode(&self.sign(signed.as_bytes()).unwrap()))
    }
}

impl SignJwt for Issuing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn key_id(&self) -> &str {
        &self.key_id
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        let random = SystemRandom::new();
        Ok(match &self.pair {
            Pair::Rsa(pair) => {
                let encoding: &dyn RsaEncoding = match self.algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
                    _ => &signature::RSA_PSS_SHA512,
                };
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, message, &mut out).map_err(|_unspecified| "ring does not sign")?;
                out
            }
            Pair::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        })
    }
}

/// Claims that are good at `NOW` for the audience `ca`.
pub fn claims() -> Value {
    json!({"iss": "https://issuer", "sub": "somebody", "aud": "ca", "exp": NOW + 600, "nbf": NOW - 5, "iat": NOW - 5})
}

/// The same, with some of them changed; null takes one away.
pub fn claims_with(changes: Value) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    claims
}

pub fn expected(now: u64) -> Expectations<'static> {
    Expectations {
        audiences: &["other", "ca"],
        issuer: Issuer::Is("https://issuer"),
        now: at(now),
        leeway: Duration::from_secs(60),
    }
}

pub fn encode(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that OpenSSL made.
pub fn rsa_pkcs8(bits: usize) -> &'static [u8] {
    static LARGE: OnceLock<Vec<u8>> = OnceLock::new();
    static SMALL: OnceLock<Vec<u8>> = OnceLock::new();
    let once = if bits == 2048 { &LARGE } else { &SMALL };
    once.get_or_init(|| {
        let bits = format!("rsa_keygen_bits:{bits}");
        let made = Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-pkeyopt", &bits]).output().unwrap();
        assert!(made.status.success());
        PrivatePkcs8KeyDer::from_pem_slice(&made.stdout).unwrap().secret_pkcs8_der().to_vec()
    })
}
