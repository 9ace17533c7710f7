//! Replicas of one CA over a real etcd.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::path::Path;

use alcazar_ca::{Ca, Config, OpenError, Phase, StoreConfig};
use alcazar_service::clock;
use alcazar_testkit::Etcd;
use serde_json::json;

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
