//! JWT-SVIDs: for whom they are issued, what they say, and who can check them.

use std::time::Duration;

use alcazar_api::{
    ca::v1::{self, issue_jwt_svid_result::Outcome, jwt_client::JwtClient},
    spiffe::validate_jwt_svid,
};
use alcazar_ca::{Ca, Config, ProfileConfig};
use alcazar_identity::{TrustBundles, X509Svid};
use alcazar_service::metrics::Format;
use tonic::Code;

use crate::support::{Hands, Served, node, registration, web};

fn item(registration: &str, audience: &[&str], ttl: i64) -> v1::IssueJwtSvid {
    let audience = audience.iter().map(|one| (*one).to_owned()).collect();
    v1::IssueJwtSvid { registration_id: registration.into(), audience, ttl }
}

async fn ask(served: &Served, svid: &X509Svid, items: Vec<v1::IssueJwtSvid>) -> Vec<Outcome> {
    let mut client = JwtClient::new(served.channel(svid));
    let reply = client.issue_jwt_svids(v1::IssueJwtSvidsRequest { items }).await.unwrap().into_inner();
    reply.results.into_iter().map(|result| result.outcome.unwrap()).collect()
}

async fn one(served: &Served, svid: &X509Svid, ttl: i64) -> v1::IssuedJwtSvid {
    match ask(served, svid, vec![item("shop.web", &["reports"], ttl)]).await.remove(0) {
        Outcome::Svid(issued) => issued,
        Outcome::Refusal(refusal) => panic!("{refusal:?}"),
    }
}

