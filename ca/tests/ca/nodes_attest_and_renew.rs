//! A node gets in by a token once, and goes on by the latest certificate of its lineage alone.

use std::time::Duration;

use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient,
};
use tonic::Code;

use crate::support::{Hands, Served, csr, eventually, key, node, svid};

fn code<T: std::fmt::Debug>(outcome: Result<T, tonic::Status>) -> Code {
    outcome.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_admits_one_key_once_and_a_retry_gets_the_same_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let token = served.token(&node("one")).await;
    let (ours, other) = (key(), key());

    let first = served.attest(&token, &ours).await.unwrap();
    let certificate = svid(&first, &ours);
    assert_eq!(*certificate.id(), node("one"));
    assert_eq!(first.issued_at, crate::support::START as i64);
    assert_eq!(first.chain.len(), 2, "leaf and intermediate, without the root");

    // The reply was lost: the same key gets the same certificate; another key gets nothing.
    assert_eq!(served.attest(&token, &ours).await.unwrap().chain, first.chain);
    assert_eq!(code(served.attest(&token, &other).await), Code::Unauthenticated);

    // Once the node has gone on, the token is over even for its key: a replay must not turn the lineage back.
    let next = key();
    svid(&served.renew(&certificate, &next).await.unwrap(), &next);
    assert_eq!(code(served.attest(&token, &ours).await), Code::Unauthenticated);

    let late = served.token(&node("two")).await;
    served.hands.advance(Duration::from_secs(600));
    assert_eq!(code(served.attest(&late, &ours).await), Code::Unauthenticated);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_uses_of_a_token_at_once_one_key_gets_in() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let token = served.token(&node("one")).await;
    let keys: Vec<_> = (0..8).map(|_| key()).collect();
    let outcomes = futures::future::join_all(keys.iter().map(|key| served.attest(&token, key))).await;
    let winners: Vec<_> = outcomes
        .iter()
        .zip(&keys)
        .filter_map(|(outcome, key)| outcome.as_ref().ok().map(|issued| (issued, key)))
        .collect();
    assert_eq!(winners.len(), 1);
    let (issued, key) = winners[0];
    // And the lineage is the winner's.
    let next = crate::support::key();
    served.renew(&svid(issued, key), &next).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_others_are_refused() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let other = Served::start(elsewhere.path(), &hands).await;
    let foreign = other.token(&node("one")).await;

    // A node that pins the other root finds out before it shows its token.
    assert!(served.attest(&foreign, &key()).await.is_err());
    // And the token itself is unknown here, whatever the caller trusts.
    let token = served.token(&node("one")).await;
    let mut client = CertificateAuthorityClient::new(served.pinned(&token));
    for bad in [foreign.as_str(), "", "hello", &token[..token.len() - 1]] {
        let request = v1::AttestNodeRequest {
            evidence: Some(Evidence::JoinToken(bad.into())),
            csr: csr(&key()),
            ..Default::default()
        };
        let status = client.attest_node(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "join token refused"), "{bad}");
    }
    for bad in [Vec::new(), b"hello".to_vec(), csr(&key()).split_off(1)] {
        let request = v1::AttestNodeRequest {
            evidence: Some(Evidence::JoinToken(token.clone())),
            csr: bad,
            ..Default::default()
        };
        let status = client.attest_node(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "certificate request refused"));
    }
    // None of that used the token up.
    served.attest(&token, &key()).await.unwrap();
    served.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_latest_certificate_of_a_lineage_renews() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let first = served.attested(&node("one")).await;
    let (second_key, third_key) = (key(), key());

    served.hands.advance(Duration::from_secs(1800));
    let second = svid(&served.renew(&first, &second_key).await.unwrap(), &second_key);
    assert_ne!(second.serial(), first.serial());
    // A lost reply: the same new key gets the same certificate by the old one.
    let again = svid(&served.renew(&first, &second_key).await.unwrap(), &second_key);
    assert_eq!(again.serial(), second.serial());

    let third = svid(&served.renew(&second, &third_key).await.unwrap(), &third_key);
    // The first is too old for anything, though its dates are good.
    assert_eq!(
        code(served.client(&first).watch_registrations(v1::WatchRegistrationsRequest {}).await),
        Code::Unauthenticated
    );
    // The one before the latest still speaks for the node, on connections that it has.
    served.client(&second).watch_registrations(v1::WatchRegistrationsRequest {}).await.unwrap();

    // A new attestation begins a new lineage.
    let fresh = served.attested(&node("one")).await;
    assert_eq!(code(served.renew(&third, &key()).await), Code::Unauthenticated);
    served.renew(&fresh, &key()).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_two_holders_of_one_certificate_have_asked_neither_renews_whoever_was_first() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let step = || served.hands.advance(Duration::from_secs(300));
    let renew = async |svid_of: &alcazar_identity::X509Svid| {
        let next = key();
        served.renew(svid_of, &next).await.map(|issued| svid(&issued, &next))
    };
    // The thief renews before the node does: once, or so often that the node's certificate is long past.
    for (forks, renewals) in [(1, 1), (2, 3)] {
        let owner = served.attested(&node("one")).await;
        let before = owner.clone();
        step();
        let owner = renew(&owner).await.unwrap();
        let mut thief = owner.clone();
        for _ in 0..renewals {
            step();
            thief = renew(&thief).await.unwrap();
        }
        // What anybody asks with it but a renewal ends nothing.
        let watched = served.client(&before).watch_registrations(v1::WatchRegistrationsRequest {}).await;
        assert_eq!(code(watched), Code::Unauthenticated);
        assert_eq!(forked(&served), forks - 1);
        for holder in [&owner, &thief, &owner] {
            assert_eq!(code(renew(holder).await), Code::Unauthenticated);
            assert_eq!(forked(&served), forks);
        }
    }
    // The node attests again and goes on; what the thief has left of the lineage before ends nothing.
    step();
    let old = served.attested(&node("one")).await;
    step();
    let fresh = served.attested(&node("one")).await;
    step();
    let fresh = renew(&renew(&fresh).await.unwrap()).await.unwrap();
    assert_eq!(code(renew(&old).await), Code::Unauthenticated);
    renew(&fresh).await.unwrap();
    assert_eq!(forked(&served), 2);
    served.stop().await;
}

