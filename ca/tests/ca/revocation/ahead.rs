//! A clock that is ahead for a moment gives nothing back of what was revoked.

use std::{collections::BTreeSet, time::Duration};

use alcazar_api::ca::v1;
use alcazar_identity::RevocationReason;

use super::hands::{give_back, identity, issue, operator, peer, revoke, serial};
use crate::support::{Hands, Served, id, node, registration, web};

/// What the operator is shown.
async fn listed(served: &Served) -> BTreeSet<String> {
    let listed = operator(served).await.list_revocations(v1::ListRevocationsRequest {}).await.unwrap().into_inner();
    listed.entries.into_iter().map(|entry| entry.subject).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_identities_stay_revoked_over_a_look_a_week_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let stolen = issue(&served, &one, "shop.web").await.unwrap();
    served
        .ca
        .put_registration(registration("shop.old", &node("one"), &id("spiffe://cluster.local/ns/shop/sa/old")))
        .await
        .unwrap();
    let other = issue(&served, &one, "shop.old").await.unwrap();
    revoke(&served, serial(stolen.serial()), RevocationReason::KeyCompromise).await.unwrap();
    revoke(&served, identity(other.id()), RevocationReason::KeyCompromise).await.unwrap();
    give_back(&served, other.id()).await.unwrap();
    let before = listed(&served).await;

    // A look by a clock that is a week ahead, of a CA that runs and of one that starts.
    let (right, week) = (hands.now(), Duration::from_secs(7 * 24 * 3600));
    hands.advance(week);
    revoke(&served, serial("abcdef"), RevocationReason::Superseded).await.unwrap();
    served.stop().await;
    Served::start(folder.path(), &hands).await.stop().await;
    hands.set(right);

    let served = Served::start(folder.path(), &hands).await;
    let left = listed(&served).await;
    assert!(before.is_subset(&left), "{before:?}, and then {left:?}");
    let held = served.ca.serving_credentials().revocations().clone();
    for old in [&stolen, &other] {
        assert!(peer(&served, old).revoked_by(&held).is_some(), "{}", old.id());
    }
    served.stop().await;
}
