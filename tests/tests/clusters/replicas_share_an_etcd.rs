//! Replicas of one CA over a real etcd.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient,
    rotation_client::RotationClient,
};
use alcazar_ca::{Ca, Config, JoinError, OpenError, Phase, StoreConfig};
use alcazar_identity::{Fingerprint, SpiffeId};
use alcazar_mtls::{Connector, grpc};
use alcazar_service::{Readiness, Shutdown, clock};
use alcazar_store::{EtcdStore, Expected, Store, etcd::EtcdConfig};
use alcazar_testkit::{DEADLINE, Etcd};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};
use tonic::transport::{Channel, Endpoint};

fn config(etcd: &Etcd, dir: &Path) -> Config {
    let store: StoreConfig = serde_json::from_value(json!({"etcd": {"endpoints": [etcd.endpoint()]}})).unwrap();
    Config { store, ..Config::new(dir) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_opens_on_etcd_and_finds_itself_again() {
    alcazar_mtls::install_default_provider();
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let ca = Ca::open(config(&etcd, home.path()), clock::system()).await.unwrap();
    let (id, prints) = (ca.replica().clone(), ca.fingerprints());
    // Nobody else has the folder while it is open, whatever the store.
    let twin = Ca::open(config(&etcd, home.path()), clock::system()).await;
    assert!(matches!(twin, Err(OpenError::Folder(_))), "{:?}", twin.err());
    let node = "spiffe://cluster.local/node/local/n1".parse().unwrap();
    ca.create_join_token(&node, None).await.unwrap();
    let known = ca.replicas().await.unwrap();
    assert_eq!((known.len(), known[0].here, &known[0].id), (1, true, &id));
    ca.close().await;
    let stored = etcd.ctl(&["get", "--prefix", "alcazar/cluster.local/local/ca/replicas/", "--keys-only"]).unwrap();
    assert!(stored.contains(id.as_str()), "{stored}");
    let stored = etcd.ctl(&["get", "--prefix", "alcazar/cluster.local/local/ca/trust/", "--keys-only"]).unwrap();
    assert!(stored.contains(&format!("ca/trust/active-{id}")), "{stored}");

    let ca = Ca::open(config(&etcd, home.path()), clock::system()).await.unwrap();
    assert_eq!((ca.replica(), ca.fingerprints()), (&id, prints));
    let known = ca.replicas().await.unwrap();
    assert_eq!(known[0].presence.phase, Phase::Serving);
    ca.close().await;
}

/// A replica that runs in this process.
struct Running {
    ca: Ca,
    address: SocketAddr,
    shutdown: Shutdown,
}

impl Running {
    async fn start(config: Config) -> Self {
        let ca = Ca::open(config, clock::system()).await.unwrap();
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let run = ca.run(listener, shutdown.clone(), readiness.clone());
        shutdown.spawn("replica", async move { run.await.unwrap() });
        timeout(DEADLINE, readiness.wait()).await.unwrap();
        Self { ca, address, shutdown }
    }

    async fn stop(self) {
        self.shutdown.trigger("the test");
        self.shutdown.finished(DEADLINE).await.unwrap();
    }

    async fn operator(&self) -> RotationClient<Channel> {
        let socket = format!("unix:{}", self.ca.admin_socket().display());
        RotationClient::new(Endpoint::from_shared(socket).unwrap().connect().await.unwrap())
    }

    async fn rotation(&self) -> v1::RotationStatus {
        self.operator().await.get_rotation(v1::GetRotationRequest {}).await.unwrap().into_inner()
    }

    /// Begins a rotation to a root that it makes, and waits until everybody is to hear of that.
    async fn begins_a_root(&self) {
        let request = v1::StartRotationRequest { kind: v1::RotationKind::Root.into(), ..Default::default() };
        self.operator().await.start_rotation(request).await.unwrap();
        let begun = async {
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(100));
            while self.rotation().await.phase != "distribute" {
                looks.tick().await;
            }
        };
        timeout(DEADLINE, begun).await.unwrap();
    }

    /// A node joins, and is not heard of any more.
    async fn attest(&self, node: &str) {
        let node = SpiffeId::node(self.ca.trust_domain(), "local", node).unwrap();
        let (token, _) = self.ca.create_join_token(&node, None).await.unwrap();
        let pin = self.ca.fingerprints().root.fingerprint;
        let connector = Connector::pinned(self.ca.trust_domain().clone(), pin, grpc::ALPN, clock::system());
        let channel = grpc::channel(self.address, connector, alcazar_mtls::Expected::id(self.ca.id()));
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let evidence = Some(Evidence::JoinToken(token.reveal().to_string()));
        let request = v1::AttestNodeRequest { evidence, csr: csr.der().to_vec(), ..Default::default() };
        CertificateAuthorityClient::new(channel).attest_node(request).await.unwrap();
    }

    /// Waits until it signs with another intermediate.
    async fn signs_otherwise(&self, than: Fingerprint) -> Fingerprint {
        let changed = async {
            let mut changes = tokio::time::interval(std::time::Duration::from_millis(100));
            loop {
                let now = self.ca.fingerprints().intermediate.fingerprint;
                if now != than {
                    return now;
                }
                changes.tick().await;
            }
        };
        timeout(DEADLINE, changed).await.unwrap()
    }
}

fn secret(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_is_given_an_intermediate_of_its_own() {
    alcazar_mtls::install_default_provider();
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let shared = secret(home.path(), "secret", "a secret of at least thirty-two bytes\n");
    let of = |name: &str| {
        let mut config = config(&etcd, &home.path().join(name));
        config.replicas.secret_file = Some(shared.clone());
        config
    };
    let one = Running::start(of("one")).await;

    // Without the secret nothing is made, and it says what to do.
    let stranger = Ca::open(config(&etcd, &home.path().join("stranger")), clock::system()).await;
    let error = stranger.err().unwrap();
    assert!(matches!(error, OpenError::Join(JoinError::NoSecret)), "{error}");

    // What somebody without the secret has put there for it is passed over.
    fs::create_dir(home.path().join("two")).unwrap();
    fs::write(home.path().join("two/replica"), "00000000000000aa\n").unwrap();
    let prefix = "alcazar/cluster.local/local".parse().unwrap();
    let store = EtcdStore::open(EtcdConfig::new([etcd.endpoint()], prefix)).await.unwrap();
    let forged = json!({"sealed": "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}).to_string().into_bytes();
    let key = "ca/joining/answers/00000000000000aa".parse().unwrap();
    store.put_if(&key, Expected::Absent, forged).await.unwrap();
    let two = Running::start(of("two")).await;
    assert_eq!(two.ca.replica().as_str(), "00000000000000aa");
    let (first, second) = (one.ca.fingerprints(), two.ca.fingerprints());
    assert_eq!(first.root, second.root);
    assert_ne!(first.intermediate, second.intermediate);
    let left = etcd.ctl(&["get", "--prefix", "alcazar/cluster.local/local/ca/joining/", "--keys-only"]).unwrap();
    assert_eq!(left.trim(), "", "letters are gone once they are read");
    let keys = fs::read_dir(home.path().join("two/hierarchy")).unwrap();
    let keys: Vec<_> = keys.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!keys.iter().any(|name| name.starts_with("root") && name.ends_with("-key.pem")), "{keys:?}");

    // Each knows the other, and signs for its ledger, from what it has seen to what comes.
    for replica in [&one, &two] {
        assert_eq!(replica.ca.replicas().await.unwrap().len(), 2);
        replica.ca.keep_head().await.unwrap();
    }
    assert_eq!(one.ca.witness_ledgers().await.unwrap().len(), 0);
    let node = "spiffe://cluster.local/node/local/n1".parse().unwrap();
    let ledger = two.ca.replicas().await.unwrap()[0].presence.ledger.clone();
    let seen = two.ca.witnesses(&ledger).await.unwrap();
    assert_eq!((seen.len(), seen[0].replica.as_str()), (1, one.ca.replica().as_str()));
    two.ca.create_join_token(&node, None).await.unwrap();

    // It finds itself again, also while nobody else is there.
    let first_of_all = one.ca.replica().clone();
    two.stop().await;
    one.stop().await;
    let two = Running::start(of("two")).await;
    assert_eq!(two.ca.fingerprints(), second);

    // Nobody has the root's key, or is expected to be back with it: what signs is shared, until somebody has it.
    let gone = format!("alcazar/cluster.local/local/ca/replicas/{}", first_of_all);
    assert_eq!(etcd.ctl(&["del", &gone]).unwrap().trim(), "1");
    let three = Running::start(of("three")).await;
    assert_eq!(three.ca.fingerprints(), second);
    // It makes the next root, of which a node does not hear: what it goes over to is under the root that signs all the same.
    three.attest("unheard").await;
    two.stop().await;
    three.begins_a_root().await;
    let keys = fs::read_dir(home.path().join("three/hierarchy")).unwrap();
    let keys: Vec<_> = keys.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(keys.iter().any(|name| name.starts_with("root") && name.ends_with("-key.pem")), "{keys:?}");
    let one = Running::start(of("one")).await;
    assert_eq!(one.ca.fingerprints(), first);
    let own = three.signs_otherwise(second.intermediate.fingerprint).await;
    assert_ne!(own, first.intermediate.fingerprint);
    assert_eq!(three.ca.fingerprints().root, first.root);
    let standing = three.rotation().await;
    assert_eq!(standing.phase, "distribute", "{standing:?}");
    assert!(standing.waits.iter().any(|wait| wait.party.contains("unheard")), "{standing:?}");
    let trusted = three.ca.trust_bundles().iter().next().unwrap().roots().len();
    assert_eq!(trusted, 2, "it could have signed under the new one");
    for replica in [one, three] {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_replicas_that_start_together_one_makes_the_root() {
    alcazar_mtls::install_default_provider();
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let shared = secret(home.path(), "secret", "a secret of at least thirty-two bytes\n");
    let start = |name: &str| {
        let mut config = config(&etcd, &home.path().join(name));
        config.replicas.secret_file = Some(shared.clone());
        Running::start(config)
    };
    let (one, two, three) = tokio::join!(start("one"), start("two"), start("three"));
    let roots = [&one, &two, &three].map(|replica| replica.ca.fingerprints().root.fingerprint);
    assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
    for replica in [one, two, three] {
        replica.stop().await;
    }
}
