//! Lists of other clusters, which outlive the certificates that they were signed by.

use std::{path::Path, sync::Arc, time::Duration};

use alcazar_api::ca::v1::{self, status_client::StatusClient, unrevoke_request};
use alcazar_ca::{
    ClusterConfig, Config, FileKeys, KeyAlgorithm,
    ceremony::{self, RootFolder, RootKey},
};
use alcazar_identity::{RevocationReason, Revocations};
use tempfile::TempDir;
use tonic::{Code, Response, Status};

use super::hands::{Follower, identity, issue, operator, revoke, unrevoke};
use crate::support::{Hands, Served, node, registration, web};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Has the root give the CA of this configuration an intermediate.
fn certify(config: &Config, by: &RootFolder, life: Duration, out: &Path, hands: &Hands) {
    let asked = ceremony::request(config, &config.key_store()).unwrap();
    let proposal = by.propose(&asked.file, life, None, hands.now()).unwrap();
    by.sign(&proposal, out).unwrap();
    ceremony::install(config, out, hands.now()).unwrap();
}

async fn health(served: &Served) -> String {
    let socket = format!("unix:{}", served.ca.admin_socket().display());
    let status = StatusClient::connect(socket).await.unwrap().get_status(v1::GetStatusRequest {}).await.unwrap();
    let part = status.into_inner().parts.into_iter().find(|part| part.name == "revocations").unwrap();
    format!("{} {}", part.state, part.reason)
}

