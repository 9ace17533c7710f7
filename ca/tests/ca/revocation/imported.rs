//! Lists of other clusters, which outlive the certificates that they were signed by.

use std::{path::Path, sync::Arc, time::Duration};

use alcazar_api::ca::v1::{self, status_client::StatusClient};
use alcazar_ca::{
    Config, FileKeys, KeyAlgorithm,
    ceremony::{self, RootFolder, RootKey},
};
use alcazar_identity::{RevocationReason, Revocations};
use tonic::Code;

use super::hands::{Follower, identity, issue, operator, revoke};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_signer_has_ended_is_obeyed_over_a_restart_until_it_comes_again() {
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
    let export = async |served: &Served| {
        operator(served).await.export_revocations(v1::ExportRevocationsRequest {}).await.unwrap().into_inner()
    };

    let there = Served::start_with(east.clone(), &hands).await;
    revoke(&there, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    let lists = export(&there).await;
    there.stop().await;
    let served = Served::start_with(here.clone(), &hands).await;
    let taken = operator(&served).await.import_revocations(lists).await.unwrap().into_inner().taken;
    assert_eq!(taken, ["cluster:east"]);
    until_health(&served, "ready").await;
    served.stop().await;

    // The intermediate that signed it ends, there and by that everywhere.
    hands.advance(40 * DAY);
    let served = Served::start_with(here, &hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let denied = (i32::from(Code::PermissionDenied), "revoked".to_owned());
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied);
    let said = until_health(&served, "degraded").await;
    assert!(said.contains("the list of cluster:east") && said.contains("import it here again"), "{said}");
    let mut follower = Follower::start(&served, &one).await;
    follower.until(&served, Revocations::is_empty).await;

    certify(&east, &root, 365 * DAY, &at("for-east-again"), &hands);
    let there = Served::start_with(east, &hands).await;
    let lists = export(&there).await;
    there.stop().await;
    let taken = operator(&served).await.import_revocations(lists).await.unwrap().into_inner().taken;
    assert_eq!(taken, ["cluster:east"]);
    follower.until(&served, |held| held.lists().any(|list| list.identity(&web()).is_some())).await;
    until_health(&served, "ready").await;
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied);
    served.stop().await;
}
