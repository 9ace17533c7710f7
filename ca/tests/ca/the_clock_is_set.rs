//! A clock that jumps while the CA runs, by an hour and by a year, ahead and back: what is issued right afterwards is right, and
//! nothing is destroyed or forgotten for it.

use std::{path::Path, time::Duration};

use alcazar_api::{
    ca::v1::{self, issue_jwt_svid_result::Outcome, jwt_client::JwtClient},
    spiffe::validate_jwt_svid,
};
use alcazar_ca::ledger::verify_files;
use alcazar_identity::{RevocationReason, SpiffeId, X509Svid};
use alcazar_mtls::{Side, verify_peer};
use tonic::Status;

use crate::revocation::hands::{Follower, identity, issue, peer, revoke, serial};
use crate::support::{Hands, Served, csr, id, key, node, registration, soon, svid};

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Believed by its own CA, at this moment, on both sides of a connection.
fn check(served: &Served, svid: &X509Svid) {
    let now = served.hands.now();
    for side in [Side::Client, Side::Server] {
        let verdict = verify_peer(svid.chain(), &served.ca.trust_bundles(), side, now);
        assert!(verdict.is_ok(), "{:?}", verdict.err());
    }
    assert!(svid.validity().not_after() >= now + Duration::from_secs(600));
}

async fn token(served: &Served, of: &X509Svid, registration: &str) -> Result<String, String> {
    let item = v1::IssueJwtSvid { registration_id: registration.into(), audience: vec!["reports".into()], ttl: 0 };
    let mut client = JwtClient::new(served.channel(of));
    let reply = client.issue_jwt_svids(v1::IssueJwtSvidsRequest { items: vec![item] }).await;
    match reply.map_err(words)?.into_inner().results.remove(0).outcome {
        Some(Outcome::Svid(issued)) => Ok(issued.token),
        other => Err(format!("{other:?}")),
    }
}

fn words(status: Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Everything that a CA does, at the moment that its clock shows; what it gave out.
async fn everything(served: &Served, name: &str) -> Vec<String> {
    let this = node(name);
    let workload = |account: &str| -> SpiffeId { id(&format!("spiffe://cluster.local/ns/{name}/sa/{account}")) };
    // A join token that is made now admits now, and the node renews.
    let one = soon("a node joins", async || {
        let (join, key) = (served.token(&this).await, key());
        served.attest(&join, &key).await.map(|issued| svid(&issued, &key)).map_err(words)
    })
    .await;
    check(served, &one);
    let next = key();
    let issued = served.renew(&one, &next).await.unwrap();
    let one = svid(&issued, &next);
    check(served, &one);
    // Workloads, and a revocation that bars one of them at once and for as long as it stands.
    let mut serials = vec![one.serial().to_owned()];
    for account in ["web", "db"] {
        let of = registration(&format!("{name}.{account}"), &this, &workload(account));
        served.ca.put_registration(of).await.unwrap();
        let issued = issue(served, &one, &format!("{name}.{account}")).await.unwrap();
        check(served, &issued);
        serials.push(issued.serial().to_owned());
    }
    let jwt = soon("a token", async || token(served, &one, &format!("{name}.web")).await).await;
    validate_jwt_svid(&jwt, "reports", &served.ca.trust_bundles(), served.hands.now()).unwrap();
    revoke(served, identity(&workload("db")), RevocationReason::KeyCompromise).await.unwrap();
    issue(served, &one, &format!("{name}.db")).await.unwrap_err();
    token(served, &one, &format!("{name}.db")).await.unwrap_err();
    serials
}

async fn recorded(served: &Served, serials: &[String]) {
    for serial in serials {
        assert!(served.ca.find_serial(serial).await.unwrap().is_some(), "{serial} is not on record");
    }
}

/// Sets the clock, does everything, and sets it right again.
async fn jump(folder: &Path, set: impl Fn(&Hands), right: impl Fn(&Hands)) {
    let hands = Hands::new();
    let served = Served::start(folder, &hands).await;
    let before = served.ca.fingerprints();
    // Older than any of the jumps by an hour: nothing is good before the CA was made.
    hands.advance(2 * HOUR);
    let mut serials = everything(&served, "before").await;
    let old = soon("a token", async || {
        let one = served.attested(&node("before")).await;
        token(&served, &one, "before.web").await
    })
    .await;

    let gone = served.attested(&node("gone")).await;
    revoke(&served, serial(gone.serial()), RevocationReason::KeyCompromise).await.unwrap();

    set(&hands);
    serials.extend(everything(&served, "during").await);
    assert_eq!(served.ca.fingerprints().root, before.root);
    recorded(&served, &serials).await;

    right(&hands);
    serials.extend(everything(&served, "after").await);
    recorded(&served, &serials).await;
    assert_eq!(served.ca.fingerprints().root, before.root);
    // What was given out before is as good as it was, and what was revoked stays so.
    validate_jwt_svid(&old, "reports", &served.ca.trust_bundles(), hands.now()).unwrap();
    let one = served.attested(&node("before")).await;
    let stolen = peer(&served, &gone);
    Follower::start(&served, &one).await.until(&served, |held| stolen.revoked_by(held).is_some()).await;
    issue(&served, &one, "before.db").await.unwrap_err();
    check(&served, &issue(&served, &one, "before.web").await.unwrap());

    // And over a start.
    served.stop().await;
    let report = verify_files(folder.join("ledger")).unwrap();
    assert_eq!(report.damages, []);
    let served = Served::start(folder, &hands).await;
    recorded(&served, &serials).await;
    serials.extend(everything(&served, "again").await);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_ahead_and_back() {
    jump(tempfile::tempdir().unwrap().path(), |hands| hands.advance(HOUR), |hands| hands.back(HOUR)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_back_and_ahead() {
    jump(tempfile::tempdir().unwrap().path(), |hands| hands.back(HOUR), |hands| hands.advance(HOUR)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_year_ahead_and_back() {
    jump(tempfile::tempdir().unwrap().path(), |hands| hands.advance(YEAR), |hands| hands.back(YEAR)).await;
}

/// Back to before there was a root: nothing that is issued would be good, so nothing is, and it is said; set right, all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_year_back_and_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let before = served.ca.fingerprints();
    let mut serials = everything(&served, "before").await;
    let one = served.attested(&node("before")).await;
    let size = served.ca.tree_head().await.unwrap().head.size;

    hands.back(YEAR);
    // Whoever shares the CA's clock does not even believe its certificate; whoever has the right time is told.
    served.attest(&served.token(&node("during")).await, &key()).await.unwrap_err();
    let right = Hands::new();
    let reply = served.by(&right, &one).renew_node(v1::RenewNodeRequest { csr: csr(&key()) }).await;
    reply.unwrap_err();
    drop(served.ca.look_after_hierarchy().await);
    assert_eq!(served.ca.fingerprints(), before, "nothing is made in place of what is not good yet");
    assert_eq!(served.ca.tree_head().await.unwrap().head.size, size, "nothing was issued");

    hands.advance(YEAR);
    check(&served, &one);
    served.renew(&one, &key()).await.unwrap();
    serials.extend(everything(&served, "after").await);
    recorded(&served, &serials).await;
    assert_eq!(served.ca.fingerprints(), before);
    served.stop().await;
}
