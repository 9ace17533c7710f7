use std::fs;
use std::path::Path;
use std::sync::Mutex;

use alcazar_mtls::web::{ServerFiles, WebAcceptor};
use alcazar_service::{Readiness, clock};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::kubernetes::KubernetesConfig;

const A: &str = "0f6d2c1e-4b3a-4c5d-8e9f-001122334455";
const B: &str = "1f6d2c1e-4b3a-4c5d-8e9f-001122334455";

/// An HTTPS server with a certificate that it made itself, for its node's name alone, as a kubelet does. It answers with what it is
/// told, and keeps the requests.
struct Server {
    answer: Arc<Mutex<(u16, String)>>,
    requests: Arc<Mutex<Vec<String>>>,
    config: KubernetesConfig,
    _home: tempfile::TempDir,
}

impl Server {
    async fn start(shutdown: &Shutdown) -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["n1".to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(at("cert.pem"), certificate.pem()).unwrap();
        fs::write(at("key.pem"), key.serialize_pem()).unwrap();
        fs::write(at("token"), "first\n").unwrap();
        let files = ServerFiles { certificate: at("cert.pem"), key: at("key.pem") };
        let acceptor = WebAcceptor::from_files(files, clock::system()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = KubernetesConfig {
            kubelet: Some(format!("https://{}", listener.local_addr().unwrap())),
            api: None,
            root_file: at("cert.pem"),
            server_name: None,
            token_file: at("token"),
            cgroup_root: CgroupRoot::default(),
        };
        let answer = Arc::new(Mutex::new((200, list(&[]))));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (told, kept, until) = (answer.clone(), requests.clone(), shutdown.clone());
        let serve = async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(tls.read_u8().await.unwrap());
                }
                kept.lock().unwrap().push(String::from_utf8(request).unwrap());
                let (status, body) = told.lock().unwrap().clone();
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _gone = tls.write_all(format!("{head}{body}").as_bytes()).await;
                let _gone = tls.shutdown().await;
            }
        };
        shutdown.spawn("server", async move {
            tokio::select! {
                () = until.cancelled() => {}
                () = serve => {}
            }
        });
        Self { answer, requests, config, _home: home }
    }

    fn answers(&self, status: u16, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn asked(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    fn pods(&self, shutdown: &Shutdown) -> Pods {
        let source = self.config.source("n1").unwrap();
        let (pods, keeper) = Pods::new(CgroupRoot::default(), source, clock::system());
        let status = watch::Sender::new(NodeStatus::new("spiffe://td/node/east/n1".parse().unwrap()));
        shutdown.spawn("pods", keeper.keep(Readiness::new().part("pods"), status, shutdown.clone()));
        pods
    }
}

fn list(uids: &[&str]) -> String {
    let item = |uid: &&str| {
        format!(
            r#"{{"metadata":{{"uid":"{uid}","namespace":"shop","name":"p"}},"spec":{{"nodeName":"n1","serviceAccountName":"web"}}}}"#
        )
    };
    let items: Vec<_> = uids.iter().map(item).collect();
    format!(r#"{{"kind":"PodList","items":[{}]}}"#, items.join(","))
}

fn why(fact: Fact<Pod>) -> String {
    match fact {
        Fact::Unknown(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn whoever_asks_at_a_time_is_answered_by_one_list_and_a_pod_that_is_late_is_waited_for() {
    let shutdown = Shutdown::new();
    let server = Server::start(&shutdown).await;
    let pods = server.pods(&shutdown);
    let a: PodUid = A.parse().unwrap();
    let start = Instant::now();
    let waiting: Vec<_> = (0..100).map(|_| (pods.clone(), a.clone())).collect();
    let waiting = waiting.iter().map(|(pods, a)| pods.whose(a));
    let appear = async {
        // It is on the list once somebody has looked for it in vain.
        while server.asked() < 2 {
            tokio::task::yield_now().await;
        }
        server.answers(200, list(&[A]));
    };
    let (facts, ()) = tokio::join!(futures::future::join_all(waiting), appear);
    assert!(facts.iter().all(|fact| fact.known().is_some()), "{facts:?}");
    let most = 2 + usize::try_from(start.elapsed().as_millis() / 500).unwrap();
    assert!(server.asked() <= most, "{} lists in {:?}", server.asked(), start.elapsed());
    let requests = server.requests.lock().unwrap().clone();
    assert!(requests[0].starts_with("GET /pods HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[0].contains("authorization: Bearer first\r\n"), "{}", requests[0]);
    shutdown.trigger("the end");
}

#[tokio::test]
async fn a_pod_that_is_gone_is_forgotten_and_one_that_is_known_stays_while_nobody_lists_it() {
    let shutdown = Shutdown::new();
    let server = Server::start(&shutdown).await;
    server.answers(200, list(&[A, B]));
    let pods = server.pods(&shutdown);
    let (a, b): (PodUid, PodUid) = (A.parse().unwrap(), B.parse().unwrap());
    assert!(pods.whose(&a).await.known().is_some());
    server.answers(200, list(&[B]));
    // For a moment the last list counts.
    while pods.whose(&a).await.known().is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(why(pods.whose(&a).await).contains("not on the list"));
    assert!(pods.whose(&b).await.known().is_some());

    // The token is read at every use.
    fs::write(&server.config.token_file, "second").unwrap();
    server.answers(403, String::new());
    let said = why(pods.whose(&a).await);
    assert!(said.contains("nodes/proxy"), "{said}");
    assert!(server.requests.lock().unwrap().last().unwrap().contains("Bearer second\r\n"));
    assert!(pods.whose(&b).await.known().is_some());
    server.answers(401, String::new());
    let said = why(pods.whose(&a).await);
    assert!(said.contains("is not accepted"), "{said}");
    assert!(pods.whose(&b).await.known().is_some());
    shutdown.trigger("the end");
}

#[tokio::test]
async fn nobody_is_shown_the_token_who_is_not_the_kubelet_of_this_node() {
    let shutdown = Shutdown::new();
    let mut server = Server::start(&shutdown).await;
    let a: PodUid = A.parse().unwrap();
    let root = server.config.root_file.clone();
    let refused = |said: String| assert!(said.contains("is not proved by kubernetes.rootFile"), "{said}");
    server.config.server_name = Some("n2".into());
    refused(why(server.pods(&shutdown).whose(&a).await));
    server.config.server_name = None;
    let another = Server::start(&shutdown).await;
    fs::copy(&another.config.root_file, root.with_file_name("other.pem")).unwrap();
    server.config.root_file = root.with_file_name("other.pem");
    refused(why(server.pods(&shutdown).whose(&a).await));
    assert_eq!(server.asked(), 0);
    server.config.root_file = Path::new("/nonexistent").to_owned();
    assert!(why(server.pods(&shutdown).whose(&a).await).contains("cannot read /nonexistent"));
    shutdown.trigger("the end");
}

#[test]
fn the_section_names_one_server_and_its_url() {
    let read = |server: &str| {
        let json = format!(r#"{{{server} "rootFile": "/r", "tokenFile": "/t"}}"#);
        serde_json::from_str::<KubernetesConfig>(&json).unwrap().source("n-1").map(|source| source.url.to_string())
    };
    assert_eq!(read(r#""kubelet": "https://127.0.0.1:10250/","#).unwrap(), "https://127.0.0.1:10250/pods");
    assert_eq!(
        read(r#""api": "https://kubernetes.default.svc","#).unwrap(),
        "https://kubernetes.default.svc/api/v1/pods?fieldSelector=spec.nodeName%3Dn-1&resourceVersion=0"
    );
    assert_eq!(
        read(r#""api": "https://rancher/k8s/c-1","#).unwrap().split("/api").next(),
        Some("https://rancher/k8s/c-1")
    );
    for bad in [
        "",
        r#""kubelet": "https://a", "api": "https://b","#,
        r#""kubelet": "http://127.0.0.1:10255","#,
        r#""api": "https://a?x=1","#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    for bad in [
        r#"{"kubelet": "https://a"}"#,
        r#"{"rootFile": "/r", "tokenFile": "/t", "cgroupRoot": "x"}"#,
        r#"{"rootFile": "/r", "tokenFile": "/t", "skipVerify": true}"#,
    ] {
        assert!(serde_json::from_str::<KubernetesConfig>(bad).is_err(), "{bad}");
    }
}
