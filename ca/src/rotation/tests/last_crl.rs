//! What is left of an intermediate that a rotation has replaced: the last list of what was revoked of it.

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, RevocationReason, SpiffeId};
use alcazar_mtls::{Side, verify_peer};
use http::HeaderMap;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::UnixTime;
use webpki::{CertRevocationList, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder};

use super::{
    super::Kind,
    whole::{NOON, Whole},
};
use crate::{config::Config, profile::ProfileConfig, records::Registration, requests::Reply, revocation::Subject};

const HOUR: u64 = 3600;
const LIFE: u64 = 12 * HOUR;

/// The profile that is the default is not the longest.
fn long(config: &mut Config) {
    config.certificates.max_ttl = Duration::from_secs(LIFE);
    let short = ProfileConfig { max_ttl: Some(Duration::from_secs(HOUR)), ..ProfileConfig::default() };
    config.profiles.insert("default".into(), short);
    config.profiles.insert("long".into(), ProfileConfig::default());
}

/// What was allowed before is in use yet.
fn shorter(config: &mut Config) {
    long(config);
    config.certificates.max_ttl = Duration::from_secs(2 * HOUR);
}

fn csr() -> Vec<u8> {
    CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

/// Certificates of a workload that live for as long as any does.
async fn leaves(whole: &Whole) -> [Reply; 2] {
    let node: SpiffeId = "spiffe://cluster.local/node/local/one".parse().unwrap();
    let (web, selectors) = ("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(), ["uid:1".parse().unwrap()]);
    let life = Some(Duration::from_secs(LIFE));
    let registration = Registration::new("shop.web".parse().unwrap(), node.clone(), web, selectors, life).unwrap();
    whole.ca.put_registration(registration.with_profile(Some("long".into())).unwrap()).await.unwrap();
    let token = whole.ca.create_join_token(&node, None).await.unwrap().0.reveal();
    let own = whole.ca.attest(None, &token, &csr(), None).await.unwrap();
    let peer = verify_peer(&own.chain, &whole.ca.trust_bundles(), Side::Client, at(0)).unwrap();
    let caller = whole.ca.calling_node(&HeaderMap::new(), Some(&peer)).await.unwrap();
    let issue = async || whole.ca.issue_registered(&caller, "shop.web", &csr()).await.unwrap();
    let leaves = [issue().await, issue().await];
    // A rotation does not wait for a node that is gone.
    whole.ca.end_lineage(&node).await.unwrap();
    leaves
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOON + second)
}

/// What somebody says who knows the root and goes by a list that is good at the moment, or by none.
fn verdict(leaf: &Reply, root: &CertificateDer<'_>, crl: &[u8], second: u64) -> Result<(), webpki::Error> {
    let crl = CertRevocationList::from(OwnedCertRevocationList::from_der(crl).unwrap());
    let lists = [&crl];
    let options = RevocationOptionsBuilder::new(&lists).unwrap().with_depth(RevocationCheckDepth::EndEntity);
    let options = options.with_expiration_policy(webpki::ExpirationPolicy::Enforce).build();
    let anchors = [webpki::anchor_from_trusted_cert(root).unwrap()];
    let (leaf, above) = leaf.chain.split_first().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOON + second));
    let (entity, usage) = (webpki::EndEntityCert::try_from(leaf).unwrap(), webpki::KeyUsage::client_auth());
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    entity.verify_for_usage(algorithms, &anchors, above, now, usage, Some(options), None).map(drop)
}

#[tokio::test(start_paused = true)]
async fn the_last_crl_of_an_intermediate_is_good_for_as_long_as_a_leaf_of_it_can_live() {
    for kind in [Kind::Intermediate, Kind::Root] {
        let mut whole = Whole::open(long).await;
        let [honest, stolen] = leaves(&whole).await;
        assert_eq!(honest.not_after, at(LIFE));
        let subject = Subject::Serial(serial(&stolen));
        whole.ca.revoke(subject, RevocationReason::KeyCompromise, "a test").await.unwrap();
        let hierarchy = whole.ca.hierarchy();
        let (old, root) = (hierarchy.intermediate().info().fingerprint, hierarchy.root().certificate.clone());
        let is_told = async |whole: &Whole, second: u64| {
            let crl = whole.ca.crl(old).await.unwrap();
            assert_eq!(verdict(&honest, &root, &crl, second), Ok(()), "{kind}, {second}");
            let revoked = verdict(&stolen, &root, &crl, second);
            assert_eq!(revoked, Err(webpki::Error::CertRevoked), "{kind}, {second}");
        };
        is_told(&whole, 0).await;

        whole.change = shorter;
        whole.open_again().await;
        rotate(&mut whole, kind).await;
        let here = whole.ca.authorities().await.unwrap().intermediates;
        assert!(here.iter().all(|one| one.fingerprint != old), "its key is gone");
        for second in [0, LIFE / 2, LIFE] {
            whole.set_clock(i64::try_from(second).unwrap());
            is_told(&whole, second).await;
            whole.open_again().await;
            is_told(&whole, second).await;
        }
        // Another rotation leaves it, and when nobody can hold a leaf of it any more, it is gone.
        rotate(&mut whole, kind).await;
        is_told(&whole, LIFE).await;
        whole.set_clock(i64::try_from(LIFE + HOUR).unwrap());
        let gone = whole.ca.crl(old).await.unwrap_err().to_string();
        assert!(gone.contains("key is not here"), "{kind}: {gone}");
        whole.ca.close().await;
    }
}

async fn rotate(whole: &mut Whole, kind: Kind) {
    whole.ca.start_rotation(kind).await.unwrap();
    whole.run_to_the_end().await;
}

fn serial(of: &Reply) -> String {
    alcazar_identity::SvidLeaf::parse(of.chain.first().unwrap()).unwrap().serial().to_owned()
}
