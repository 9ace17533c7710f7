//! Nodes hear the CRLs of all who sign: at each revocation, and of an intermediate before it does.

use alcazar_api::ca::v1::{self, revocation_client::RevocationClient};
use alcazar_identity::{CertificateDer, Fingerprint, RevocationReason, verify_crl};
use tokio::time::timeout;
use tonic::Streaming;

use super::hands::{PATIENCE, issue, revoke, serial};
use crate::support::{Hands, Served, node, registration, web};

/// What is told next that is so.
async fn until(stream: &mut Streaming<v1::Crls>, good: impl Fn(&v1::Crls) -> bool) -> v1::Crls {
    loop {
        let told = timeout(PATIENCE, stream.message()).await.expect("a push").unwrap().expect("a message");
        if good(&told) {
            return told;
        }
    }
}

/// Whose they are, all good by the bundle.
fn issuers(served: &Served, told: &v1::Crls) -> Vec<Fingerprint> {
    let bundles = served.ca.trust_bundles();
    let bundle = bundles.get(served.ca.trust_domain()).unwrap();
    let one = |one: &v1::Crl| {
        let chain: Vec<_> = one.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        verify_crl(&one.crl, &chain, bundle, served.hands.now()).unwrap().issuer()
    };
    told.crls.iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_hears_each_revocation_and_of_an_intermediate_before_it_signs() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let leaf = issue(&served, &one, "shop.web").await.unwrap();
    let old = served.ca.fingerprints().intermediate.fingerprint;
    let mut client = RevocationClient::new(served.channel(&one));
    let mut stream = client.watch_crls(v1::WatchCrlsRequest {}).await.unwrap().into_inner();
    let first = until(&mut stream, |told| told.complete).await;
    assert_eq!(issuers(&served, &first), [old]);

    // Serial numbers are of 16 random bytes, written without leading zeros.
    let digits = &leaf.serial()[leaf.serial().len() % 2..];
    let byte = |at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
    let number: Vec<u8> = (0..digits.len() / 2).map(byte).collect();
    let names = |told: &v1::Crls| told.crls.iter().any(|one| one.crl.windows(number.len()).any(|part| part == number));
    assert!(number.len() >= 12 && !names(&first));
    revoke(&served, serial(leaf.serial()), RevocationReason::KeyCompromise).await.unwrap();
    let told = until(&mut stream, names).await;
    assert!(told.complete && issuers(&served, &told) == [old]);

    let root = served.ca.fingerprints().root.fingerprint;
    let next = served.ca.make_intermediate(root).await.unwrap().fingerprint;
    let hears = async {
        let told = until(&mut stream, |told| told.crls.len() == 2).await;
        assert_eq!(served.ca.fingerprints().intermediate.fingerprint, old, "nothing signs before its CRL was told");
        assert!(told.complete && issuers(&served, &told).contains(&next));
    };
    let (activated, ()) = tokio::join!(served.ca.activate(next), hears);
    activated.unwrap();
    assert_eq!(served.ca.fingerprints().intermediate.fingerprint, next);
    served.stop().await;
}
