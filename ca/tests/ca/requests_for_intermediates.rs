//! What `alcazar ca request` asks for, and `alcazar ca install` brings: each key is certified once.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use alcazar_ca::{
    Ca, Config, FileKeys, KeyAlgorithm, KeyHash,
    ceremony::{self, RootFolder, RootKey},
};
use alcazar_identity::Fingerprint;
use alcazar_service::process::chain;

use crate::support::{Hands, Served, node};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn root(folder: &Path, hands: &Hands) -> RootFolder {
    let keys = Arc::new(FileKeys::sealed(folder, b"a long passphrase".to_vec().into()));
    let key = RootKey { keys, label: "root".parse().unwrap() };
    let domain = "cluster.local".parse().unwrap();
    RootFolder::init(folder, &domain, &key, KeyAlgorithm::P256, 3650 * DAY, hands.now()).unwrap()
}

/// Asks, has it signed, and installs the set; the hash of the key.
fn round(config: &Config, by: &RootFolder, out: &Path, hands: &Hands) -> KeyHash {
    let asked = ceremony::request(config, &config.key_store()).unwrap();
    let again = ceremony::request(config, &config.key_store()).unwrap();
    assert_eq!(asked, again, "it has not been answered");
    let proposal = by.propose(&asked.file, 365 * DAY, None, hands.now()).unwrap();
    by.sign(&proposal, out).unwrap();
    ceremony::install(config, out, hands.now()).unwrap();
    asked.key_hash
}

fn roots(ca: &Ca) -> Vec<Fingerprint> {
    ca.trust_bundles().get(ca.trust_domain()).unwrap().roots().map(|root| Fingerprint::of(root)).collect()
}

#[tokio::test]
async fn each_renewal_is_by_another_key_and_the_old_ones_are_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let hands = Hands::new();
    let (config, by) = (Config::new(at("data")), root(&at("root"), &hands));
    let mut keys = vec![round(&config, &by, &at("set"), &hands)];
    let ca = Ca::open(config.clone(), hands.clock()).await.unwrap();
    let presence = ca.replicas().await.unwrap().remove(0).presence;
    assert_eq!((presence.roots, presence.shared), (vec![], false), "the root's key is elsewhere");
    for _ in 0..3 {
        hands.advance(200 * DAY);
        keys.push(round(&config, &by, &at("set"), &hands));
        let before = ca.fingerprints().intermediate;
        ca.look_after_hierarchy().await.unwrap();
        assert_ne!(ca.fingerprints().intermediate, before);
    }
    let different: std::collections::BTreeSet<_> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(different.len(), 4, "no key is asked for twice: {keys:?}");
    // The keys of those that were replaced go when their leaves are over.
    hands.advance(2 * DAY);
    ca.look_after_hierarchy().await.unwrap();
    hands.advance(Duration::from_secs(3600));
    ca.look_after_hierarchy().await.unwrap();
    ca.close().await;
    let names = fs::read_dir(at("data").join("hierarchy")).unwrap().map(|file| file.unwrap().file_name());
    let names: Vec<_> = names.map(|name| name.into_string().unwrap()).filter(|n| n.contains("intermediate-")).collect();
    let count = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
    assert_eq!((count("-key.pem"), count(".csr")), (1, 1), "{names:?}");
    // Started again, it goes on with the one that is left.
    Ca::open(config, hands.clock()).await.unwrap().close().await;
}

#[tokio::test]
async fn a_set_is_refused_where_the_key_of_its_request_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let hands = Hands::new();
    let (config, by) = (Config::new(at("data")), root(&at("root"), &hands));
    let asked = ceremony::request(&config, &config.key_store()).unwrap();
    let key = asked.file.with_file_name(format!("{}-key.pem", asked.file.file_stem().unwrap().to_str().unwrap()));
    let proposal = by.propose(&asked.file, 365 * DAY, None, hands.now()).unwrap();
    by.sign(&proposal, &at("set")).unwrap();
    fs::rename(&key, at("elsewhere")).unwrap();
    let error = chain(&ceremony::install(&config, &at("set"), hands.now()).unwrap_err());
    assert!(error.contains("restore it from a backup"), "{error}");
    assert!(!at("data").join("cacerts").exists(), "nothing is changed");
    fs::rename(at("elsewhere"), &key).unwrap();
    ceremony::install(&config, &at("set"), hands.now()).unwrap();
}

/// The key of what signed before is here, so that even a start goes on with it until everybody has heard of the new root.
#[tokio::test]
async fn a_new_offline_root_waits_over_a_start_until_everybody_has_heard_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let hands = Hands::new();
    let config = Config::new(at("data"));
    let first = root(&at("root"), &hands);
    round(&config, &first, &at("set"), &hands);
    let served = Served::start_with(config.clone(), &hands).await;
    let one = served.attested(&node("one")).await;
    let before = served.ca.fingerprints();
    served.stop().await;

    let second = root(&at("second"), &hands);
    round(&config, &second, &at("set2"), &hands);
    let served = Served::start_with(config.clone(), &hands).await;
    assert_eq!(served.ca.fingerprints(), before, "nobody has heard of the new root");
    assert_eq!(roots(&served.ca).len(), 2);
    served.renew(&one, &crate::support::key()).await.unwrap();
    // Whose certificate is over joins anew: nobody is left who has not heard, when the clock has said so for an hour.
    hands.advance(2 * DAY);
    served.ca.look_after_hierarchy().await.unwrap();
    assert_eq!(served.ca.fingerprints(), before, "the clock may be wrong");
    for _ in 0..20 {
        hands.advance(Duration::from_secs(180));
        served.ca.look_after_hierarchy().await.unwrap();
    }
    assert_eq!(served.ca.fingerprints().root.fingerprint, second.info().fingerprint);
    assert!(served.ca.crl(before.intermediate.fingerprint).await.is_ok(), "leaves of the old one may be alive");
    served.stop().await;
}
