//! Single certificates, by their serial numbers.

use alcazar_api::ca::v1::{self, jwt_client::JwtClient, unrevoke_request};
use alcazar_identity::{RevocationReason, Revocations};
use tonic::Code;

use super::hands::{Follower, identity, peer, revoke, serial, unrevoke};
use crate::support::{Hands, Served, eventually, id, key, node, registration, web};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_can_be_lifted_and_other_reasons_are_final() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let (one, two) = (served.attested(&node("one")).await, served.attested(&node("two")).await);
    let mut follower = Follower::start(&served, &two).await;
    // As openssl prints it.
    let printed = one
        .serial()
        .to_uppercase()
        .as_bytes()
        .chunks(2)
        .map(|b| std::str::from_utf8(b).unwrap())
        .collect::<Vec<_>>()
        .join(":");
    let entry = revoke(&served, serial(&printed), RevocationReason::CertificateHold).await.unwrap().unwrap();
    assert_eq!((entry.subject.as_str(), entry.spiffe_id.as_str()), (one.serial(), node("one").as_str()));
    let held = follower.until(&served, |held| !held.is_empty()).await;
    let revoked = peer(&served, &one).revoked_by(&held).unwrap();
    assert_eq!(revoked.revocation.reason, RevocationReason::CertificateHold);
    assert!(served.renew(&one, &key()).await.is_err());

    unrevoke(&served, unrevoke_request::Subject::Serial(one.serial().into())).await.unwrap();
    let held = follower.until(&served, Revocations::is_empty).await;
    assert_eq!(peer(&served, &one).revoked_by(&held), None);

    revoke(&served, serial(one.serial()), RevocationReason::CertificateHold).await.unwrap();
    revoke(&served, serial(one.serial()), RevocationReason::KeyCompromise).await.unwrap();
    let refused = unrevoke(&served, unrevoke_request::Subject::Serial(one.serial().into())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("only certificateHold can be lifted"), "{refused:?}");
    // Unknown to the record, and accepted all the same: another replica may have issued it.
    assert!(revoke(&served, serial("abcdef"), RevocationReason::Unspecified).await.unwrap().is_some());
    for (subject, words) in [
        (serial("what"), "is not a serial number"),
        (identity(&id("spiffe://other/ns/a/sa/b")), "of this trust domain"),
        (identity(&served.ca.id()), "the CA's own identity"),
    ] {
        let refused = revoke(&served, subject, RevocationReason::KeyCompromise).await.unwrap_err();
        assert!(refused.message().contains(words), "{refused:?}");
    }
    // A token is in no list: who believes that it was revoked is wrong.
    served.ca.put_registration(registration("shop.web", &node("two"), &web())).await.unwrap();
    let items = vec![v1::IssueJwtSvid { registration_id: "shop.web".into(), audience: vec!["reports".into()], ttl: 0 }];
    let request = v1::IssueJwtSvidsRequest { items };
    JwtClient::new(served.channel(&two)).issue_jwt_svids(request).await.unwrap();
    let token = served.ca.issued(Some(&web()), 1).await.unwrap().remove(0);
    let refused = revoke(&served, serial(&token.serial), RevocationReason::KeyCompromise).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is a JWT-SVID of spiffe://cluster.local/ns/shop/sa/web"), "{refused:?}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_has_another_certificate_where_the_one_that_it_serves_with_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let its_own = async || served.ca.issued(Some(&served.ca.id()), 10).await.unwrap();
    let first = its_own().await.remove(0);
    revoke(&served, serial(&first.serial), RevocationReason::KeyCompromise).await.unwrap();
    eventually("it serves with another", async || its_own().await.len() >= 2).await;
    // That one is good: it is not replaced again and again.
    let two = served.attested(&node("two")).await;
    let held = Follower::start(&served, &two).await.until(&served, |held| !held.is_empty()).await;
    let serials: Vec<_> = its_own().await.into_iter().map(|record| record.serial).collect();
    let revoked = |serial: &String| held.lists().any(|list| list.serial(serial, None).is_some());
    assert_eq!(serials.iter().filter(|serial| revoked(serial)).collect::<Vec<_>>(), [&first.serial]);
    served.stop().await;
}