/// A CA with one node and one workload registered for it.
async fn served(folder: &std::path::Path, hands: &Hands) -> (Served, X509Svid) {
    let served = Served::start(folder, hands).await;
    served.ca.put_registration(registration("shop.web", &node("a"), &web())).await.unwrap();
    let svid = served.attested(&node("a")).await;
    (served, svid)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_who_for_whom_and_until_when_and_the_bundle_checks_it() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (served, svid) = served(folder.path(), &hands).await;
    let issued = one(&served, &svid, 0).await;
    assert_eq!((issued.spiffe_id.as_str(), issued.expires_at - issued.issued_at), (web().as_str(), 300));
    let bundles = served.ca.trust_bundles();
    let checked = validate_jwt_svid(&issued.token, "reports", &bundles, hands.now()).unwrap();
    assert_eq!(checked.id(), &web());
    assert!(checked.claims().id().is_some() && checked.claims().issued_at().is_some());
    assert!(bundles.get(served.ca.trust_domain()).unwrap().jwt_authority(&issued.key_id).is_some());
    assert!(validate_jwt_svid(&issued.token, "billing", &bundles, hands.now()).is_err());
    assert!(validate_jwt_svid(&issued.token, "reports", &bundles, hands.now() + Duration::from_secs(361)).is_err());
    // Two tokens are never one.
    assert_ne!(one(&served, &svid, 0).await.token, issued.token);
    assert_eq!(
        {
            let t = one(&served, &svid, 24 * 3600).await;
            t.expires_at - t.issued_at
        },
        3600,
        "clamped"
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_item_succeeds_or_fails_by_itself() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (served, svid) = served(folder.path(), &hands).await;
    served.ca.put_registration(registration("shop.other", &node("b"), &web())).await.unwrap();
    let items = vec![
        item("shop.web", &["reports", "billing"], 60),
        item("shop.other", &["reports"], 0),
        item("shop.none", &["reports"], 0),
        item("shop.web", &[], 0),
        item("shop.web", &[""], 0),
    ];
    let codes: Vec<_> = ask(&served, &svid, items)
        .await
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::Svid(_) => Code::Ok,
            Outcome::Refusal(refusal) => Code::from(refusal.code),
        })
        .collect();
    let no = Code::PermissionDenied;
    assert_eq!(codes, [Code::Ok, no, no, Code::InvalidArgument, Code::InvalidArgument]);

    // Only a node asks.
    let mut anonymous = JwtClient::new(served.pinned(&served.token(&node("c")).await));
    let request = v1::IssueJwtSvidsRequest { items: vec![item("shop.web", &["reports"], 0)] };
    assert_eq!(anonymous.issue_jwt_svids(request.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let many = v1::IssueJwtSvidsRequest { items: vec![request.items[0].clone(); 1001] };
    let mut client = JwtClient::new(served.channel(&svid));
    assert_eq!(client.issue_jwt_svids(many).await.unwrap_err().code(), Code::InvalidArgument);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_bounds_tokens_too_and_tokens_are_counted() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let mut config = Config::new(folder.path());
    let short = ProfileConfig {
        ttl: Some(Duration::from_secs(60)),
        max_ttl: Some(Duration::from_secs(120)),
        ..ProfileConfig::default()
    };
    config.profiles.insert("short".into(), short);
    let served = Served::start_with(config, &hands).await;
    let registered = registration("shop.web", &node("a"), &web()).with_profile(Some("short".into())).unwrap();
    served.ca.put_registration(registered).await.unwrap();
    let svid = served.attested(&node("a")).await;
    for (asked, expected) in [(0, 120), (60, 60), (3600, 120)] {
        let issued = one(&served, &svid, asked).await;
        assert_eq!(issued.expires_at - issued.issued_at, expected, "{asked} seconds were asked for");
    }
    served.stop().await;

    // The configuration loses the profile: what was registered under it gets nothing, neither certificates nor tokens.
    let served = Served::start(folder.path(), &hands).await;
    let svid = served.attested(&node("a")).await;
    let outcome = ask(&served, &svid, vec![item("shop.web", &["reports"], 0)]).await.remove(0);
    let Outcome::Refusal(refusal) = outcome else { panic!("{outcome:?}") };
    assert_eq!(Code::from(refusal.code), Code::FailedPrecondition);
    served.ca.put_registration(registration("shop.web", &node("a"), &web())).await.unwrap();
    one(&served, &svid, 0).await;
    let text = served.ca.metrics().encode(Format::Prometheus);
    for line in [
        "alcazar_ca_jwt_svids_asked_total 2",
        "alcazar_ca_jwt_svids_issued_total 1",
        "alcazar_ca_jwt_issuance_seconds_count 1",
        "alcazar_ca_refusals_total{code=\"FAILED_PRECONDITION\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_over_a_restart_and_follow_each_other_without_a_gap() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (served_first, svid) = served(folder.path(), &hands).await;
    let first = one(&served_first, &svid, 0).await;
    let sequence = |bundles: &TrustBundles| bundles.iter().next().unwrap().sequence();
    let before = sequence(&served_first.ca.trust_bundles());
    served_first.stop().await;
    let served = Served::start(folder.path(), &hands).await;
    assert_eq!(sequence(&served.ca.trust_bundles()), before, "nothing changed");
    let again = one(&served, &svid, 0).await;
    assert_eq!(first.key_id, again.key_id);

    // 25 minutes before its end the next one is published; the old one signs on.
    served.stop().await;
    hands.advance(Duration::from_secs(7 * 24 * 3600 - 1500));
    let served = Served::start(folder.path(), &hands).await;
    let authorities = || served.ca.trust_bundles().iter().next().unwrap().jwt_authorities().len();
    assert_eq!((authorities(), sequence(&served.ca.trust_bundles())), (2, before + 1));
    let svid = served.attested(&node("a")).await;
    let old = one(&served, &svid, 3600).await;
    assert_eq!(old.key_id, first.key_id);
    hands.advance(Duration::from_secs(1500));
    let new = one(&served, &svid, 0).await;
    assert_ne!(new.key_id, first.key_id);
    // What the old one signed is good to its end, and then its key is gone.
    hands.advance(Duration::from_secs(2000));
    served.ca.look_after_jwt_svids().await.unwrap();
    assert!(validate_jwt_svid(&old.token, "reports", &served.ca.trust_bundles(), hands.now()).is_ok());
    hands.advance(Duration::from_secs(3600 + 60 + 1500));
    look_for_hours(&served.ca).await;
    assert_eq!(authorities(), 1);
    assert_eq!(jwt_keys(&served.ca).len(), 1);
    served.stop().await;
}

/// As many looks as a CA takes in four hours.
async fn look_for_hours(ca: &Ca) {
    for _ in 0..240 {
        ca.look_after_jwt_svids().await.unwrap();
    }
}

fn jwt_keys(ca: &Ca) -> Vec<String> {
    let labels = ca.keys().labels().unwrap();
    labels.iter().map(|label| label.as_str().to_owned()).filter(|label| label.starts_with("jwt-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ahead_and_back_costs_no_key() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (first, svid) = served(folder.path(), &hands).await;
    let before = one(&first, &svid, 0).await;
    first.stop().await;

    let ca = Ca::open(Config::new(folder.path()), hands.clock()).await.unwrap();
    hands.advance(Duration::from_secs(365 * 24 * 3600));
    for _ in 0..30 {
        ca.look_after_jwt_svids().await.unwrap();
    }
    assert_eq!(jwt_keys(&ca).len(), 2, "a key for the moment, and the one from before the jump");
    hands.back(Duration::from_secs(365 * 24 * 3600));
    ca.look_after_jwt_svids().await.unwrap();
    let served = Served::serve(ca, &hands).await;
    assert_eq!(one(&served, &svid, 0).await.key_id, before.key_id);
    assert!(validate_jwt_svid(&before.token, "reports", &served.ca.trust_bundles(), hands.now()).is_ok());
    // The key of the wrong moment goes when the clock has been right for hours.
    look_for_hours(&served.ca).await;
    assert_eq!(jwt_keys(&served.ca), [format!("jwt-{}", before.key_id)]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_keys_that_nobody_knows_are_destroyed_and_a_store_that_is_away_makes_no_more_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let open = async || Ca::open(Config::new(folder.path()), Hands::new().clock()).await.unwrap();
    let ca = open().await;
    ca.close().await;
    for _ in 0..5 {
        ca.look_after_jwt_svids().await.unwrap_err();
    }
    let [lost] = &*jwt_keys(&ca) else { panic!("{:?}", jwt_keys(&ca)) };
    drop(ca);

    let ca = open().await;
    look_for_hours(&ca).await;
    let kept = jwt_keys(&ca);
    assert!(kept.len() == 1 && kept[0] != *lost, "{kept:?} {lost}");
    assert!(ca.own_bundle().unwrap().jwt_authority(kept[0].trim_start_matches("jwt-")).is_some());
    ca.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_fits_into_no_reply_the_rest_is_for_another_request() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (served, svid) = served(folder.path(), &hands).await;
    // The longest tokens: a thousand of them are more than a client takes in one message.
    let audience = "x".repeat(1024);
    let long = audience.as_str();
    let items = vec![item("shop.web", &[long; 4], 0); 1000];
    let outcomes = ask(&served, &svid, items).await;
    let refused = |outcome: &&Outcome| match outcome {
        Outcome::Refusal(refusal) => {
            assert_eq!(refusal.code, i32::from(Code::ResourceExhausted));
            assert!(refusal.retry_after_ms > 0);
            true
        }
        Outcome::Svid(_) => false,
    };
    let left = outcomes.iter().filter(refused).count();
    assert!((100..900).contains(&left), "{left} of {}", outcomes.len());
    // What was refused was not issued.
    assert_eq!(served.ca.issued(Some(&web()), 2000).await.unwrap().len(), 1000 - left);
    let Outcome::Refusal(refusal) = ask(&served, &svid, vec![item("shop.web", &[long; 5], 0)]).await.remove(0) else {
        panic!("longer than any token is");
    };
    assert_eq!(refusal.code, i32::from(Code::InvalidArgument));
    served.stop().await;
}
