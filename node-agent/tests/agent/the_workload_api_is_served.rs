//! The Workload API as workloads see it: real Unix sockets, a CA behind real mutual TLS.

use std::path::Path;
use std::time::Duration;

use alcazar_api::spiffe::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use alcazar_api::spiffe::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::support::{CaServer, Home, soon};

const REVIEWS: &str = "spiffe://td.example/ns/shop/sa/reviews";

async fn client(socket: &Path) -> SpiffeWorkloadApiClient<Channel> {
    // It is the file that is promised.
    soon(async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    SpiffeWorkloadApiClient::new(soon(endpoint.connect()).await.unwrap())
}

/// With the header that the standard asks for.
fn said<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

fn token(audience: &[&str], spiffe_id: &str) -> JwtsvidRequest {
    JwtsvidRequest { audience: audience.iter().map(|one| (*one).to_owned()).collect(), spiffe_id: spiffe_id.to_owned() }
}

async fn next(stream: &mut Streaming<X509svidResponse>) -> Result<X509svidResponse, Status> {
    Ok(soon(stream.message()).await?.expect("the stream ended without a status"))
}

/// What the kernel says of this process.
fn own_uid() -> String {
    use std::os::unix::fs::MetadataExt;
    format!("uid:{}", std::fs::metadata("/proc/self").unwrap().uid())
}

#[tokio::test]
async fn certificates_come_at_once_and_at_every_change_until_the_registration_goes() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &[&own_uid()]);
    let home = Home::new();
    let token = ca.ca().token();
    let agent = home.agent(ca.address, Some(token)).await;
    // Nothing is registered yet.
    let mut client = client(&home.socket("agent")).await;
    let mut stream = soon(async {
        loop {
            match client.fetch_x509svid(said(X509svidRequest {})).await {
                Ok(stream) => return stream.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::PermissionDenied, "{status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let first = next(&mut stream).await.unwrap();
    assert_eq!((first.svids.len(), first.svids[0].spiffe_id.as_str()), (1, REVIEWS));
    assert_eq!(first.svids[0].bundle, ca.ca().root_der().as_ref());

    ca.change(|ca| ca.registrations[0].ttl = 600);
    let second = next(&mut stream).await.unwrap();
    assert_ne!(second.svids[0].x509_svid, first.svids[0].x509_svid);
    let more = crate::support::ca::Ca::new(alcazar_service::clock::now()).root_der();
    ca.change(|ca| ca.add_root(more.clone()));
    let third = next(&mut stream).await.unwrap();
    assert_eq!(third.svids[0].bundle.len(), first.svids[0].bundle.len() + more.len());

    // Another registration that matches comes beside it, and goes again.
    ca.change(|ca| ca.register("shop.ratings", "ratings", &[&own_uid()]));
    let mut message = next(&mut stream).await.unwrap();
    while message.svids.len() < 2 {
        message = next(&mut stream).await.unwrap();
    }
    ca.change(|ca| ca.registrations.clear());
    let ended = loop {
        match next(&mut stream).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied);
    agent.stop().await;
}

#[tokio::test]
async fn who_does_not_mean_a_workload_api_gets_nothing_of_it() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let join = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(join)).await;
    agent.registration("shop.reviews", |r| r.certificate.is_some()).await;
    let mut client = client(&home.socket("shop.reviews")).await;
    let validate = ValidateJwtsvidRequest { audience: "db".into(), svid: "x".into() };
    let mut wrong = Request::new(X509svidRequest {});
    wrong.metadata_mut().insert("workload.spiffe.io", "yes".parse().unwrap());
    let refused = [
        client.fetch_x509svid(Request::new(X509svidRequest {})).await.map(drop),
        client.fetch_x509svid(wrong).await.map(drop),
        client.fetch_x509_bundles(Request::new(X509BundlesRequest {})).await.map(drop),
        client.fetch_jwt_bundles(Request::new(JwtBundlesRequest {})).await.map(drop),
        client.fetch_jwtsvid(Request::new(token(&["db"], ""))).await.map(drop),
        client.validate_jwtsvid(Request::new(validate)).await.map(drop),
    ];
    for outcome in refused {
        let status = outcome.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("workload.spiffe.io: true"), "{status:?}");
    }
    client.fetch_x509_bundles(said(X509BundlesRequest {})).await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_that_is_revoked_is_followed_by_its_successor() {
    use alcazar_identity::{ListIssuer, Revocation, RevocationList, RevocationReason, SvidLeaf};

    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let agent = home.agent(ca.address, Some(token)).await;
    let mut client = client(&home.socket("shop.reviews")).await;
    let mut stream = client.fetch_x509svid(said(X509svidRequest {})).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap().svids.swap_remove(0);
    // The leaf is the first of the two in the chain.
    let intermediate = ca.ca().own_credentials(alcazar_service::clock::now()).svid().chain()[1].len();
    let leaf = first.x509_svid[..first.x509_svid.len() - intermediate].to_vec();
    let serial = SvidLeaf::parse(&leaf.into()).unwrap().serial().to_owned();

    let now = alcazar_service::clock::now();
    let (issuer, until) = (ListIssuer::Cluster("east".into()), now + Duration::from_secs(3600));
    let mut list = RevocationList::new(crate::support::ca::TRUST_DOMAIN.parse().unwrap(), issuer, 7);
    let revocation = Revocation { reason: RevocationReason::KeyCompromise, since: now, until };
    assert!(list.revoke_serial(&serial, None, revocation));
    ca.change(|ca| ca.revoked = vec![ca.signed(&list, now)]);
    let second = next(&mut stream).await.unwrap().svids.swap_remove(0);
    assert_eq!(second.spiffe_id, REVIEWS);
    assert_ne!((second.x509_svid, second.x509_svid_key), (first.x509_svid, first.x509_svid_key));
    agent.stop().await;
}

#[tokio::test]
async fn tokens_are_fetched_and_validated() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &[&own_uid()]);
    ca.ca().register("shop.ratings", "ratings", &[&own_uid()]);
    ca.ca().register("shop.other", "other", &["uid:4242"]);
    let home = Home::new();
    let join = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(join)).await;
    agent.until(|status| status.registrations.iter().filter(|r| r.certificate.is_some()).count() == 3).await;
    let mut client = client(&home.socket("agent")).await;

    let all = client.fetch_jwtsvid(said(token(&["db", "queue"], ""))).await.unwrap().into_inner().svids;
    let mut names: Vec<_> = all.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["spiffe://td.example/ns/shop/sa/ratings", REVIEWS]);
    let one = client.fetch_jwtsvid(said(token(&["db"], REVIEWS))).await.unwrap().into_inner().svids;
    assert_eq!((one.len(), one[0].spiffe_id.as_str()), (1, REVIEWS));

    let check =
        |audience: &str, svid: &str| said(ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() });
    let good = client.validate_jwtsvid(check("db", &one[0].svid)).await.unwrap().into_inner();
    assert_eq!(good.spiffe_id, REVIEWS);
    let claims = format!("{:?}", good.claims.unwrap().fields.iter().collect::<std::collections::BTreeMap<_, _>>());
    for part in ["\"aud\"", "\"db\"", "\"exp\"", "\"sub\"", "\"nested\"", "BoolValue(true)", "NullValue", "1.5"] {
        assert!(claims.contains(part), "{part}: {claims}");
    }
    for (outcome, code) in [
        (client.validate_jwtsvid(check("queue", &one[0].svid)).await.map(drop), Code::InvalidArgument),
        (client.validate_jwtsvid(check("db", "garbage")).await.map(drop), Code::InvalidArgument),
        (client.validate_jwtsvid(check("", &one[0].svid)).await.map(drop), Code::InvalidArgument),
        (client.fetch_jwtsvid(said(token(&[], ""))).await.map(drop), Code::InvalidArgument),
        (client.fetch_jwtsvid(said(token(&["db", ""], ""))).await.map(drop), Code::InvalidArgument),
        (client.fetch_jwtsvid(said(token(&["db"], "not an id"))).await.map(drop), Code::InvalidArgument),
        (
            client.fetch_jwtsvid(said(token(&["db"], "spiffe://td.example/ns/shop/sa/other"))).await.map(drop),
            Code::PermissionDenied,
        ),
    ] {
        assert_eq!(outcome.unwrap_err().code(), code);
    }
    let mut bundles = client.fetch_jwt_bundles(said(JwtBundlesRequest {})).await.unwrap().into_inner();
    let message = soon(bundles.message()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&message.bundles["spiffe://td.example"]).contains("the-key"));

    // The CA is away: what is kept is given.
    ca.stop().await;
    assert_eq!(
        client.fetch_jwtsvid(said(token(&["db"], REVIEWS))).await.unwrap().into_inner().svids[0].svid,
        one[0].svid
    );
    agent.stop().await;
}

#[tokio::test]
async fn who_matches_and_has_nothing_yet_waits_and_then_hears_why() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &[&own_uid()]);
    ca.ca().refuse_workloads = Some("the CA has no time".into());
    let home = Home::new();
    let join = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(join)).await;
    agent.registration("shop.reviews", |r| r.last_error.is_some()).await;
    let mut client = client(&home.socket("agent")).await;
    let mut stream = client.fetch_x509svid(said(X509svidRequest {})).await.unwrap().into_inner();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("the CA has no time"), "{status:?}");
    // It comes while somebody waits.
    let mut stream = client.fetch_x509svid(said(X509svidRequest {})).await.unwrap().into_inner();
    ca.change(|ca| ca.refuse_workloads = None);
    assert_eq!(next(&mut stream).await.unwrap().svids[0].spiffe_id, REVIEWS);
    agent.stop().await;
}
