//! Replicas of one CA over a real etcd.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use alcazar_ca::{Ca, Config, JoinError, OpenError, Phase, StoreConfig};
use alcazar_identity::Fingerprint;
use alcazar_service::{Readiness, Shutdown, clock};
use alcazar_store::{EtcdStore, Expected, Store, etcd::EtcdConfig};
use alcazar_testkit::{DEADLINE, Etcd};
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};

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
    shutdown: Shutdown,
}

impl Running {
    async fn start(config: Config) -> Self {
        let ca = Ca::open(config, clock::system()).await.unwrap();
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let run = ca.run(listener, shutdown.clone(), readiness.clone());
        shutdown.spawn("replica", async move { run.await.unwrap() });
        timeout(DEADLINE, readiness.wait()).await.unwrap();
        Self { ca, shutdown }
    }

    async fn stop(self) {
        self.shutdown.trigger("the test");
        self.shutdown.finished(DEADLINE).await.unwrap();
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
    two.stop().await;
    one.stop().await;
    let two = Running::start(of("two")).await;
    assert_eq!(two.ca.fingerprints(), second);

    // Nobody has the root's key: what signs is shared, until somebody has it.
    let three = Running::start(of("three")).await;
    assert_eq!(three.ca.fingerprints(), second);
    let one = Running::start(of("one")).await;
    assert_eq!(one.ca.fingerprints(), first);
    let own = three.signs_otherwise(second.intermediate.fingerprint).await;
    assert_ne!(own, first.intermediate.fingerprint);
    assert_eq!(three.ca.fingerprints().root, first.root);
    for replica in [one, two, three] {
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
