//! OIDC tokens and machine certificates: rules make identities of them.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use alcazar_api::attestation::machine_proof;
use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient,
    node_attestation_client::NodeAttestationClient,
};
use alcazar_ca::{Ca, CallersConfig, Config, MachineCallers, OidcCallers, RuleConfig};
use alcazar_service::Health;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    SigningKey,
};
use ring::hmac;
use serde_json::{Value, json};
use tonic::{Code, Status, transport::Channel};

use crate::callers_support::{Ask, Tokens, encode, stock, with};
use crate::support::{Hands, START, Served, csr, key, ready, svid};

fn rule(matches: &[(&str, &str)], identity: &str, namespaces: &[&str]) -> RuleConfig {
    let matches: BTreeMap<_, _> =
        matches.iter().map(|(name, pattern)| ((*name).to_owned(), (*pattern).to_owned())).collect();
    let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
    RuleConfig { r#match: matches, identity: identity.into(), namespaces }
}

fn oidc(folder: &Path, issuer: &str, tokens: &Tokens, rules: Vec<RuleConfig>) -> OidcCallers {
    let file = folder.join(format!("{}.json", issuer.replace(['/', ':'], "_")));
    fs::write(&file, tokens.jwks().to_json().to_string()).unwrap();
    let jwks = Some(file.to_str().unwrap().to_owned());
    OidcCallers { issuer: issuer.into(), audiences: vec!["alcazar".into()], jwks, roots: None, rules }
}

fn claims() -> Value {
    json!({
        "iss": "https://ci", "aud": "alcazar", "exp": START + 600, "iat": START, "sub": "repo:acme/shop",
        "repository": "acme/shop", "ref": "refs/heads/main", "actor": "ann", "teams": ["shop", "blog"], "vm": "vm-1",
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_become_the_identity_that_the_rules_say_and_no_other() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (ci, vms) = (Tokens::new("k"), Tokens::new("k"));
    let rules = vec![
        rule(&[("repository", "acme/*"), ("ref", "refs/heads/main")], "ns/ci/sa/{actor}", &[]),
        rule(&[("team", "*")], "ns/{team}/sa/deploy", &["shop"]),
    ];
    let mut config = Config::new(folder.path().join("ca"));
    config.callers.oidc = vec![
        oidc(folder.path(), "https://ci", &ci, rules),
        oidc(folder.path(), "https://vms", &vms, vec![rule(&[("vm", "vm-*")], "node/local/{vm}", &[])]),
    ];
    let served = Served::start_with(config, &hands).await;
    let id = async |changes: Value| {
        let outcome = Ask::with(&ci.token(&with(&claims(), changes))).of(stock(&served)).await;
        outcome.map(|id| id.to_string()).map_err(|status| status.code())
    };
    assert_eq!(id(json!({})).await.unwrap(), "spiffe://cluster.local/ns/ci/sa/ann");
    assert_eq!(id(json!({"ref": "x", "team": "shop"})).await.unwrap(), "spiffe://cluster.local/ns/shop/sa/deploy");
    for changes in [
        json!({"repository": "evil/shop"}),
        json!({"ref": "refs/heads/main2"}),
        json!({"ref": "x", "team": "kube-system"}),
        json!({"ref": "x", "team": ["shop", "blog"]}),
        json!({"ref": "x", "team": {"shop": true}}),
        json!({"actor": "../../shop/sa/web"}),
        json!({"actor": "a/b"}),
        json!({"actor": ""}),
        json!({"actor": null}),
    ] {
        assert_eq!(id(changes.clone()).await, Err(Code::PermissionDenied), "{changes}");
    }
    for changes in [
        json!({"aud": "vault"}),
        json!({"exp": START - 61}),
        json!({"nbf": START + 61}),
        json!({"iat": START + 61}),
        // The other issuer's name does not make it the other issuer's token.
        json!({"iss": "https://vms"}),
        json!({"iss": "https://nobody"}),
        json!({"iss": null}),
    ] {
        assert_eq!(id(changes.clone()).await, Err(Code::Unauthenticated), "{changes}");
    }
    let unsigned = |alg: &str| encode(json!({"alg": alg, "kid": "k"}).to_string().as_bytes());
    let body = encode(claims().to_string().as_bytes());
    let signed = format!("{}.{body}", unsigned("HS256"));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &ci.public().to_spki_der());
    for (what, bad) in [
        ("no signature", format!("{}.{body}.", unsigned("none"))),
        ("the public key as a secret", format!("{signed}.{}", encode(hmac::sign(&secret, signed.as_bytes()).as_ref()))),
        ("another algorithm's name", ci.token_with_header(&json!({"alg": "RS256", "kid": "k"}), &claims())),
        ("an unknown key", ci.token_with_header(&json!({"alg": "ES256", "kid": "k9"}), &claims())),
        ("the other issuer's key of the same name", vms.token(&claims())),
        ("a key that it brings itself", {
            let jwk = vms.jwks().to_json()["keys"][0].clone();
            vms.token_with_header(&json!({"alg": "ES256", "jwk": jwk}), &claims())
        }),
    ] {
        assert_eq!(Ask::with(&bad).refusal(stock(&served)).await, Code::Unauthenticated, "{what}");
    }
    // A machine by its cloud's token: a node, which begins a lineage.
    let machine = vms.token(&with(&claims(), json!({"iss": "https://vms"})));
    assert_eq!(Ask::with(&machine).refusal(stock(&served)).await, Code::PermissionDenied);
    let key = key();
    let attest = async |token: String| {
        let request = v1::AttestNodeRequest {
            evidence: Some(Evidence::BearerToken(token)),
            csr: csr(&key),
            ..Default::default()
        };
        CertificateAuthorityClient::new(stock(&served)).attest_node(request).await.map(tonic::Response::into_inner)
    };
    let first = svid(&attest(machine).await.unwrap(), &key);
    assert_eq!(first.id().as_str(), "spiffe://cluster.local/node/local/vm-1");
    assert!(served.renew(&first, &crate::support::key()).await.is_ok());
    assert_eq!(attest(ci.token(&claims())).await.unwrap_err().code(), Code::PermissionDenied);
    served.stop().await;
}

#[tokio::test]
async fn callers_that_cannot_be_told_apart_or_admit_anybody_are_not_configured() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = Tokens::new("k");
    let good = || oidc(folder.path(), "https://ci", &tokens, vec![rule(&[("sub", "*")], "ns/ci/sa/{sub}", &[])]);
    let refusal = async |callers: CallersConfig| {
        let mut config = Config::new(folder.path().join("ca"));
        config.callers = callers;
        let outcome = Ca::open(config, Hands::new().clock()).await;
        outcome.err().map(|error| alcazar_service::process::chain(&error)).expect("it was opened")
    };
    let only = |oidc: OidcCallers| CallersConfig { oidc: vec![oidc], ..CallersConfig::default() };
    let twice = CallersConfig { oidc: vec![good(), good()], ..CallersConfig::default() };
    assert!(refusal(twice).await.contains("https://ci stands twice"));
    assert!(refusal(only(OidcCallers { audiences: vec![], ..good() })).await.contains("audiences is empty"));
    assert!(refusal(only(OidcCallers { rules: vec![], ..good() })).await.contains("nobody would be admitted"));
    let anybody = OidcCallers { rules: vec![rule(&[], "ns/a/sa/b", &[])], ..good() };
    assert!(refusal(only(anybody)).await.contains("match is empty"));
    let plain = OidcCallers { jwks: Some("http://ci/keys".into()), ..good() };
    assert!(refusal(only(plain)).await.contains("https://"));
    let machines = |roots: &str, name: &str| MachineCallers {
        roots: folder.path().join(roots),
        rules: vec![rule(&[(name, "*")], "node/local/{dns}", &[])],
    };
    let only = |machines| CallersConfig { machines: Some(machines), ..CallersConfig::default() };
    assert!(refusal(only(machines("missing.pem", "dns"))).await.contains("cannot read"));
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    assert!(refusal(only(machines("empty.pem", "dns"))).await.contains("no certificate"));
    let (root, _) = Enterprise::new().files(folder.path());
    assert!(refusal(only(machines(&root, "cn"))).await.contains("commonName, dns or uri"));
}

/// The CA of an enterprise, as it has been there for years.
struct Enterprise(CertifiedIssuer<'static, KeyPair>);

impl Enterprise {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Enterprise");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn files(&self, folder: &Path) -> (String, Vec<u8>) {
        fs::write(folder.join("enterprise.pem"), self.0.pem()).unwrap();
        ("enterprise.pem".into(), self.0.der().to_vec())
    }

    fn machine(&self, change: impl FnOnce(&mut CertificateParams)) -> (Vec<Vec<u8>>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = time::OffsetDateTime::from_unix_timestamp(START as i64 - 3600).unwrap();
        params.not_after = params.not_before + time::Duration::days(365);
        params.distinguished_name.push(DnType::CommonName, "vm-7");
        params.subject_alt_names = vec![SanType::DnsName("vm-7.corp.example".try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (vec![certificate.der().to_vec()], key)
    }
}

async fn challenge(channel: &Channel) -> Vec<u8> {
    let reply = NodeAttestationClient::new(channel.clone()).challenge(v1::ChallengeRequest {}).await.unwrap();
    reply.into_inner().nonce
}

async fn show(
    channel: &Channel,
    chain: &[Vec<u8>],
    nonce: &[u8],
    signature: Vec<u8>,
    csr: &[u8],
) -> Result<v1::IssuedSvid, Status> {
    let machine = v1::MachineEvidence { chain: chain.to_vec(), nonce: nonce.to_vec(), signature };
    let request =
        v1::AttestNodeRequest { evidence: Some(Evidence::Machine(machine)), csr: csr.to_vec(), ..Default::default() };
    Ok(CertificateAuthorityClient::new(channel.clone()).attest_node(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_proves_its_key_becomes_its_node() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (enterprise, strangers) = (Enterprise::new(), Enterprise::new());
    let (roots, _) = enterprise.files(folder.path());
    let rules = vec![rule(&[("dns", "*.corp.example")], "node/local/{commonName}", &[])];
    let mut config = Config::new(folder.path().join("ca"));
    config.callers.machines = Some(MachineCallers { roots: folder.path().join(roots), rules });
    let served = Served::start_with(config, &hands).await;
    let channel = stock(&served);
    let sign = |key: &KeyPair, nonce: &[u8], csr: &[u8]| {
        key.sign(&machine_proof("cluster.local", "local", nonce, csr)).unwrap()
    };

    let (chain, machine) = enterprise.machine(|_| {});
    let (node_key, nonce) = (key(), challenge(&channel).await);
    let request = csr(&node_key);
    let proof = sign(&machine, &nonce, &request);
    let issued = show(&channel, &chain, &nonce, proof.clone(), &request).await.unwrap();
    let first = svid(&issued, &node_key);
    assert_eq!(first.id().as_str(), "spiffe://cluster.local/node/local/vm-7");
    let next = key();
    let second = svid(&served.renew(&first, &next).await.unwrap(), &next);
    // The same proof again would begin the lineage anew: it is good once.
    assert_eq!(show(&channel, &chain, &nonce, proof, &request).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(served.renew(&second, &key()).await.is_ok());

    let refused = async |chain: &[Vec<u8>], signing: &KeyPair, expected: Code, what: &str| {
        let nonce = challenge(&channel).await;
        let outcome = show(&channel, chain, &nonce, sign(signing, &nonce, &request), &request).await;
        assert_eq!(outcome.unwrap_err().code(), expected, "{what}");
    };
    let (foreign, foreign_key) = strangers.machine(|_| {});
    refused(&foreign, &foreign_key, Code::Unauthenticated, "another enterprise's").await;
    refused(&chain, &foreign_key, Code::Unauthenticated, "without its key").await;
    refused(&[], &machine, Code::Unauthenticated, "no certificate").await;
    refused(&vec![chain[0].clone(); 9], &machine, Code::Unauthenticated, "a long chain").await;
    refused(&[b"hello".to_vec()], &machine, Code::Unauthenticated, "not a certificate").await;
    let (server, server_key) =
        enterprise.machine(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    refused(&server, &server_key, Code::Unauthenticated, "for servers").await;
    let (any, any_key) = enterprise.machine(|params| params.extended_key_usages.clear());
    refused(&any, &any_key, Code::Unauthenticated, "for nothing in particular").await;
    let (old, old_key) = enterprise.machine(|params| params.not_after = params.not_before + time::Duration::minutes(1));
    refused(&old, &old_key, Code::Unauthenticated, "expired").await;
    let (nobody, nobody_key) = enterprise.machine(|params| params.subject_alt_names.clear());
    refused(&nobody, &nobody_key, Code::PermissionDenied, "of no rule").await;
    let (path, path_key) = enterprise.machine(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "../vm-7");
    });
    refused(&path, &path_key, Code::PermissionDenied, "a name that is a path").await;

    // The enterprise exchanges its root. A file that is no such thing leaves the root from before, and says so.
    let file = folder.path().join("enterprise.pem");
    let (before, after) = (fs::read(&file).unwrap(), strangers.0.pem());
    served.part_is("callers", ready).await;
    fs::write(&file, "hello").unwrap();
    let told = |health: &Health| matches!(health, Health::Degraded(why) if why.contains("enterprise.pem"));
    served.part_is("callers", told).await;
    refused(&foreign, &foreign_key, Code::Unauthenticated, "not yet").await;
    refused(&path, &path_key, Code::PermissionDenied, "still").await;
    fs::write(&file, after).unwrap();
    served.part_is("callers", ready).await;
    refused(&chain, &machine, Code::Unauthenticated, "of the root from before").await;
    let (nonce, fresh) = (challenge(&channel).await, csr(&key()));
    show(&channel, &foreign, &nonce, sign(&foreign_key, &nonce, &fresh), &fresh).await.unwrap();
    fs::write(&file, "hello").unwrap();
    served.part_is("callers", told).await;
    fs::write(&file, before).unwrap();
    served.part_is("callers", ready).await;

    // A proof for another request, for another CA, of another time, and with a nonce that nobody made.
    let nonce = challenge(&channel).await;
    let other = csr(&key());
    let elsewhere = machine.sign(&machine_proof("cluster.local", "west", &nonce, &request)).unwrap();
    for signature in [sign(&machine, &nonce, &other), elsewhere, Vec::new()] {
        let outcome = show(&channel, &chain, &nonce, signature, &request).await;
        assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated);
    }
    for wrong in [Vec::new(), vec![0; 56], [nonce.as_slice(), &[0]].concat()] {
        let outcome = show(&channel, &chain, &wrong, sign(&machine, &wrong, &request), &request).await;
        assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated);
    }
    hands.advance(Duration::from_secs(60));
    let late = show(&channel, &chain, &nonce, sign(&machine, &nonce, &request), &request).await;
    assert_eq!(late.unwrap_err().code(), Code::Unauthenticated);
    // And nothing at all.
    let nothing = v1::AttestNodeRequest { evidence: None, csr: request, ..Default::default() };
    let outcome = CertificateAuthorityClient::new(channel).attest_node(nothing).await;
    assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated);
    served.stop().await;
}
