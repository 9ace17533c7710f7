//! An issuer that publishes its configuration and keys over HTTPS.

use std::{
    convert::Infallible,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use alcazar_ca::{Config, OidcCallers, RuleConfig};
use alcazar_mtls::web::{ServerFiles, WebAcceptor};
use alcazar_service::Shutdown;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Code;

use crate::callers_support::{Ask, Tokens, stock};
use crate::support::{Hands, START, Served, soon};

/// What the issuer publishes: its configuration, and its keys.
type Published = Arc<Mutex<(Value, Value)>>;

/// An HTTPS server with a certificate of its own; its address.
async fn publish(folder: &Path, hands: &Hands, published: Published, shutdown: &Shutdown) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let certificate = params.self_signed(&key).unwrap().pem();
    fs::write(folder.join("web.pem"), certificate).unwrap();
    fs::write(folder.join("web-key.pem"), key.serialize_pem()).unwrap();
    let files = ServerFiles { certificate: folder.join("web.pem"), key: folder.join("web-key.pem") };
    let acceptor = WebAcceptor::from_files(files, hands.clock()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let end = shutdown.clone();
    shutdown.spawn("an issuer", async move {
        loop {
            let stream = tokio::select! {
                () = end.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            // A client that does not believe us leaves.
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let published = published.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (configuration, keys) = published.lock().unwrap().clone();
                let (status, document) = match request.uri().path() {
                    "/.well-known/openid-configuration" => (StatusCode::OK, configuration),
                    "/keys" => (StatusCode::OK, keys),
                    _ => (StatusCode::NOT_FOUND, Value::Null),
                };
                let body = Full::new(Bytes::from(document.to_string()));
                async move { Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap()) }
            });
            drop(http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_is_asked_for_its_keys_over_https_and_for_nobody_elses() {
    let (folder, hands, shutdown) = (tempfile::tempdir().unwrap(), Hands::new(), Shutdown::new());
    let (old, new) = (Tokens::new("old"), Tokens::new("new"));
    let published = Published::default();
    let issuer = publish(folder.path(), &hands, published.clone(), &shutdown).await;
    let keys = |tokens: &Tokens| tokens.jwks().to_json();
    let configuration = |of: &str| json!({"issuer": of, "jwks_uri": format!("{issuer}/keys")});
    *published.lock().unwrap() = (configuration("https://somebody.else"), keys(&old));

    let callers = |roots: &str| OidcCallers {
        issuer: issuer.clone(),
        audiences: vec!["alcazar".into()],
        jwks: None,
        roots: Some(folder.path().join(roots)),
        rules: vec![RuleConfig {
            r#match: [("sub".to_owned(), "*".to_owned())].into(),
            identity: "ns/ci/sa/{sub}".into(),
            namespaces: vec![],
        }],
    };
    let mut config = Config::new(folder.path().join("ca"));
    config.callers.oidc = vec![callers("web.pem")];
    let served = Served::start_with(config, &hands).await;
    let token = |tokens: &Tokens| {
        tokens.token(&json!({"iss": issuer, "aud": "alcazar", "sub": "build", "exp": START + 90_000}))
    };
    let ask = async |tokens: &Tokens| match Ask::with(&token(tokens)).of(stock(&served)).await {
        Ok(id) => id.to_string(),
        Err(status) => format!("{:?}", status.code()),
    };
    // A configuration that is another issuer's is none: no keys, and no refusal of the caller.
    assert_eq!(ask(&old).await, format!("{:?}", Code::Unavailable));
    *published.lock().unwrap() = (configuration(&issuer), keys(&old));
    hands.advance(Duration::from_secs(10));
    assert_eq!(ask(&old).await, "spiffe://cluster.local/ns/ci/sa/build");
    assert_eq!(ask(&new).await, format!("{:?}", Code::Unauthenticated));
    // The issuer changes its keys.
    *published.lock().unwrap() = (configuration(&issuer), keys(&new));
    hands.advance(Duration::from_secs(10));
    assert_eq!(ask(&new).await, "spiffe://cluster.local/ns/ci/sa/build");
    assert_eq!(ask(&old).await, format!("{:?}", Code::Unauthenticated));
    // What is published makes no sense any more: the keys from before go on.
    *published.lock().unwrap() = (configuration(&issuer), json!({"error": "maintenance"}));
    hands.advance(Duration::from_secs(600));
    assert_eq!(ask(&new).await, "spiffe://cluster.local/ns/ci/sa/build");
    served.stop().await;

    // A server that nobody vouches for: another root in its place.
    let stranger =
        CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
    fs::write(folder.path().join("other.pem"), stranger.pem()).unwrap();
    *published.lock().unwrap() = (configuration(&issuer), keys(&new));
    let mut config = Config::new(folder.path().join("ca"));
    config.callers.oidc = vec![callers("other.pem")];
    let served = Served::start_with(config, &hands).await;
    assert_eq!(Ask::with(&token(&new)).refusal(stock(&served)).await, Code::Unavailable);
    // Until its root is put into the file that the CA reads.
    fs::copy(folder.path().join("web.pem"), folder.path().join("other.pem")).unwrap();
    soon("the file is read again", async || {
        hands.advance(Duration::from_secs(10));
        Ask::with(&token(&new)).of(stock(&served)).await
    })
    .await;
    served.stop().await;
    shutdown.trigger("the test is over");
    shutdown.finished(Duration::from_secs(20)).await.unwrap();
}
