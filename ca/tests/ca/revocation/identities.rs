//! An identity that is taken back, and given back.

use std::time::Duration;

use alcazar_api::ca::v1::{self, issue_jwt_svid_result::Outcome, jwt_client::JwtClient};
use alcazar_identity::{RevocationReason, Revocations, RevokedBy, X509Svid};
use tokio::time::timeout;
use tonic::Code;

use super::hands::{Follower, PATIENCE, give_back, identity, issue, peer, revoke, said};
use crate::support::{Hands, Served, csr, key, node, registration, svid, web};

/// A JWT-SVID for a registration of the node.
async fn token(served: &Served, of: &X509Svid, name: &str) -> Result<v1::IssuedJwtSvid, (i32, String)> {
    let audience = vec!["reports".to_owned()];
    let items = vec![v1::IssueJwtSvid { registration_id: name.into(), audience, ttl: 0 }];
    let reply = JwtClient::new(served.channel(of)).issue_jwt_svids(v1::IssueJwtSvidsRequest { items }).await;
    match reply.unwrap().into_inner().results.remove(0).outcome.unwrap() {
        Outcome::Svid(issued) => Ok(issued),
        Outcome::Refusal(refusal) => Err((refusal.code, refusal.message)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_identity_gets_nothing_until_it_is_reinstated_and_its_old_certificates_stay_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let old = issue(&served, &one, "shop.web").await.unwrap();
    let mut follower = Follower::start(&served, &one).await;
    follower.until(&served, Revocations::is_empty).await;

    hands.advance(Duration::from_secs(1));
    let entry = revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap().unwrap();
    assert_eq!((entry.kind.as_str(), entry.subject.as_str(), entry.until), ("identity", web().as_str(), 0));
    assert!(entry.by.starts_with("operator with uid "), "{}", entry.by);
    let held = follower.until(&served, |held| !held.is_empty()).await;
    let revoked = peer(&served, &old).revoked_by(&held).unwrap();
    assert!(matches!(&revoked.rule, RevokedBy::Identity { id, .. } if *id == web()), "{revoked}");
    let denied = (Code::PermissionDenied.into(), "revoked".to_owned());
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied);
    assert_eq!(token(&served, &one, "shop.web").await.unwrap_err(), denied);
    assert_eq!(peer(&served, &one).revoked_by(&held), None, "its node is another");
    // The list outlives what it is about: nothing is issued a week later either.
    hands.advance(Duration::from_secs(1800));
    assert_eq!(issue(&served, &one, "shop.web").await.unwrap_err(), denied);

    give_back(&served, &web()).await.unwrap();
    hands.advance(Duration::from_secs(1));
    let held = follower.until(&served, all_reinstated).await;
    let new = issue(&served, &one, "shop.web").await.unwrap();
    assert!(token(&served, &one, "shop.web").await.is_ok());
    assert_eq!(peer(&served, &new).revoked_by(&held), None);
    assert!(peer(&served, &old).revoked_by(&held).is_some());
    assert_eq!(give_back(&served, &node("x")).await.unwrap_err().code(), Code::NotFound);
    let again = give_back(&served, &web()).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert!(again.message().contains("it was reinstated at 2027-01-15T"), "{again:?}");

    // Revoked and reinstated at once: what comes two seconds later, within the two minutes of backdating, is not taken for old.
    revoke(&served, identity(&web()), RevocationReason::Superseded).await.unwrap();
    follower.until(&served, |held| !all_reinstated(held)).await;
    give_back(&served, &web()).await.unwrap();
    let held = follower.until(&served, all_reinstated).await;
    hands.advance(Duration::from_secs(2));
    let newest = issue(&served, &one, "shop.web").await.unwrap();
    assert!(newest.validity().not_before() > new.validity().not_before());
    assert_eq!(peer(&served, &newest).revoked_by(&held), None);
    assert!(peer(&served, &new).revoked_by(&held).is_some());
    served.stop().await;
}

fn all_reinstated(held: &Revocations) -> bool {
    held.lists().all(|list| list.identities().all(|(_, identity)| identity.reinstated))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_loses_its_lineage_its_workloads_and_its_connections() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let (one, two) = (served.attested(&node("one")).await, served.attested(&node("two")).await);
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let mut cut = Follower::start(&served, &one).await;
    cut.until(&served, Revocations::is_empty).await;
    let client = served.client(&one);
    hands.advance(Duration::from_secs(1));
    let token = served.token(&node("one")).await;

    revoke(&served, identity(&node("one")), RevocationReason::CessationOfOperation).await.unwrap();
    // The open connection ends, perhaps after it said why.
    let ended = async { while let Ok(Some(_)) = cut.stream.message().await {} };
    timeout(PATIENCE, ended).await.expect("the connection of a revoked node is cut");
    let renewed = client.clone().renew_node(v1::RenewNodeRequest { csr: csr(&key()) }).await.unwrap_err();
    assert!(
        format!("{renewed:?}").contains("CertificateRevoked") || renewed.code() == Code::Unavailable,
        "{renewed:?}"
    );
    let refused = served.attest(&token, &key()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "revoked"));
    let reason = served.ca.create_join_token(&node("one"), None).await.unwrap_err().to_string();
    assert!(reason.contains("alcazar unrevoke --identity"), "{reason}");
    assert!(served.renew(&two, &key()).await.is_ok());

    give_back(&served, &node("one")).await.unwrap();
    hands.advance(Duration::from_secs(1));
    assert!(served.renew(&one, &key()).await.is_err(), "the old certificate stays revoked");
    let key = key();
    let again = svid(&served.attest(&token, &key).await.unwrap(), &key);
    assert!(issue(&served, &again, "shop.web").await.is_ok());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_before_the_clock_was_set_back_is_revoked_and_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let step = Duration::from_secs(300);
    // The CA's own certificates are from before it.
    hands.advance(step * 2);
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let old = issue(&served, &one, "shop.web").await.unwrap();
    hands.back(step);
    let first = said(&served, identity(&web()), RevocationReason::CessationOfOperation).await.unwrap();
    let again = said(&served, identity(&web()), RevocationReason::CessationOfOperation).await.unwrap();
    assert!(!first.already && again.already && first.entry == again.entry, "{again:?}");
    // A graver reason is worth a change, and nothing else is lost by it.
    let graver = said(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    let (first, entry) = (first.entry.unwrap(), graver.entry.unwrap());
    assert!(!graver.already && entry.since == first.since);
    assert_eq!(entry.reason, u32::from(RevocationReason::KeyCompromise.code()));
    give_back(&served, &web()).await.unwrap();

    hands.advance(step + Duration::from_secs(10));
    let mut follower = Follower::start(&served, &one).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    assert!(peer(&served, &old).revoked_by(&held).is_some());
    let new = issue(&served, &one, "shop.web").await.unwrap();
    assert_eq!(peer(&served, &new).revoked_by(&held), None);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_issued_who_had_not_heard_is_revoked_after_the_reinstatement_too() {
    let folder = tempfile::tempdir().unwrap();
    let (here, away) = (folder.path().join("here"), folder.path().join("away"));
    let hands = Hands::new();
    let served = Served::start(&here, &hands).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    served.stop().await;
    // A replica that is cut off: it signs as this one does, and hears nothing.
    let copied = std::process::Command::new("cp").arg("-r").args([&here, &away]).status().unwrap();
    assert!(copied.success());

    let served = Served::start(&here, &hands).await;
    revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    hands.advance(Duration::from_secs(1800));
    let unaware = Served::start(&away, &hands).await;
    let meanwhile = issue(&unaware, &one, "shop.web").await.unwrap();
    unaware.stop().await;
    give_back(&served, &web()).await.unwrap();
    hands.advance(Duration::from_secs(1));
    let mut follower = Follower::start(&served, &one).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    assert!(peer(&served, &meanwhile).revoked_by(&held).is_some());
    let new = issue(&served, &one, "shop.web").await.unwrap();
    assert_eq!(peer(&served, &new).revoked_by(&held), None);
    let entry = held.lists().find_map(|list| list.identity(&web())).unwrap();
    assert!(
        entry.revocation.until >= hands.now() + Duration::from_secs(24 * 3600),
        "as long as one of then could be good"
    );
    served.stop().await;
}
