//! What is revoked in another trust domain is not believed there either.

use std::{fs, time::Duration};

use alcazar_api::{ca::v1, spiffe::write_bundle};
use alcazar_ca::{BundleEndpointConfig, Config, EndpointProfile, FederationConfig, RelationProfile};
use alcazar_identity::RevocationReason;
use alcazar_service::process::chain;

use super::hands::{operator, revoke, serial};
use crate::support::{Hands, Served};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_endpoint_whose_certificate_is_revoked_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let at = |name: &str| Config { trust_domain: name.parse().unwrap(), ..Config::new(folder.path().join(name)) };
    let endpoint = BundleEndpointConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        profile: EndpointProfile::Spiffe,
        refresh_hint: Duration::from_secs(60),
    };
    let theirs = Served::start_with(Config { bundle_endpoint: Some(endpoint), ..at("one.example") }, &hands).await;
    let bundle_file = folder.path().join("one.json");
    fs::write(&bundle_file, write_bundle(&theirs.ca.own_bundle().unwrap()).unwrap()).unwrap();
    let relation = FederationConfig {
        trust_domain: "one.example".into(),
        url: format!("https://localhost:{}/bundle.json", theirs.ca.bundle_endpoint().unwrap().port()),
        profile: RelationProfile::Spiffe {
            endpoint_spiffe_id: theirs.ca.id().to_string(),
            bundle_file: Some(bundle_file),
        },
    };
    let ours = Served::start_with(Config { federation: vec![relation], ..at("two.example") }, &hands).await;
    let other = theirs.ca.trust_domain().clone();
    ours.ca.poll_federated(&other).await.unwrap();

    let serving = theirs.ca.serving_credentials();
    revoke(&theirs, serial(serving.svid().serial()), RevocationReason::KeyCompromise).await.unwrap();
    let lists = operator(&theirs).await.export_revocations(v1::ExportRevocationsRequest {}).await.unwrap().into_inner();
    let taken = operator(&ours).await.import_revocations(lists).await.unwrap().into_inner().taken;
    assert_eq!(taken, ["cluster:local of one.example"]);
    let refused = chain(&ours.ca.poll_federated(&other).await.unwrap_err());
    assert!(refused.contains("revoked"), "{refused}");
    ours.stop().await;
    theirs.stop().await;
}
