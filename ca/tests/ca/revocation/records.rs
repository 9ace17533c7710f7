//! What is on record, over restarts and over time.

use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_ca::{Ca, Config};
use alcazar_identity::RevocationReason;

use super::hands::{Follower, identity, operator, revoke, serial};
use crate::support::{Hands, Served, node, web};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_outlive_a_restart_and_what_is_over_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    revoke(&served, serial("abcdef"), RevocationReason::KeyCompromise).await.unwrap();
    let version = operator(&served).await.list_revocations(v1::ListRevocationsRequest {}).await.unwrap();
    served.stop().await;

    let served = Served::start(folder.path(), &hands).await;
    let mut follower = Follower::start(&served, &one).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    let list = held.lists().next().unwrap();
    assert_eq!((list.version(), list.len()), (version.into_inner().version, 2));
    served.stop().await;

    // Two days later no certificate of then is good; the identity is still barred.
    hands.advance(Duration::from_secs(2 * 24 * 3600));
    let served = Served::start(folder.path(), &hands).await;
    let listed = operator(&served).await.list_revocations(v1::ListRevocationsRequest {}).await.unwrap().into_inner();
    let subjects: Vec<_> = listed.entries.iter().map(|entry| entry.subject.as_str()).collect();
    assert_eq!(subjects, [web().as_str()]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_of_another_clusters_intermediate_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    Served::start(folder.path(), &hands).await.stop().await;
    // Nobody would believe its lists of revocations.
    let renamed = Config { cluster: "west".into(), ..Config::new(folder.path()) };
    let error = Ca::open(renamed, hands.clock()).await.err().expect("it is refused");
    let reason = alcazar_service::process::chain(&error);
    assert!(reason.contains("one of the cluster \"local\"") && reason.contains("`cluster: west`"), "{reason}");
    Served::start(folder.path(), &hands).await.stop().await;
}
