//! Tokens that a real kube-apiserver made and judges, and a join token at two replicas on a real etcd.
#![allow(
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and real components have the real time"
)]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use alcazar_api::{
    ca::v1::{self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient},
    istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};
use alcazar_ca::{Ca, Config, EtcdSection, KubernetesCallers, KubernetesConfig, StoreConfig, VerifyTokens};
use alcazar_identity::{CertificateDer, SvidLeaf};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::{Readiness, Shutdown, clock::Clock};
use alcazar_testkit::{Etcd, Kubernetes};
use k8s_openapi::api::{
    core::v1::Pod,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::{Code, Request, Status, transport::Channel};

/// The real time, and what the test adds to it.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn clock(&self) -> Clock {
        let hands = self.0.clone();
        Arc::new(move || SystemTime::now() + Duration::from_secs(hands.load(Ordering::SeqCst)))
    }

    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

/// A CA that serves on the loopback.
struct Served {
    ca: Ca,
    address: SocketAddr,
    clock: Clock,
    shutdown: Shutdown,
    outer: Shutdown,
}

impl Served {
    async fn start(config: Config, hands: &Hands) -> Self {
        alcazar_mtls::install_default_provider();
        let ca = Ca::open(config, hands.clock()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (outer, readiness) = (Shutdown::new(), Readiness::new());
        let shutdown = outer.child();
        let running = ca.run(listener, shutdown.clone(), readiness.clone());
        outer.spawn("the CA of a test", async move { running.await.unwrap() });
        readiness.wait().await;
        Self { ca, address, clock: hands.clock(), shutdown, outer }
    }

    /// A client that knows the root and has no certificate.
    fn channel(&self) -> Channel {
        let root = self.ca.fingerprints().root.fingerprint;
        let connector = Connector::pinned(self.ca.trust_domain().clone(), root, grpc::ALPN, self.clock.clone());
        grpc::channel(self.address, connector, Expected::id(self.ca.id()))
    }

    /// Whom the certificate names that a client of Istio's CSR API gets for its token.
    async fn ask(&self, token: &str, impersonated: Option<&str>) -> Result<String, Status> {
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let metadata = impersonated.map(|id| {
            let id = Value { kind: Some(Kind::StringValue(id.into())) };
            Struct { fields: [("ImpersonatedIdentity".to_owned(), id)].into() }
        });
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 600, metadata });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request.metadata_mut().insert("clusterid", "Kubernetes".parse().unwrap());
        let reply = IstioCertificateServiceClient::new(self.channel()).create_certificate(request).await?.into_inner();
        let pem = rcgen_pem(&reply.cert_chain[0]);
        Ok(SvidLeaf::parse(&pem).unwrap().id().to_string())
    }

    async fn attest(&self, evidence: Evidence) -> Result<v1::IssuedSvid, Status> {
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let request = v1::AttestNodeRequest { evidence: Some(evidence), csr, ..Default::default() };
        CertificateAuthorityClient::new(self.channel()).attest_node(request).await.map(tonic::Response::into_inner)
    }

    async fn stop(self) {
        self.shutdown.trigger("the test is over");
        self.shutdown.finished(Duration::from_secs(20)).await.unwrap();
        self.outer.trigger("the test is over");
        self.outer.finished(Duration::from_secs(20)).await.unwrap();
    }
}

fn rcgen_pem(pem: &str) -> CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

async fn eventually(what: &str, so: impl AsyncFnMut() -> bool) {
    alcazar_testkit::eventually(what, Duration::from_secs(60), so).await.unwrap();
}

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

