//! The part of a Kubernetes API server that the CA asks, over HTTP on the loopback: TokenReview, pods and their watch, keys.

use std::{
    collections::HashMap,
    convert::Infallible,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use alcazar_ca::KubernetesConfig;
use alcazar_service::Shutdown;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch},
};
use tokio_stream::wrappers::BroadcastStream;

type Body = BoxBody<Bytes, Infallible>;

/// An API server that says what the test says.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<State>,
    address: std::net::SocketAddr,
    shutdown: Shutdown,
}

struct State {
    tokens: Mutex<HashMap<String, Value>>,
    pods: Mutex<Vec<Value>>,
    changes: broadcast::Sender<String>,
    keys: Mutex<Option<Value>>,
    mood: Mutex<StatusCode>,
    /// How often it was asked about a token, before it answers.
    reviews: watch::Sender<usize>,
    hangs: watch::Sender<bool>,
    versions: AtomicUsize,
}

impl ApiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            tokens: Mutex::default(),
            pods: Mutex::default(),
            changes: broadcast::channel(64).0,
            keys: Mutex::default(),
            mood: Mutex::new(StatusCode::OK),
            reviews: watch::Sender::new(0),
            hangs: watch::Sender::new(false),
            versions: AtomicUsize::new(1),
        });
        let shutdown = Shutdown::new();
        let (serving, end) = (state.clone(), shutdown.clone());
        shutdown.clone().spawn("an API server in small", async move {
            loop {
                let stream = tokio::select! {
                    () = end.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (state, connection_end) = (serving.clone(), end.clone());
                end.spawn("a connection", async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    tokio::select! {
                        () = connection_end.cancelled() => {}
                        _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service) => {}
                    }
                });
            }
        });
        Self { state, address, shutdown }
    }

    pub fn config(&self, folder: &Path) -> KubernetesConfig {
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n",
            self.address
        );
        std::fs::write(&path, text).unwrap();
        KubernetesConfig { kubeconfig: Some(path), ..KubernetesConfig::default() }
    }

    /// Vouches for a token from now on, with this status.
    pub fn vouch(&self, token: &str, status: Value) {
        self.state.tokens.lock().unwrap().insert(token.into(), status);
    }

    /// The same, as the server would for a pod's token.
    pub fn vouch_for_pod(&self, token: &str, account: &str, pod: &str, uid: &str) {
        let user = json!({"username": format!("system:serviceaccount:{account}"), "extra": {
            "authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid],
        }});
        self.vouch(token, json!({"authenticated": true, "audiences": ["istio-ca"], "user": user}));
    }

    pub fn publish(&self, keys: Value) {
        *self.state.keys.lock().unwrap() = Some(keys);
    }

    /// Answers everything with this status from now on, or as it should.
    pub fn mood(&self, status: StatusCode) {
        *self.state.mood.lock().unwrap() = status;
    }

    pub fn reviews(&self) -> usize {
        *self.state.reviews.borrow()
    }

    /// How often it was asked about tokens, as it changes.
    pub fn asked(&self) -> watch::Receiver<usize> {
        self.state.reviews.subscribe()
    }

    /// Answers nothing about tokens until told otherwise.
    pub fn hang(&self, hangs: bool) {
        self.state.hangs.send_replace(hangs);
    }

    /// A pod comes, or changes.
    pub fn put_pod(&self, name: &str, uid: &str, account: &str, node: &str, phase: &str) {
        let (namespace, account) = account.split_once('/').unwrap();
        let version = self.state.versions.fetch_add(1, Ordering::SeqCst) + 1;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": version.to_string()},
            "spec": {"containers": [], "serviceAccountName": account, "nodeName": node}, "status": {"phase": phase},
        });
        let mut pods = self.state.pods.lock().unwrap();
        pods.retain(|known| known["metadata"]["name"] != name);
        pods.push(pod.clone());
        // Nobody may be watching yet.
        drop(self.state.changes.send(json!({"type": "MODIFIED", "object": pod}).to_string()));
    }

    pub async fn stop(&self) {
        self.shutdown.trigger("the test is over");
        self.shutdown.finished(Duration::from_secs(20)).await.unwrap();
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let mood = *state.mood.lock().unwrap();
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    if !mood.is_success() {
        return Ok(full(mood, failure(mood)));
    }
    let answer = match (parts.method, parts.uri.path()) {
        (Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews") => {
            state.reviews.send_modify(|reviews| *reviews += 1);
            state.hangs.subscribe().wait_for(|hangs| !hangs).await.unwrap();
            let mut review: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
            let known = state.tokens.lock().unwrap().get(review["spec"]["token"].as_str().unwrap()).cloned();
            review["status"] = known.unwrap_or_else(|| json!({"authenticated": false, "error": "unknown token"}));
            full(StatusCode::CREATED, review)
        }
        (Method::GET, "/api/v1/pods") if query.contains("watch=true") => {
            let changes = BroadcastStream::new(state.changes.subscribe());
            let lines =
                changes.filter_map(async |line| line.ok().map(|line| Ok(Frame::data(Bytes::from(line + "\n")))));
            Response::new(BoxBody::new(StreamBody::new(Box::pin(lines))))
        }
        (Method::GET, "/api/v1/pods") => {
            let (pods, version) = (state.pods.lock().unwrap().clone(), state.versions.load(Ordering::SeqCst));
            let metadata = json!({"resourceVersion": version.to_string()});
            full(StatusCode::OK, json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": pods}))
        }
        (Method::GET, "/openid/v1/jwks") => {
            let keys = state.keys.lock().unwrap().clone();
            keys.map_or_else(
                || full(StatusCode::NOT_FOUND, failure(StatusCode::NOT_FOUND)),
                |keys| full(StatusCode::OK, keys),
            )
        }
        _ => full(StatusCode::NOT_FOUND, failure(StatusCode::NOT_FOUND)),
    };
    Ok(answer)
}

fn full(status: StatusCode, document: Value) -> Response<Body> {
    let body = Full::new(Bytes::from(document.to_string()));
    Response::builder().status(status).header("content-type", "application/json").body(BoxBody::new(body)).unwrap()
}

fn failure(status: StatusCode) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": status.as_u16(), "message": "no", "reason": "no"})
}
