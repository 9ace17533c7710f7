//! Programs of others read what the CA publishes: curl the bundle, OpenSSL a token's signature.

use std::{fs, process::Command, time::Duration};

use alcazar_api::{
    ca::v1::{self, issue_jwt_svid_result::Outcome, jwt_client::JwtClient},
    spiffe::{read_bundle, write_jwt_bundle},
};
use alcazar_ca::{BundleEndpointConfig, Config, EndpointProfile};
use alcazar_identity::{CertificateDer, SpiffeId};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::UnixTime;

use crate::support::{Hands, Served, node, registration, web};

/// A stock client: curl, which trusts the web's roots.
#[tokio::test(flavor = "multi_thread")]
async fn curl_fetches_the_bundle_and_is_told_when_nothing_changed() {
    let (web, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = |name: &str| web.path().join(name);
    // curl reads the system's clock, so this CA does too, and its certificate is of today.
    let hands = Hands::at(alcazar_service::clock::now());
    let today = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    fs::write(file("cert.pem"), params.self_signed(&today).unwrap().pem()).unwrap();
    fs::write(file("key.pem"), today.serialize_pem()).unwrap();
    let endpoint = BundleEndpointConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        profile: EndpointProfile::Web { cert_file: file("cert.pem"), key_file: file("key.pem") },
        refresh_hint: Duration::from_secs(60),
    };
    let config = Config {
        trust_domain: "one.example".parse().unwrap(),
        bundle_endpoint: Some(endpoint),
        ..Config::new(folder.path())
    };
    let served = Served::start_with(config, &hands).await;
    let curl = async |path: &str, more: &[&str]| {
        let url = format!("https://localhost:{}{path}", served.ca.bundle_endpoint().unwrap().port());
        let mut command = tokio::process::Command::from(Command::new("curl"));
        command.args(["-sS", "-i", "--max-time", "10", "--noproxy", "*", "--cacert"]).arg(file("cert.pem"));
        let output = command.args(more).arg(url).output().await.unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    for path in ["/", "/bundle.json"] {
        let answer = curl(path, &[]).await;
        let (head, document) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{answer}");
        for field in ["content-type: application/json", "cache-control: public, max-age=12", "etag: \""] {
            assert!(head.contains(field), "{field:?} is not in\n{head}");
        }
        let read = read_bundle(served.ca.trust_domain().clone(), document.as_bytes()).unwrap();
        assert_eq!(Some(read.bundle), served.ca.own_bundle());
        let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
        let known = format!("if-none-match: {etag}");
        assert!(curl(path, &["-H", &known]).await.starts_with("HTTP/1.1 304"));
    }
    the_roots_verify_what_is_issued(&served, &curl("/", &[]).await).await;
    assert!(curl("/other", &[]).await.starts_with("HTTP/1.1 404"));
    assert!(curl("/", &["-X", "POST"]).await.starts_with("HTTP/1.1 405"));
    assert!(curl("/", &["-H", &format!("x-long: {}", "x".repeat(20_000))]).await.starts_with("HTTP/1.1 431"));
    assert!(curl("/", &["--tls-max", "1.2", "--tlsv1.2"]).await.starts_with("HTTP/1.1 200"));
    served.stop().await;
}

/// What the document calls roots is one to OpenSSL and to webpki: they verify a certificate of this CA by nothing else.
async fn the_roots_verify_what_is_issued(served: &Served, answer: &str) {
    let document: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let roots: Vec<_> = document["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "x509-svid").collect();
    assert_eq!(roots.len(), 1);
    let der = CertificateDer::from(STANDARD.decode(roots[0]["x5c"][0].as_str().unwrap()).unwrap());
    let node = SpiffeId::node(served.ca.trust_domain(), "local", "one").unwrap();
    let svid = served.attested(&node).await;
    let now = served.hands.now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let anchors = [webpki::anchor_from_trusted_cert(&der).unwrap()];
    webpki::EndEntityCert::try_from(&svid.chain()[0])
        .unwrap()
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &svid.chain()[1..],
            UnixTime::since_unix_epoch(now),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("root.der"), &der).unwrap();
    fs::write(folder.path().join("chain.pem"), svid.chain_pem()).unwrap();
    let openssl = |line: &str| {
        let output = Command::new("openssl").current_dir(folder.path()).args(line.split(' ')).output().unwrap();
        assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("x509 -inform DER -in root.der -out root.pem");
    openssl(&format!("verify -x509_strict -attime {} -CAfile root.pem -untrusted chain.pem chain.pem", now.as_secs()));
}

/// Somebody else's arithmetic: OpenSSL checks the signature, with the key of the document that workloads get.
#[tokio::test(flavor = "multi_thread")]
async fn openssl_checks_a_token() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let served = Served::start(folder.path(), &hands).await;
    served.ca.put_registration(registration("shop.web", &node("a"), &web())).await.unwrap();
    let mut client = JwtClient::new(served.channel(&served.attested(&node("a")).await));
    let item = v1::IssueJwtSvid { registration_id: "shop.web".into(), audience: vec!["reports".into()], ttl: 0 };
    let reply = client.issue_jwt_svids(v1::IssueJwtSvidsRequest { items: vec![item] }).await.unwrap().into_inner();
    let Some(Outcome::Svid(issued)) = reply.results[0].outcome.clone() else { panic!("{reply:?}") };
    let bundle = served.ca.trust_bundles().iter().next().unwrap().clone();
    let document: serde_json::Value = serde_json::from_str(&write_jwt_bundle(&bundle)).unwrap();
    let jwk = &document["keys"][0];
    assert_eq!((jwk["kid"].as_str(), jwk["crv"].as_str()), (Some(issued.key_id.as_str()), Some("P-256")));

    let key = bundle.jwt_authority(&issued.key_id).unwrap().public_key();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(key));
    let (signed, signature) = issued.token.rsplit_once('.').unwrap();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let integer = |half: &[u8]| {
        let short: Vec<u8> = half.iter().copied().skip_while(|byte| *byte == 0).collect();
        let sign: &[u8] = if short[0] >= 0x80 { &[0] } else { &[] };
        [&[2, (sign.len() + short.len()) as u8], sign, &short].concat()
    };
    let both = [integer(&raw[..32]), integer(&raw[32..])].concat();
    let der = [&[0x30, both.len() as u8], &both[..]].concat();
    let file = |name: &str| folder.path().join(name);
    fs::write(file("jwt.pem"), pem).unwrap();
    fs::write(file("jwt.sig"), der).unwrap();
    let verify = |message: &str| {
        fs::write(file("jwt.txt"), message).unwrap();
        let arguments = ["dgst", "-sha256", "-verify", "jwt.pem", "-signature", "jwt.sig", "jwt.txt"];
        Command::new("openssl").current_dir(folder.path()).args(arguments).status().unwrap().success()
    };
    assert!(verify(signed));
    assert!(!verify(&format!("{signed}x")));
    served.stop().await;
}