/// Binds the CA's service account to a cluster role.
async fn bind(cluster: &Kubernetes, role: &str) {
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": role.replace(':', "-")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "namespace": "alcazar-system", "name": "alcazar-ca"}],
    }))
    .unwrap();
    Api::all(cluster.client().await.unwrap()).create(&PostParams::default(), &binding).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_real_cluster_are_judged_by_it_and_by_its_keys() {
    let Some(mut cluster) = Kubernetes::start().await.unwrap() else { return };
    for namespace in ["shop", "istio-system", "alcazar-system"] {
        cluster.namespace(namespace, &[]).await.unwrap();
    }
    for (namespace, account) in [
        ("shop", "web"),
        ("shop", "db"),
        ("istio-system", "ztunnel"),
        ("alcazar-system", "agent"),
        ("alcazar-system", "alcazar-ca"),
    ] {
        cluster.service_account(namespace, account).await.unwrap();
    }
    let uid = async |namespace: &str, name: &str, account: &str, node: &str| {
        cluster.pod(namespace, name, account, node).await.unwrap().metadata.uid.unwrap()
    };
    let (web, tunnel) = (uid("shop", "web-1", "web", "a").await, uid("istio-system", "z-a", "ztunnel", "a").await);
    let agent = uid("alcazar-system", "agent-a", "agent", "a").await;
    uid("shop", "db-1", "db", "b").await;
    let token = async |namespace: &str, account: &str, audience: &str, pod: Option<(&str, &str)>| {
        cluster.token(namespace, account, &[audience], pod).await.unwrap()
    };
    let web_token = token("shop", "web", "istio-ca", Some(("web-1", &web))).await;
    let vault_token = token("shop", "web", "vault", Some(("web-1", &web))).await;
    let tunnel_token = token("istio-system", "ztunnel", "istio-ca", Some(("z-a", &tunnel))).await;
    let agent_token = token("alcazar-system", "agent", "istio-ca", Some(("agent-a", &agent))).await;

    // The CA has the rights of its own account, and no others.
    let own = token("alcazar-system", "alcazar-ca", ISSUER, None).await;
    let kubeconfig = Some(cluster.kubeconfig_for("ca", &own).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let config = |name: &str, verify| {
        let mut config = Config::new(folder.path().join(name));
        config.kubernetes = KubernetesConfig { kubeconfig: kubeconfig.clone(), ..KubernetesConfig::default() };
        config.callers.kubernetes = Some(KubernetesCallers {
            verify,
            issuer: Some(ISSUER.into()),
            trusted_node_accounts: vec!["istio-system/ztunnel".into()],
            node_agents: vec!["alcazar-system/agent".into()],
            ..KubernetesCallers::default()
        });
        config
    };
    let hands = Hands::default();
    let served = Served::start(config("review", VerifyTokens::TokenReview), &hands).await;
    assert_eq!(served.ask(&web_token, None).await.unwrap_err().code(), Code::Unavailable, "without any right");
    bind(&cluster, "system:auth-delegator").await;
    eventually("the CA may review tokens", async || served.ask(&web_token, None).await.is_ok()).await;
    assert_eq!(served.ask(&web_token, None).await.unwrap(), WEB);
    assert_eq!(served.ask(&vault_token, None).await.unwrap_err().code(), Code::Unauthenticated);
    // Nobody may act for others while the pods are not known.
    assert_eq!(served.ask(&tunnel_token, Some(WEB)).await.unwrap_err().code(), Code::Unavailable);
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": "alcazar-ca-pods"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
    }))
    .unwrap();
    Api::all(cluster.client().await.unwrap()).create(&PostParams::default(), &role).await.unwrap();
    bind(&cluster, "alcazar-ca-pods").await;
    eventually("the pods are known", async || served.ask(&tunnel_token, Some(WEB)).await.is_ok()).await;
    assert_eq!(served.ask(&tunnel_token, Some(DB)).await.unwrap_err().code(), Code::PermissionDenied);
    let node = served.attest(Evidence::BearerToken(agent_token.clone())).await.unwrap();
    assert_eq!(node.spiffe_id, "spiffe://cluster.local/node/local/a");

    // By the keys alone, the same. They are the API server's, and may be read by whoever is bound to it.
    bind(&cluster, "system:service-account-issuer-discovery").await;
    let offline = Served::start(config("offline", VerifyTokens::Offline), &hands).await;
    eventually("the keys are known", async || {
        let outcome = offline.ask(&web_token, None).await;
        hands.advance(11);
        outcome.is_ok()
    })
    .await;
    assert_eq!(offline.ask(&web_token, None).await.unwrap(), WEB);
    assert_eq!(offline.ask(&vault_token, None).await.unwrap_err().code(), Code::Unauthenticated);
    eventually("the pods are known", async || offline.ask(&tunnel_token, Some(WEB)).await.is_ok()).await;
    let node = offline.attest(Evidence::BearerToken(agent_token.clone())).await.unwrap();
    assert_eq!(node.spiffe_id, "spiffe://cluster.local/node/local/a");

    // The pod goes: its token is nobody's to the API server, and its neighbours have nobody to be.
    let pods: Api<Pod> = Api::namespaced(cluster.client().await.unwrap(), "shop");
    pods.delete("web-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("the watch has seen it go", async || {
        served.ask(&tunnel_token, Some(WEB)).await.is_err_and(|status| status.code() == Code::PermissionDenied)
    })
    .await;
    eventually("a minute later the token is bad", async || {
        hands.advance(61);
        served.ask(&web_token, None).await.is_err_and(|status| status.code() == Code::Unauthenticated)
    })
    .await;

    // The API server goes, and comes back: nobody is refused for it.
    cluster.kill().unwrap();
    hands.advance(61);
    let told = served.ask(&tunnel_token, None).await.unwrap_err();
    assert!(told.code() == Code::Unavailable && told.message().contains("the Kubernetes API is away"), "{told}");
    assert!(told.metadata().contains_key("retry-after-ms"), "{told:?}");
    cluster.start_again().await.unwrap();
    eventually("it is asked again", async || served.ask(&tunnel_token, None).await.is_ok()).await;
    offline.stop().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_that_see_one_join_token_at_once_one_admits_its_bearer() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::default());
    let config = |name: &str| {
        let mut config = Config::new(folder.path().join(name));
        let endpoints = vec![etcd.endpoint()];
        let deadline = Duration::from_secs(5);
        config.store = StoreConfig::Etcd(EtcdSection { endpoints, prefix: None, tls: None, user: None, deadline });
        config
    };
    // The first makes the hierarchy; the second has a copy.
    let one = Served::start(config("one"), &hands).await;
    copy(&folder.path().join("one/hierarchy"), &folder.path().join("two/hierarchy"));
    let two = Served::start(config("two"), &hands).await;
    for round in 0..40 {
        let node = format!("spiffe://cluster.local/node/local/n{round}").parse().unwrap();
        let (token, _) = one.ca.create_join_token(&node, None).await.unwrap();
        let evidence = || Evidence::JoinToken(token.reveal().to_string());
        let (here, there) = tokio::join!(one.attest(evidence()), two.attest(evidence()));
        let (admitted, refused) = match (here, there) {
            (Ok(admitted), Err(refused)) | (Err(refused), Ok(admitted)) => (admitted, refused),
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!(admitted.spiffe_id, node.to_string());
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    two.stop().await;
    one.stop().await;
}

fn copy(from: &Path, to: &Path) {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copied = to.join(entry.file_name());
        fs::copy(entry.path(), &copied).unwrap();
        fs::set_permissions(&copied, fs::Permissions::from_mode(entry.metadata().unwrap().permissions().mode()))
            .unwrap();
    }
}
