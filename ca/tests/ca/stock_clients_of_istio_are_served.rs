//! A client of Istio's CSR API that knows nothing of us: the messages as the published `security/v1alpha1/ca.proto` has them, a
//! stock TLS library, a root certificate in a file, and a token.

use std::{fs, process::Command, time::Duration};

use alcazar_ca::{CallersConfig, Config, KubernetesCallers};
use alcazar_service::clock;
use http::uri::PathAndQuery;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use serde_json::json;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::callers_support::{Tokens, api::ApiServer};
use crate::support::{Hands, Served};

/// `istio.v1.auth.IstioCertificateRequest`, with the field that old agents still send.
#[derive(Clone, PartialEq, prost::Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(string, tag = "2")]
    subject_id: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

const SERVER: &str = "istiod.istio-system.svc";

/// As an agent dials: by address, believing one root, and that the server has this name.
async fn dial(served: &Served, root: &str, name: &str) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name(name);
    let endpoint = Endpoint::from_shared(format!("https://{}", served.address)).unwrap();
    endpoint.tls_config(tls).unwrap().timeout(Duration::from_secs(20)).connect().await
}

async fn create(channel: Channel, token: &str, message: CertificateRequest) -> Result<Vec<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.metadata_mut().insert("clusterid", "Kubernetes".parse().unwrap());
    let path = PathAndQuery::from_static("/istio.v1.auth.IstioCertificateService/CreateCertificate");
    let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
    Ok(grpc.unary(request, path, codec).await?.into_inner().cert_chain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_made_from_the_published_proto_gets_a_certificate() {
    let (folder, api) = (tempfile::tempdir().unwrap(), ApiServer::start().await);
    // Its TLS reads the system's clock, so the CA does too.
    let hands = Hands::at(clock::now());
    let mut config = Config::new(folder.path().join("ca"));
    config.dns_names = vec![SERVER.into()];
    config.kubernetes = api.config(folder.path());
    config.callers = CallersConfig { kubernetes: Some(KubernetesCallers::default()), ..CallersConfig::default() };
    let served = Served::start_with(config, &hands).await;
    let now = hands.now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let token = Tokens::new("cluster").token(&json!({
        "iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:shop:web", "exp": now + 3600,
    }));
    api.vouch_for_pod(&token, "shop:web", "web-1", "u1");

    let root = pem::of(&served.ca.fingerprints().root.certificate);
    assert!(dial(&served, &root, "somebody-else.svc").await.is_err(), "the name is checked");
    let channel = dial(&served, &root, SERVER).await.unwrap();
    // A request as agents make it: an organisation, and the identity that it expects, which decides nothing.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
    params.subject_alt_names =
        vec![rcgen::SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap())];
    let message = CertificateRequest {
        csr: params.serialize_request(&key).unwrap().pem().unwrap(),
        subject_id: "spiffe://cluster.local/ns/kube-system/sa/admin".into(),
        validity_duration: 600,
    };
    let chain = create(channel.clone(), &token, message.clone()).await.unwrap();

    // The leaf first, the root last; the key is ours and the identity the token's.
    let ders: Vec<_> = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
    assert_eq!(ders.last(), Some(&served.ca.fingerprints().root.certificate));
    let leaf = alcazar_identity::SvidLeaf::parse(&ders[0]).unwrap();
    assert_eq!(leaf.id().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert!(ders[0].windows(65).any(|window| window == key.public_key_raw()), "the key is the client's");
    let anchors = [webpki::anchor_from_trusted_cert(ders.last().unwrap()).unwrap()];
    webpki::EndEntityCert::try_from(&ders[0])
        .unwrap()
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &ders[1..ders.len() - 1],
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .unwrap();
    for (name, texts) in
        [("leaf", &chain[..1]), ("above", &chain[1..chain.len() - 1]), ("root", &chain[chain.len() - 1..])]
    {
        fs::write(folder.path().join(name), texts.concat()).unwrap();
    }
    let verified = Command::new("openssl")
        .current_dir(folder.path())
        .args(["verify", "-x509_strict", "-CAfile", "root", "-untrusted", "above", "leaf"])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");

    // A life that is longer than anybody's, a token of nobody, a text that is no request: each its own code.
    let long = CertificateRequest { validity_duration: 30 * 24 * 3600, ..message.clone() };
    assert_eq!(create(channel.clone(), &token, long).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(create(channel.clone(), "a.b.c", message.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let empty = CertificateRequest { csr: String::new(), ..message };
    assert_eq!(create(channel, &token, empty).await.unwrap_err().code(), Code::InvalidArgument);
    served.stop().await;
    api.stop().await;
}

mod pem {
    use base64::{Engine, engine::general_purpose::STANDARD};

    /// A certificate as the API writes it.
    pub(super) fn of(der: &[u8]) -> String {
        let body = STANDARD.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }
}
