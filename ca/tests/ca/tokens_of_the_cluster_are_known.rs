//! Service accounts by their tokens: through the API server, and by the cluster's keys.

use std::{path::Path, time::Duration};

use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient,
};
use alcazar_ca::{CallersConfig, Config, KubernetesCallers, VerifyTokens};
use http::StatusCode;
use ring::hmac;
use serde_json::json;
use tonic::Code;

use crate::callers_support::{Ask, Tokens, api::ApiServer, encode, pod_claims, stock, with};
use crate::support::{Hands, START, Served, csr, eventually, key, node, svid};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

async fn serve(folder: &Path, api: &ApiServer, kubernetes: KubernetesCallers, hands: &Hands) -> Served {
    let mut config = Config::new(folder.join("ca"));
    config.kubernetes = api.config(folder);
    config.callers = CallersConfig { kubernetes: Some(kubernetes), ..CallersConfig::default() };
    Served::start_with(config, hands).await
}

/// A token as the API server made it; what it says is the server's to tell.
fn token(of: &str) -> String {
    Tokens::new("cluster").token(&json!({"iss": "https://kubernetes.default.svc", "sub": of, "exp": START + 3600}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_client_gets_its_own_identity_for_its_token() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    let served = serve(folder.path(), &api, KubernetesCallers::default(), &hands).await;
    let web = token("web");
    api.vouch_for_pod(&web, "shop:web", "web-1", "u1");
    assert_eq!(Ask::with(&web).of(stock(&served)).await.unwrap().as_str(), WEB);
    // Its own name for the cluster will do, and none.
    for headers in [&[("clusterid", "local")][..], &[("clusterid", "")], &[]] {
        let mut ask = Ask::header(headers);
        ask.headers.push(("authorization", format!("Bearer {web}")));
        assert_eq!(ask.of(stock(&served)).await.unwrap().as_str(), WEB);
    }
    let elsewhere = [("clusterid", "west"), ("authorization", &format!("Bearer {web}"))];
    assert_eq!(Ask::header(&elsewhere).refusal(stock(&served)).await, Code::PermissionDenied);
    // On its own behalf alone.
    assert_eq!(Ask::with(&web).on_behalf_of(DB).refusal(stock(&served)).await, Code::PermissionDenied);
    let issued = served.ca.issued(None, 100).await.unwrap();
    assert_eq!(issued.iter().filter(|record| record.spiffe_id.as_str() == WEB).count(), 4);
    served.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_refused_never_falls_through_to_a_good_certificate() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    let served = serve(folder.path(), &api, KubernetesCallers::default(), &hands).await;
    let good = served.attested(&node("one")).await;
    let (unknown, other, anybodys) = (token("unknown"), token("other"), token("anybody"));
    let user = json!({"username": "system:serviceaccount:shop:web"});
    api.vouch(&other, json!({"authenticated": true, "audiences": ["vault"], "user": user}));
    // An old server that knows nothing of audiences.
    api.vouch(&anybodys, json!({"authenticated": true, "user": user}));
    let human = token("human");
    api.vouch(&human, json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": "admin"}}));
    let bearer = |token: &str| format!("Bearer {token}");
    let huge = bearer(&format!("{unknown}{}", "A".repeat(15_000)));
    for header in [
        bearer(&unknown),
        bearer(&other),
        bearer(&anybodys),
        bearer(&human),
        bearer(""),
        bearer("abc"),
        bearer("a.b.c"),
        huge,
        "Basic YWRtaW46YWRtaW4=".into(),
        unknown.clone(),
    ] {
        let ask = || Ask::header(&[("authorization", &header)]);
        assert_eq!(ask().refusal(stock(&served)).await, Code::Unauthenticated, "{header:.60}");
        assert_eq!(ask().refusal(served.channel(&good)).await, Code::Unauthenticated, "{header:.60}");
    }
    // Two tokens: which of them decides would be chance.
    let web = token("web");
    api.vouch_for_pod(&web, "shop:web", "web-1", "u1");
    let twice = [("authorization", &*bearer(&web)), ("authorization", &*bearer(&unknown))];
    assert_eq!(Ask::header(&twice).refusal(served.channel(&good)).await, Code::Unauthenticated);
    // Nor does a good token renew a node.
    let mut renew = tonic::Request::new(v1::RenewNodeRequest { csr: csr(&key()) });
    renew.metadata_mut().insert("authorization", bearer(&web).parse().unwrap());
    assert_eq!(served.client(&good).renew_node(renew).await.unwrap_err().code(), Code::Unauthenticated);
    let evidence = Some(Evidence::JoinToken(served.token(&node("two")).await));
    let mut attest = tonic::Request::new(v1::AttestNodeRequest { evidence, csr: csr(&key()), ..Default::default() });
    attest.metadata_mut().insert("authorization", bearer(&web).parse().unwrap());
    let outcome = CertificateAuthorityClient::new(stock(&served)).attest_node(attest).await;
    assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated);
    // The certificate by itself is as good as ever.
    assert_eq!(Ask::header(&[]).of(served.channel(&good)).await.unwrap(), node("one"));
    // A token of the CA's own account does not make its bearer the CA.
    let ca = token("ca");
    api.vouch_for_pod(&ca, "alcazar-system:alcazar-ca", "ca-1", "u9");
    assert_eq!(Ask::with(&ca).refusal(stock(&served)).await, Code::PermissionDenied);
    served.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_servers_word_is_believed_for_a_minute_and_its_absence_is_no_refusal() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    let served = serve(folder.path(), &api, KubernetesCallers::default(), &hands).await;
    let (web, late) = (token("web"), token("late"));
    api.vouch_for_pod(&web, "shop:web", "web-1", "u1");
    for _ in 0..3 {
        assert_eq!(Ask::with(&web).of(stock(&served)).await.unwrap().as_str(), WEB);
    }
    assert_eq!(api.reviews(), 1);
    for away in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::FORBIDDEN] {
        api.mood(away);
        assert_eq!(Ask::with(&web).of(stock(&served)).await.unwrap().as_str(), WEB);
        assert_eq!(Ask::with(&late).refusal(stock(&served)).await, Code::Unavailable, "{away}");
    }
    // When the minute is over the server must be asked, and then it is not there.
    hands.advance(Duration::from_secs(61));
    assert_eq!(Ask::with(&web).refusal(stock(&served)).await, Code::Unavailable);
    api.mood(StatusCode::OK);
    assert_eq!(Ask::with(&web).of(stock(&served)).await.unwrap().as_str(), WEB);
    // The pod is gone: a minute later its token is nobody's.
    api.vouch(&web, json!({"authenticated": false, "error": "pod not found"}));
    hands.advance(Duration::from_secs(61));
    assert_eq!(Ask::with(&web).refusal(stock(&served)).await, Code::Unauthenticated);
    // A refusal is not remembered for long.
    let asked = api.reviews();
    assert_eq!(Ask::with(&late).refusal(stock(&served)).await, Code::Unauthenticated);
    assert_eq!(Ask::with(&late).refusal(stock(&served)).await, Code::Unauthenticated);
    assert_eq!(api.reviews(), asked + 1);
    api.vouch_for_pod(&late, "shop:late", "late-1", "u2");
    hands.advance(Duration::from_secs(2));
    assert!(Ask::with(&late).of(stock(&served)).await.is_ok());
    // What was counted is by plug.
    let metrics = served.ca.metrics().encode(alcazar_service::metrics::Format::wanted(None));
    assert!(metrics.contains("alcazar_ca_authentication_failures_total{plug=\"kubernetes\"} 3"), "{metrics}");
    served.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_node_account_asks_for_the_pods_on_its_node_alone() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    api.put_pod("z-a", "z1", "istio-system/ztunnel", "a", "Running");
    api.put_pod("web-1", "u1", "shop/web", "a", "Pending");
    api.put_pod("db-1", "u2", "shop/db", "b", "Running");
    let kubernetes = KubernetesCallers {
        trusted_node_accounts: vec!["istio-system/ztunnel".into()],
        ..KubernetesCallers::default()
    };
    let served = serve(folder.path(), &api, kubernetes, &hands).await;
    let (tunnel, web, old) = (token("ztunnel"), token("web"), token("old"));
    api.vouch_for_pod(&tunnel, "istio-system:ztunnel", "z-a", "z1");
    api.vouch_for_pod(&web, "shop:web", "web-1", "u1");
    // The token of a pod of the same name that was there before.
    api.vouch_for_pod(&old, "istio-system:ztunnel", "z-a", "z0");
    let ask = |token: &str, id| Ask::with(token).on_behalf_of(id).of(stock(&served));
    // The pods become known by themselves; until then nobody can say, and that is no refusal.
    eventually("the pods are known", async || match ask(&tunnel, WEB).await {
        Ok(id) => id.as_str() == WEB,
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable);
            false
        }
    })
    .await;
    let refused = async |token: &str, id| ask(token, id).await.unwrap_err().code();
    assert_eq!(refused(&tunnel, DB).await, Code::PermissionDenied);
    assert_eq!(refused(&web, DB).await, Code::PermissionDenied);
    assert_eq!(refused(&old, WEB).await, Code::PermissionDenied);
    assert_eq!(refused(&tunnel, "spiffe://cluster.local/node/local/a").await, Code::PermissionDenied);
    assert_eq!(refused(&tunnel, "spiffe://elsewhere/ns/shop/sa/web").await, Code::PermissionDenied);
    assert_eq!(refused(&tunnel, "not an identity").await, Code::InvalidArgument);
    // A pod comes to the node, and one is done.
    api.put_pod("db-2", "u3", "shop/db", "a", "Running");
    eventually("the new pod is known", async || ask(&tunnel, DB).await.is_ok()).await;
    api.put_pod("web-1", "u1", "shop/web", "a", "Succeeded");
    eventually("the finished pod has no rights", async || ask(&tunnel, WEB).await.is_err()).await;
    // For itself as well.
    let own = Ask::with(&tunnel).of(stock(&served)).await.unwrap();
    assert_eq!(own.as_str(), "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    served.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_agents_token_attests_the_node_of_its_pod() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    api.put_pod("agent-a", "a1", "alcazar-system/alcazar-node-agent", "worker-a", "Running");
    api.put_pod("web-1", "u1", "shop/web", "worker-a", "Running");
    let kubernetes = KubernetesCallers {
        node_agents: vec!["alcazar-system/alcazar-node-agent".into()],
        ..KubernetesCallers::default()
    };
    let served = serve(folder.path(), &api, kubernetes, &hands).await;
    let (agent, web) = (token("agent"), token("web"));
    api.vouch_for_pod(&agent, "alcazar-system:alcazar-node-agent", "agent-a", "a1");
    api.vouch_for_pod(&web, "shop:web", "web-1", "u1");
    let key = key();
    let attest = async |token: &str| {
        let evidence = Some(Evidence::BearerToken(token.into()));
        let request = v1::AttestNodeRequest { evidence, csr: csr(&key), ..Default::default() };
        CertificateAuthorityClient::new(stock(&served)).attest_node(request).await.map(tonic::Response::into_inner)
    };
    eventually("the pods are known", async || attest(&agent).await.is_ok()).await;
    let first = svid(&attest(&agent).await.unwrap(), &key);
    assert_eq!(first.id().as_str(), "spiffe://cluster.local/node/local/worker-a");
    assert_eq!(attest(&web).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(attest("a.b.c").await.unwrap_err().code(), Code::Unauthenticated);
    // The lineage goes on from there.
    let next = crate::support::key();
    let second = svid(&served.renew(&first, &next).await.unwrap(), &next);
    // A node has what is scheduled on it, without a registration.
    let scheduled = Ask::header(&[]).on_behalf_of(WEB).of(served.channel(&second)).await.unwrap();
    assert_eq!(scheduled.as_str(), WEB);
    let elsewhere = Ask::header(&[]).on_behalf_of(DB).refusal(served.channel(&second)).await;
    assert_eq!(elsewhere, Code::PermissionDenied);
    // Attesting again begins anew: the certificates from before renew no more.
    attest(&agent).await.unwrap();
    assert_eq!(served.renew(&second, &crate::support::key()).await.unwrap_err().code(), Code::Unauthenticated);
    served.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clusters_keys_alone_tell_good_tokens_from_bad_ones() {
    let (folder, api, hands) = (tempfile::tempdir().unwrap(), ApiServer::start().await, Hands::new());
    let kubernetes = KubernetesCallers {
        verify: VerifyTokens::Offline,
        issuer: Some("https://kubernetes.default.svc".into()),
        ..KubernetesCallers::default()
    };
    let served = serve(folder.path(), &api, kubernetes, &hands).await;
    let (tokens, strangers) = (Tokens::new("cluster-1"), Tokens::new("cluster-1"));
    let claims = pod_claims("shop", "web", "web-1", "u1", "a", START);
    let good = tokens.token(&claims);
    // No keys yet: that is not the caller's fault.
    assert_eq!(Ask::with(&good).refusal(stock(&served)).await, Code::Unavailable);
    api.publish(tokens.jwks().to_json());
    hands.advance(Duration::from_secs(10));
    assert_eq!(Ask::with(&good).of(stock(&served)).await.unwrap().as_str(), WEB);
    assert_eq!(api.reviews(), 0);

    let unsigned = |alg: &str| encode(json!({"alg": alg, "kid": "cluster-1"}).to_string().as_bytes());
    let body = encode(claims.to_string().as_bytes());
    let none = format!("{}.{body}.", unsigned("none"));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &tokens.public().to_spki_der());
    let signed = format!("{}.{body}", unsigned("HS256"));
    let shared = format!("{signed}.{}", encode(hmac::sign(&secret, signed.as_bytes()).as_ref()));
    let with_header = |header| tokens.token_with_header(&header, &claims);
    for (what, bad) in [
        ("no signature", none),
        ("the public key as a secret", shared),
        ("another algorithm's name", with_header(json!({"alg": "RS256", "kid": "cluster-1"}))),
        ("an unknown key", with_header(json!({"alg": "ES256", "kid": "cluster-9"}))),
        ("a critical extension", with_header(json!({"alg": "ES256", "kid": "cluster-1", "crit": ["x"]}))),
        ("a stranger's key of the same name", strangers.token(&claims)),
        ("another audience", tokens.token(&with(&claims, json!({"aud": ["vault"]})))),
        ("no audience", tokens.token(&with(&claims, json!({"aud": null})))),
        ("another issuer", tokens.token(&with(&claims, json!({"iss": "https://elsewhere"})))),
        ("expired", tokens.token(&with(&claims, json!({"exp": START - 100})))),
        ("without an end", tokens.token(&with(&claims, json!({"exp": null})))),
        ("not yet good", tokens.token(&with(&claims, json!({"nbf": START + 1000})))),
        ("no account", tokens.token(&with(&claims, json!({"sub": "admin"})))),
        ("another account than it says", tokens.token(&with(&claims, json!({"sub": "system:serviceaccount:shop:db"})))),
        ("an account that is a path", tokens.token(&with(&claims, json!({"sub": "system:serviceaccount:a/b:web"})))),
        ("altered", good.replace('.', ".e")),
    ] {
        assert_eq!(Ask::with(&bad).refusal(stock(&served)).await, Code::Unauthenticated, "{what}");
    }
    // The cluster has a new key: found when it is needed.
    let next = Tokens::new("cluster-2");
    api.publish(next.jwks().to_json());
    hands.advance(Duration::from_secs(10));
    assert_eq!(Ask::with(&next.token(&claims)).of(stock(&served)).await.unwrap().as_str(), WEB);
    assert_eq!(Ask::with(&good).refusal(stock(&served)).await, Code::Unauthenticated);
    served.stop().await;
    api.stop().await;
}
