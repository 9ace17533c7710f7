//! What is on record, over restarts and over time.

use std::collections::BTreeSet;
use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_ca::{Ca, Config};
use alcazar_identity::RevocationReason;

use super::hands::{Follower, identity, operator, revoke, serial};
use crate::support::{Hands, Served, id, node, web};

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

    // A month and a day later no certificate of then is good, nor does a node come back by one. The clock may be wrong, so that
    // is believed an hour later; the identity is still barred.
    hands.advance(Duration::from_secs(32 * 24 * 3600));
    let served = Served::start(folder.path(), &hands).await;
    let listed = async || {
        let listed = operator(&served).await.list_revocations(v1::ListRevocationsRequest {}).await.unwrap();
        listed.into_inner().entries.into_iter().map(|entry| entry.subject).collect::<BTreeSet<_>>()
    };
    let all = |subjects: &[&str]| subjects.iter().map(|subject| (*subject).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(listed().await, all(&["abcdef", web().as_str()]));
    hands.advance(Duration::from_secs(3601));
    let other = id("spiffe://cluster.local/ns/shop/sa/db");
    revoke(&served, identity(&other), RevocationReason::KeyCompromise).await.unwrap();
    assert_eq!(listed().await, all(&[web().as_str(), other.as_str()]));
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
