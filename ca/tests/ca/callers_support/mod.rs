//! What the tests of callers share: issuers of tokens, an API server in small, and a client as stock clients are.
#![allow(unreachable_pub, reason = "the tests' own")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

pub mod api;

use std::error::Error;

use alcazar_api::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use alcazar_identity::{CertificateDer, SpiffeId, SvidLeaf};
use alcazar_jwt::{Algorithm, Jwk, Jwks, PublicKey, SignJwt, fixed_of_der};
use alcazar_mtls::{Connector, grpc};
use prost_types::{Struct, Value as Any, value::Kind};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tonic::{Code, Request, Status, transport::Channel};

use crate::support::{Served, csr_pem, key};

/// Whoever signs tokens: P-256.
pub struct Tokens {
    key: KeyPair,
    key_id: &'static str,
}

impl Tokens {
    pub fn new(key_id: &'static str) -> Self {
        Self { key: key(), key_id }
    }

    pub fn public(&self) -> PublicKey {
        PublicKey::from_spki_der(&self.key.subject_public_key_info()).unwrap()
    }

    pub fn jwks(&self) -> Jwks {
        [Jwk::new(self.key_id, self.public())].into_iter().collect()
    }

    pub fn token(&self, claims: &Value) -> String {
        alcazar_jwt::sign(Some("JWT"), claims, self).unwrap()
    }

    /// With a header that no honest issuer writes.
    pub fn token_with_header(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        format!("{signed}.{}", encode(&self.sign(signed.as_bytes()).unwrap()))
    }
}

impl SignJwt for Tokens {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Es256
    }

    fn key_id(&self) -> &str {
        self.key_id
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        Ok(fixed_of_der(Algorithm::Es256, &SigningKey::sign(&self.key, message)?)?)
    }
}

pub fn encode(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Claims with some of them changed; null takes one away.
pub fn with(claims: &Value, changes: Value) -> Value {
    let mut claims = claims.clone();
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    claims
}

/// What a cluster's API server writes into the token of a pod.
pub fn pod_claims(namespace: &str, account: &str, pod: &str, uid: &str, node: &str, now: u64) -> Value {
    json!({
        "iss": "https://kubernetes.default.svc", "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "aud": ["istio-ca"], "exp": now + 3600, "nbf": now, "iat": now,
        "kubernetes.io": {
            "namespace": namespace, "serviceaccount": {"name": account, "uid": "sa"},
            "pod": {"name": pod, "uid": uid}, "node": {"name": node, "uid": "n"},
        },
    })
}

/// A client of Istio's CSR API as `.proto` and documents have it: no certificate, the root, a token.
pub fn stock(served: &Served) -> Channel {
    let root = served.ca.fingerprints().root.fingerprint;
    let connector = Connector::pinned(served.ca.trust_domain().clone(), root, grpc::ALPN, served.hands.clock());
    grpc::channel(served.address, connector, served.expected())
}

/// What a client of Istio's CSR API sends.
pub struct Ask<'a> {
    pub headers: Vec<(&'static str, String)>,
    pub impersonated: Option<&'a str>,
}

impl<'a> Ask<'a> {
    pub fn with(token: &str) -> Self {
        let headers = vec![("authorization", format!("Bearer {token}")), ("clusterid", "Kubernetes".into())];
        Self { headers, impersonated: None }
    }

    pub fn header(headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { headers, impersonated: None }
    }

    pub fn on_behalf_of(self, id: &'a str) -> Self {
        Self { impersonated: Some(id), ..self }
    }

    /// Whom the certificate names that came.
    pub async fn of(self, channel: Channel) -> Result<SpiffeId, Status> {
        let key = key();
        let metadata = self.impersonated.map(|id| {
            let id = Any { kind: Some(Kind::StringValue(id.into())) };
            Struct { fields: [("ImpersonatedIdentity".to_owned(), id)].into() }
        });
        let message = IstioCertificateRequest { csr: csr_pem(&key), validity_duration: 0, metadata };
        let mut request = Request::new(message);
        for (name, value) in self.headers {
            request.metadata_mut().append(name, value.parse().unwrap());
        }
        let reply = IstioCertificateServiceClient::new(channel).create_certificate(request).await?.into_inner();
        assert_eq!(reply.cert_chain.len(), 3, "leaf, intermediate, root: one certificate in each text");
        let chain: Vec<_> =
            reply.cert_chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
        Ok(SvidLeaf::parse(&chain[0]).unwrap().id().clone())
    }

    pub async fn refusal(self, channel: Channel) -> Code {
        match self.of(channel).await {
            Ok(id) => panic!("{id} was issued"),
            Err(status) => status.code(),
        }
    }
}
