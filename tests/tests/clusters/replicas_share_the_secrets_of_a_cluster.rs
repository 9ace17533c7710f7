//! Replicas of one CA whose state is in Secrets, behind a real API server.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient,
};
use alcazar_ca::{Ca, Config, KubernetesConfig, StoreConfig};
use alcazar_identity::SpiffeId;
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::{Readiness, Shutdown, clock};
use alcazar_testkit::{DEADLINE, Kubernetes, eventually};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};

struct Running {
    ca: Ca,
    address: SocketAddr,
    shutdown: Shutdown,
}

impl Running {
    async fn start(kubernetes: &Kubernetes, home: &Path, name: &str) -> Self {
        let store: StoreConfig =
            serde_json::from_value(json!({"kubernetes": {"namespace": "alcazar-system", "deadline": "20s"}})).unwrap();
        let mut config = Config { store, ..Config::new(home.join(name)) };
        config.kubernetes =
            KubernetesConfig { kubeconfig: Some(kubernetes.kubeconfig()), ..KubernetesConfig::default() };
        config.replicas.secret_file = Some(home.join("secret"));
        let ca = Ca::open(config, clock::system()).await.unwrap();
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let run = ca.run(listener, shutdown.clone(), readiness.clone());
        shutdown.spawn("replica", async move { run.await.unwrap() });
        timeout(DEADLINE, readiness.wait()).await.unwrap();
        Self { ca, address, shutdown }
    }

    async fn attest(&self, token: &str) -> Result<v1::IssuedSvid, tonic::Status> {
        let pin = self.ca.fingerprints().root.fingerprint;
        let connector = Connector::pinned(self.ca.trust_domain().clone(), pin, grpc::ALPN, clock::system());
        let channel = grpc::channel(self.address, connector, Expected::id(self.ca.id()));
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let evidence = Some(Evidence::JoinToken(token.to_owned()));
        let request = v1::AttestNodeRequest { evidence, csr: csr.der().to_vec(), ..Default::default() };
        Ok(CertificateAuthorityClient::new(channel).attest_node(request).await?.into_inner())
    }

    async fn stop(self) {
        self.shutdown.trigger("the test");
        self.shutdown.finished(DEADLINE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_secrets_of_a_cluster() {
    alcazar_mtls::install_default_provider();
    let Some(kubernetes) = Kubernetes::start().await.unwrap() else { return };
    kubernetes.namespace("alcazar-system", &[]).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let secret = home.path().join("secret");
    fs::write(&secret, "a secret of at least thirty-two bytes\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();

    let one = Running::start(&kubernetes, home.path(), "one").await;
    let two = Running::start(&kubernetes, home.path(), "two").await;
    let (first, second) = (one.ca.fingerprints(), two.ca.fingerprints());
    assert_eq!(first.root, second.root);
    assert_ne!(first.intermediate, second.intermediate);
    // A replica that serves tells the others a moment later.
    let heard = async || one.ca.replicas().await.unwrap().len() == 2;
    eventually("the replicas hear of each other", DEADLINE, heard).await.unwrap();

    for round in 0..3 {
        let node = SpiffeId::node(one.ca.trust_domain(), "local", &format!("n{round}")).unwrap();
        let (token, _) = one.ca.create_join_token(&node, None).await.unwrap();
        let token = token.reveal().to_string();
        let outcomes = tokio::join!(one.attest(&token), two.attest(&token));
        let admitted = [outcomes.0.is_ok(), outcomes.1.is_ok()];
        assert_eq!(admitted.iter().filter(|admitted| **admitted).count(), 1, "{outcomes:?}");
    }
    one.stop().await;
    two.stop().await;
}