/// How many lineages were ended because they had two holders.
fn forked(served: &Served) -> u64 {
    let metrics = served.ca.metrics().encode(alcazar_service::metrics::Format::Prometheus);
    let line = metrics.lines().find_map(|line| line.strip_prefix("alcazar_ca_forked_lineages_total "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_nodes_ask() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let of = served.attested(&node("one")).await;
    let (web, registration) = (crate::support::web(), "shop.web");
    served.ca.put_registration(crate::support::registration(registration, &node("one"), &web)).await.unwrap();
    let workload_key = key();
    let request = v1::IssueWorkloadsRequest {
        items: vec![v1::IssueWorkload {
            registration_id: registration.into(),
            csr: csr(&workload_key),
            present_not_after: 0,
        }],
    };
    let reply = served.client(&of).issue_workloads(request.clone()).await.unwrap().into_inner();
    let Some(v1::issue_workload_result::Outcome::Svid(issued)) = &reply.results[0].outcome else { panic!("{reply:?}") };
    let workload = svid(issued, &workload_key);

    // A workload's certificate authenticates nothing here, not even its own renewal.
    assert_eq!(code(served.renew(&workload, &workload_key).await), Code::PermissionDenied);
    assert_eq!(code(served.client(&workload).issue_workloads(request.clone()).await), Code::PermissionDenied);
    // Nor does no certificate.
    let token = served.token(&node("one")).await;
    let mut anonymous = CertificateAuthorityClient::new(served.pinned(&token));
    assert_eq!(code(anonymous.issue_workloads(request).await), Code::Unauthenticated);
    assert_eq!(code(anonymous.renew_node(v1::RenewNodeRequest { csr: csr(&key()) }).await), Code::Unauthenticated);
    assert_eq!(code(anonymous.watch_registrations(v1::WatchRegistrationsRequest {}).await), Code::Unauthenticated);
    assert_eq!(code(anonymous.watch_trust_bundles(v1::WatchTrustBundlesRequest {}).await), Code::Unauthenticated);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_serving_certificate_rotates_at_half_of_its_life() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let mut config = alcazar_ca::Config::new(folder.path());
    config.certificates.ttl = Duration::from_secs(10);
    let served = Served::start_with(config, &hands).await;
    let serials = async || {
        let issued = served.ca.issued(Some(&served.ca.id()), 10).await.unwrap();
        issued.into_iter().map(|record| record.serial).collect::<Vec<_>>()
    };
    assert_eq!(serials().await.len(), 1);
    hands.advance(Duration::from_secs(6));
    eventually("it rotates", async || serials().await.len() >= 2).await;
    // Past the first one's end, the second serves.
    hands.advance(Duration::from_secs(5));
    served.attested(&node("one")).await;
    served.stop().await;
}