/// Asks until the part says it: it follows what is in force.
async fn until_health(served: &Served, words: &str) -> String {
    tokio::time::timeout(super::hands::PATIENCE, async {
        loop {
            let health = health(served).await;
            if health.contains(words) {
                return health;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the health of the revocations")
}

/// Two clusters under a root that is offline.
struct Clusters {
    folder: TempDir,
    root: RootFolder,
    here: Config,
    east: Config,
    hands: Hands,
}

impl Clusters {
    /// The certificate of the one in the east ends first.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let hands = Hands::new();
        let keys = Arc::new(FileKeys::sealed(at("root"), b"a long passphrase".to_vec().into()));
        let key = RootKey { keys, label: "root".parse().unwrap() };
        let domain = "cluster.local".parse().unwrap();
        let root = RootFolder::init(&at("root"), &domain, &key, KeyAlgorithm::P256, 3650 * DAY, hands.now()).unwrap();
        let here = Config::new(at("here"));
        let east = Config { cluster: "east".into(), ..Config::new(at("east")) };
        certify(&here, &root, 365 * DAY, &at("for-here"), &hands);
        certify(&east, &root, 30 * DAY, &at("for-east"), &hands);
        Self { folder, root, here, east, hands }
    }

    /// What the CA in the east signs, once it has a certificate that is good.
    async fn lists_of_the_east(&self, then: impl AsyncFnOnce(&Served)) -> v1::RevocationLists {
        let there = Served::start_with(self.east.clone(), &self.hands).await;
        then(&there).await;
        let lists = operator(&there).await.export_revocations(v1::ExportRevocationsRequest {}).await.unwrap();
        there.stop().await;
        lists.into_inner()
    }

    /// The same, once it has revoked the web.
    async fn lists_that_bar_web(&self) -> v1::RevocationLists {
        let compromised = RevocationReason::KeyCompromise;
        self.lists_of_the_east(async |there| drop(revoke(there, identity(&web()), compromised).await.unwrap())).await
    }

    /// The same, of a new certificate.
    async fn lists_signed_anew(&self) -> v1::RevocationLists {
        certify(&self.east, &self.root, 365 * DAY, &self.folder.path().join("for-east-again"), &self.hands);
        self.lists_of_the_east(async |_| ()).await
    }
}

async fn import(served: &Served, lists: v1::RevocationLists) -> Vec<String> {
    operator(served).await.import_revocations(lists).await.unwrap().into_inner().taken
}

async fn drop_list(served: &Served, cluster: &str, force: bool) -> Result<v1::DropRevocationsResponse, Status> {
    let request = v1::DropRevocationsRequest { cluster: cluster.into(), force, ..Default::default() };
    operator(served).await.drop_revocations(request).await.map(Response::into_inner)
}

fn denied() -> (i32, String) {
    (i32::from(Code::PermissionDenied), "revoked".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_signer_has_ended_is_obeyed_over_a_restart_until_it_comes_again() {
    let clusters = Clusters::new();
    let lists = clusters.lists_that_bar_web().await;
    let served = Served::start_with(clusters.here.clone(), &clusters.hands).await;
    assert_eq!(import(&served, lists).await, ["cluster:east"]);
    until_health(&served, "ready").await;
    served.stop().await;

    // The intermediate that signed it ends, there and by that everywhere.
    clusters.hands.advance(40 * DAY);
    let served = Served::start_with(clusters.here.clone(), &clusters.hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied());
    let said = until_health(&served, "degraded").await;
    assert!(said.contains("the list of cluster:east") && said.contains("import it here again"), "{said}");
    let mut follower = Follower::start(&served, &one).await;
    follower.until(&served, Revocations::is_empty).await;

    assert_eq!(import(&served, clusters.lists_signed_anew().await).await, ["cluster:east"]);
    follower.until(&served, |held| held.lists().any(|list| list.identity(&web()).is_some())).await;
    until_health(&served, "ready").await;
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_a_cluster_that_is_gone_is_dropped_and_what_it_bars_stays_barred() {
    let clusters = Clusters::new();
    let lists = clusters.lists_that_bar_web().await;
    let served = Served::start_with(clusters.here.clone(), &clusters.hands).await;
    import(&served, lists).await;
    let refused = async |served: &Served, cluster: &str, code: Code, says: &str| {
        let status = drop_list(served, cluster, false).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(says), "{status}");
    };
    refused(&served, "east", Code::FailedPrecondition, "can be proved").await;
    refused(&served, "local", Code::FailedPrecondition, "its own").await;
    refused(&served, "west", Code::NotFound, "cluster:west").await;
    refused(&served, "no/name", Code::InvalidArgument, "name of a cluster").await;
    served.stop().await;

    clusters.hands.advance(40 * DAY);
    let known = ClusterConfig { name: "east".into(), endpoint: None };
    let waiting = Config { clusters: vec![known], ..clusters.here.clone() };
    let served = Served::start_with(waiting, &clusters.hands).await;
    refused(&served, "east", Code::FailedPrecondition, "clusters:").await;
    served.stop().await;

    let served = Served::start_with(clusters.here.clone(), &clusters.hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let said = until_health(&served, "degraded").await;
    assert!(said.contains("alcazar revocations drop"), "{said}");
    let dropped = drop_list(&served, "east", false).await.unwrap();
    assert_eq!((dropped.barred, dropped.notes), (vec![web().to_string()], Vec::new()));
    until_health(&served, "ready").await;
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied());
    // Every node can be told of it now, and it is for this cluster to give back.
    let mut follower = Follower::start(&served, &one).await;
    follower.until(&served, |held| held.lists().any(|list| list.identity(&web()).is_some())).await;
    refused(&served, "east", Code::NotFound, "cluster:east").await;
    served.stop().await;
    let served = Served::start_with(clusters.here.clone(), &clusters.hands).await;
    until_health(&served, "ready").await;
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied());
    unrevoke(&served, unrevoke_request::Subject::SpiffeId(web().to_string())).await.unwrap();
    issue(&served, &one, "shop.web").await.unwrap();

    // It was not gone after all.
    assert_eq!(import(&served, clusters.lists_signed_anew().await).await, ["cluster:east"]);
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied());
    let dropped = drop_list(&served, "east", true).await.unwrap();
    assert_eq!(dropped.barred, [web().to_string()]);
    served.stop().await;
}
