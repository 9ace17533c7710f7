//! Floods, slow neighbours and large replies: those who are known go on.
#![allow(clippy::disallowed_methods, reason = "a test stops at the first surprise, and its tasks with it")]

use std::path::Path;

use alcazar_api::{
    ca::v1::{
        self, adoption_client::AdoptionClient, attest_node_request::Evidence,
        certificate_authority_client::CertificateAuthorityClient, issue_workload_result::Outcome,
        jwt_client::JwtClient, revocation_client::RevocationClient,
    },
    spiffe::ReadBundle,
};
use alcazar_ca::{CallersConfig, Config, KubernetesCallers, Limit, Limits, Source};
use alcazar_identity::TrustBundle;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa};
use serde_json::json;
use tonic::{Code, Request, Status};

use crate::callers_support::{Ask, Tokens, api::ApiServer, stock, with};
use crate::support::{Hands, START, Served, csr, key, node, registration, svid, web};

fn config(folder: &Path, api: &ApiServer, limits: Limits) -> Config {
    let mut config = Config::new(folder.join("ca"));
    config.kubernetes = api.config(folder);
    let kubernetes = KubernetesCallers {
        node_agents: vec!["alcazar-system/alcazar-node-agent".into()],
        ..KubernetesCallers::default()
    };
    config.callers = CallersConfig { kubernetes: Some(kubernetes), ..CallersConfig::default() };
    config.limits = limits;
    config
}

fn hint(status: &Status) -> Option<u64> {
    status.metadata().get("retry-after-ms")?.to_str().ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_tokens_have_a_share_and_the_api_server_is_asked_about_no_more() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    let limits = Limits { strangers: Limit { per_minute: 1, burst: 6 }, ..Limits::default() };
    let served = Served::start_with(config(folder.path(), &api, limits), &hands).await;
    let cluster = Tokens::new("cluster");
    let claims = json!({"iss": "https://kubernetes.default.svc", "aud": ["istio-ca"], "exp": START + 3600});
    let token = |changes| cluster.token(&with(&claims, changes));
    let good = token(json!({"sub": "web"}));
    api.vouch_for_pod(&good, "shop:web", "web-1", "u1");
    // Who proves itself has its share back, as often as it comes.
    for round in 0..10 {
        let good = token(json!({"sub": "web", "jti": round}));
        api.vouch_for_pod(&good, "shop:web", "web-1", "u1");
        Ask::with(&good).of(stock(&served)).await.unwrap();
    }
    Ask::with(&good).of(stock(&served)).await.unwrap();
    assert_eq!(api.reviews(), 11);
    // What cannot be good by its own word is refused here.
    for hopeless in [json!({"exp": START - 3600}), json!({"aud": ["vault"]}), json!({"aud": "vault"})] {
        assert_eq!(Ask::with(&token(hopeless)).refusal(stock(&served)).await, Code::Unauthenticated);
    }
    assert_eq!(api.reviews(), 11);
    for round in 0..3 {
        let made_up = token(json!({"jti": format!("made up {round}")}));
        assert_eq!(Ask::with(&made_up).refusal(stock(&served)).await, Code::Unauthenticated);
    }
    assert_eq!(api.reviews(), 14);
    for round in 3..20 {
        let made_up = token(json!({"jti": format!("made up {round}")}));
        let refused = Ask::with(&made_up).of(stock(&served)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(hint(&refused).is_some_and(|millis| millis > 0), "{refused:?}");
    }
    assert_eq!(api.reviews(), 14);
    // Attesting is no other way around it.
    let request = v1::AttestNodeRequest {
        evidence: Some(Evidence::BearerToken(token(json!({"jti": "x"})))),
        csr: csr(&key()),
        ..Default::default()
    };
    let refused = CertificateAuthorityClient::new(stock(&served)).attest_node(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // Whose token was good a moment ago goes on, also from that address.
    Ask::with(&good).of(stock(&served)).await.unwrap();
    served.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_slow_holds_up_no_renewal_and_no_join_token() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    // A single place: whoever held it over a question would hold up everybody.
    let limits = Limits { at_a_time: 1, ..Limits::default() };
    let served = Served::start_with(config(folder.path(), &api, limits), &hands).await;
    let one = served.attested(&node("one")).await;
    api.hang(true);
    let mut asking = Vec::new();
    for round in 0..3 {
        let token = Tokens::new("cluster").token(&json!({"iss": "x", "jti": round, "exp": START + 3600}));
        let mut client = CertificateAuthorityClient::new(stock(&served));
        let request = v1::AttestNodeRequest {
            evidence: Some(Evidence::BearerToken(token)),
            csr: csr(&key()),
            ..Default::default()
        };
        asking.push(tokio::spawn(async move { client.attest_node(request).await }));
    }
    let mut reviews = api.asked();
    reviews.wait_for(|asked| *asked == 3).await.unwrap();
    let next = key();
    svid(&served.renew(&one, &next).await.unwrap(), &next);
    served.attested(&node("two")).await;
    assert!(asking.iter().all(|asking| !asking.is_finished()), "the API server was to be asked still");
    api.hang(false);
    for asking in asking {
        assert_eq!(asking.await.unwrap().unwrap_err().code(), Code::Unauthenticated);
    }
    served.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_of_others_never_make_a_batch_too_large_for_its_reply() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let served = Served::start(folder.path(), &hands).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let root = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "x".repeat(1500));
        params.self_signed(&key()).unwrap().der().clone()
    };
    let partner = TrustBundle::new("partner.example".parse().unwrap(), 1, (0..12).map(|_| root())).unwrap();
    let read = ReadBundle { bundle: partner, numbered: true, ignored: Vec::new() };
    served.ca.set_foreign_bundle(read, Source::Operator).await.unwrap();
    let one = served.attested(&node("one")).await;
    let keys: Vec<_> = (0..100).map(|_| key()).collect();
    let item =
        |key| v1::IssueWorkload { registration_id: "shop.web".into(), csr: csr(key), ..v1::IssueWorkload::default() };
    let request = v1::IssueWorkloadsRequest { items: keys.iter().map(item).collect() };
    // With the limit that clients of gRPC have by themselves.
    let mut client = CertificateAuthorityClient::new(served.channel(&one));
    let reply = client.issue_workloads(request).await.unwrap().into_inner();
    for (result, key) in reply.results.iter().zip(&keys) {
        let Some(Outcome::Svid(issued)) = &result.outcome else { panic!("{result:?}") };
        svid(issued, key);
    }
    assert_eq!(reply.results.len(), 100);
    let bundles: alcazar_identity::TrustBundles = reply.bundles.unwrap().try_into().unwrap();
    assert!(bundles.get(served.ca.trust_domain()).is_some());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_sends_no_more_than_its_evidence_needs() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let served = Served::start(folder.path(), &hands).await;
    let token = served.token(&node("one")).await;
    let mut client = CertificateAuthorityClient::new(served.pinned(&token));
    let request = v1::AttestNodeRequest {
        evidence: Some(Evidence::JoinToken(token.clone())),
        csr: vec![0; 300 << 10],
        ..Default::default()
    };
    assert_eq!(client.attest_node(request).await.unwrap_err().code(), Code::OutOfRange);
    // The connection goes on, and so does the token.
    let request =
        v1::AttestNodeRequest { evidence: Some(Evidence::JoinToken(token)), csr: csr(&key()), ..Default::default() };
    client.attest_node(request).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_beside_a_certificate_is_refused_by_everything_that_nodes_call() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    fn with_token<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", "Bearer a.b.c".parse().unwrap());
        request
    }
    let channel = served.channel(&one);
    let mut ca = CertificateAuthorityClient::new(channel.clone());
    let mut adoption = AdoptionClient::new(channel.clone());
    let csr = csr(&key());
    let attest = v1::AttestNodeRequest {
        evidence: Some(Evidence::JoinToken("x".into())),
        csr: csr.clone(),
        ..Default::default()
    };
    let refused = [
        ("AttestNode", ca.attest_node(with_token(attest)).await.map(drop)),
        ("RenewNode", ca.renew_node(with_token(v1::RenewNodeRequest { csr })).await.map(drop)),
        ("WatchRegistrations", ca.watch_registrations(with_token(v1::WatchRegistrationsRequest {})).await.map(drop)),
        ("IssueWorkloads", ca.issue_workloads(with_token(v1::IssueWorkloadsRequest::default())).await.map(drop)),
        ("WatchTrustBundles", ca.watch_trust_bundles(with_token(v1::WatchTrustBundlesRequest {})).await.map(drop)),
        ("ReportAdoption", adoption.report_adoption(with_token(v1::ReportAdoptionRequest::default())).await.map(drop)),
        ("WatchReissue", adoption.watch_reissue(with_token(v1::WatchReissueRequest {})).await.map(drop)),
        (
            "WatchRevocations",
            RevocationClient::new(channel.clone())
                .watch_revocations(with_token(v1::WatchRevocationsRequest {}))
                .await
                .map(drop),
        ),
        (
            "IssueJwtSvids",
            JwtClient::new(channel.clone())
                .issue_jwt_svids(with_token(v1::IssueJwtSvidsRequest::default()))
                .await
                .map(drop),
        ),
    ];
    for (call, outcome) in refused {
        assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated, "{call}");
    }
    served.stop().await;
}
