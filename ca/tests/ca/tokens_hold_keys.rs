//! Keys in a PKCS#11 token, by SoftHSM: a CA and a root that never see their keys, and a token that goes and comes back.
//!
//! SoftHSM finds its tokens by an environment variable, so each test runs itself again as a process of its own.
#![allow(clippy::disallowed_methods, reason = "a test stops at the first surprise, and asks in which process it is")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use alcazar_ca::{
    Ca, Config, KeyAlgorithm, KeyError, KeyLabel, KeyStore, KeysConfig, Pkcs11Config, Pkcs11Keys,
    ceremony::{RootFolder, RootKey},
};
use alcazar_service::{Health, process::chain};
use tonic::Code;

use crate::support::{Hands, Served, key, node, ready};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Runs the test of this name again where SoftHSM's tokens are in a folder of its own; that folder, where this is it.
fn with_tokens(test: &str) -> Option<PathBuf> {
    if let Ok(configuration) = std::env::var("SOFTHSM2_CONF") {
        return Some(Path::new(&configuration).parent().unwrap().to_owned());
    }
    let folder = tempfile::tempdir().unwrap();
    let configuration = folder.path().join("softhsm2.conf");
    fs::create_dir(folder.path().join("tokens")).unwrap();
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", folder.path().join("tokens").display());
    fs::write(&configuration, text).unwrap();
    fs::write(folder.path().join("pin"), "1234567\n").unwrap();
    fs::set_permissions(folder.path().join("pin"), fs::Permissions::from_mode(0o600)).unwrap();
    let token = ["--init-token", "--free", "--label", "vault", "--pin", "1234567", "--so-pin", "7654321"];
    let made = Command::new("softhsm2-util").args(token).env("SOFTHSM2_CONF", &configuration).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("tokens_hold_keys::{test}"), "--nocapture"]).env("SOFTHSM2_CONF", &configuration);
    let outcome = again.output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stdout) + String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success() && said.contains("1 passed"), "{said}");
    None
}

fn token(folder: &Path) -> Pkcs11Config {
    Pkcs11Config { module: MODULE.into(), token_label: "vault".into(), pin_file: folder.join("pin") }
}

fn label(text: &str) -> KeyLabel {
    text.parse().unwrap()
}

fn config(folder: &Path) -> Config {
    let keys = KeysConfig { pkcs11: Some(token(folder)), ..KeysConfig::default() };
    Config { keys, ..Config::new(folder.join("data")) }
}

#[test]
fn a_key_is_made_in_the_token_and_stays_there() {
    let Some(folder) = with_tokens("a_key_is_made_in_the_token_and_stays_there") else { return };
    let keys = Pkcs11Keys::new(token(&folder), "one");
    for (name, algorithm) in [("root", KeyAlgorithm::P256), ("large", KeyAlgorithm::P384)] {
        let made = keys.generate_with(&label(name), algorithm).unwrap();
        assert!(matches!(keys.generate(&label(name)), Err(KeyError::Exists { .. })));
        let found = keys.open(&label(name)).unwrap();
        assert!(found.is_remote());
        assert_eq!(found.public_key(), made.public_key());
        // OpenSSL verifies what it signs, by a certificate request.
        let request = rcgen_request(&found);
        fs::write(folder.join("request.pem"), request).unwrap();
        let verified = Command::new("openssl")
            .current_dir(&folder)
            .args(["req", "-in", "request.pem", "-noout", "-verify"])
            .output();
        let verified = verified.unwrap();
        assert!(verified.status.success(), "{algorithm}: {}", String::from_utf8_lossy(&verified.stderr));
    }
    // The token says itself that it gives no key away.
    use cryptoki::object::{Attribute, AttributeType, ObjectClass};
    let module = cryptoki::context::Pkcs11::new(MODULE).unwrap();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let session = module.open_ro_session(slot).unwrap();
    let private = session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]).unwrap();
    assert_eq!(private.len(), 2);
    for object in private {
        let asked = [AttributeType::Sensitive, AttributeType::Extractable, AttributeType::NeverExtractable];
        let said = session.get_attributes(object, &asked).unwrap();
        let promised = [Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::NeverExtractable(true)];
        assert!(promised.iter().all(|promise| said.contains(promise)), "{said:?}");
    }
    drop(session);
    // Another CA in the same token sees none of them.
    let other = Pkcs11Keys::new(token(&folder), "other");
    assert!(other.labels().unwrap().is_empty());
    assert!(matches!(other.open(&label("root")), Err(KeyError::Missing { .. })));
    assert_eq!(keys.labels().unwrap(), [label("large"), label("root")]);
    keys.remove(&label("large")).unwrap();
    keys.remove(&label("large")).unwrap();
    assert_eq!(keys.labels().unwrap(), [label("root")]);
}

/// A request that a signer signs.
fn rcgen_request(signer: &Arc<dyn alcazar_ca::Signer>) -> String {
    struct Handle(Arc<dyn alcazar_ca::Signer>);
    impl rcgen::PublicKeyData for Handle {
        fn der_bytes(&self) -> &[u8] {
            self.0.public_key()
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            self.0.algorithm()
        }
    }
    impl rcgen::SigningKey for Handle {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            self.0.sign(message).map_err(|_error| rcgen::Error::RemoteKeyError)
        }
    }
    let request = rcgen::CertificateParams::default().serialize_request(&Handle(signer.clone())).unwrap();
    request.pem().unwrap()
}

#[test]
fn a_token_that_goes_and_comes_back_is_used_again() {
    let Some(folder) = with_tokens("a_token_that_goes_and_comes_back_is_used_again") else { return };
    let keys = Pkcs11Keys::new(token(&folder), "one");
    let signer = keys.generate(&label("root")).unwrap();
    signer.sign(b"message").unwrap();
    // Somebody else in the process closes the module, or logs everybody out.
    let module = cryptoki::context::Pkcs11::new(MODULE).unwrap();
    module.finalize().unwrap();
    signer.sign(b"message").unwrap();
    // The token is pulled out, and put in again.
    let (tokens, away) = (folder.join("tokens"), folder.join("away"));
    cryptoki::context::Pkcs11::new(MODULE).unwrap().finalize().unwrap();
    fs::rename(&tokens, &away).unwrap();
    fs::create_dir(&tokens).unwrap();
    for _ in 0..3 {
        let error = chain(&signer.sign(b"message").unwrap_err());
        assert!(error.contains("vault") && error.contains("cannot sign") && error.contains("no token"), "{error}");
        assert!(keys.open(&label("root")).is_err());
    }
    fs::remove_dir(&tokens).unwrap();
    fs::rename(&away, &tokens).unwrap();
    signer.sign(b"message").unwrap();
    assert_eq!(keys.open(&label("root")).unwrap().public_key(), signer.public_key());
    // Many at once, while the module is closed under them.
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..200).filter(|_| signer.sign(b"message").is_ok()).count())).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 200);
        }
    });
}

#[test]
fn a_ca_whose_token_is_away_is_not_ready_and_is_again_when_it_is_back() {
    let name = "a_ca_whose_token_is_away_is_not_ready_and_is_again_when_it_is_back";
    let Some(folder) = with_tokens(name) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let served = Served::start_with(config(&folder), &Hands::new()).await;
        let (one, next) = (served.attested(&node("one")).await, key());
        served.part_is("issuance", ready).await;
        let (tokens, away) = (folder.join("tokens"), folder.join("away"));
        fs::rename(&tokens, &away).unwrap();
        fs::create_dir(&tokens).unwrap();
        // SoftHSM looks at its folder when the module is opened.
        cryptoki::context::Pkcs11::new(MODULE).unwrap().finalize().unwrap();
        assert_eq!(served.renew(&one, &next).await.unwrap_err().code(), Code::Unavailable);
        let told = |health: &Health| matches!(health, Health::NotReady(why) if why.contains("no token of this label"));
        served.part_is("issuance", told).await;
        fs::remove_dir(&tokens).unwrap();
        fs::rename(&away, &tokens).unwrap();
        // Nobody asks for anything, since it is not ready.
        served.part_is("issuance", ready).await;
        served.renew(&one, &next).await.unwrap();
        served.stop().await;
    });
}

#[test]
fn what_is_configured_wrongly_is_told_and_a_wrong_pin_is_tried_once() {
    let Some(folder) = with_tokens("what_is_configured_wrongly_is_told_and_a_wrong_pin_is_tried_once") else { return };
    let refused = |config: Pkcs11Config| chain(&Pkcs11Keys::new(config, "one").labels().unwrap_err());
    let error = refused(Pkcs11Config { module: "/nowhere.so".into(), ..token(&folder) });
    assert!(error.contains("keys.pkcs11.module"), "{error}");
    let error = refused(Pkcs11Config { token_label: "volt".into(), ..token(&folder) });
    assert!(error.contains("tokenLabel") && error.contains("vault"), "{error}");
    fs::write(folder.join("pin"), "7777777\n").unwrap();
    let keys = Pkcs11Keys::new(token(&folder), "one");
    for _ in 0..20 {
        let error = chain(&keys.labels().unwrap_err());
        assert!(error.contains("refuses the PIN"), "{error}");
    }
    // Corrected, it works without a restart: the token was not locked.
    fs::write(folder.join("pin"), "1234567\n").unwrap();
    assert!(keys.labels().unwrap().is_empty());
}

#[test]
fn a_ca_and_an_offline_root_keep_their_keys_in_the_token() {
    let Some(folder) = with_tokens("a_ca_and_an_offline_root_keep_their_keys_in_the_token") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let hands = Hands::new();
        let served = Served::start_with(config(&folder), &hands).await;
        let prints = served.ca.fingerprints();
        let one = served.attested(&node("one")).await;
        served.renew(&one, &key()).await.unwrap();
        served.stop().await;
        let files = fs::read_dir(folder.join("data/hierarchy")).unwrap();
        assert!(files.into_iter().all(|file| !file.unwrap().file_name().to_str().unwrap().contains("key")));
        let ca = Ca::open(config(&folder), hands.clock()).await.unwrap();
        assert_eq!(ca.fingerprints(), prints);
        hands.advance(Duration::from_secs(190 * 24 * 3600));
        ca.look_after_hierarchy().await.unwrap();
        assert_ne!(ca.fingerprints().intermediate, prints.intermediate);
        let labels = ca.keys().labels().unwrap();
        let of_the_hierarchy =
            |labels: &[KeyLabel]| labels.iter().filter(|it| !it.as_str().starts_with("jwt-")).count();
        assert_eq!(
            of_the_hierarchy(&labels),
            3,
            "the old intermediate's key signs CRLs while its leaves live: {labels:?}"
        );
        // Two looks, hours apart: what is over is not believed at once.
        for _ in 0..2 {
            hands.advance(Duration::from_secs(26 * 3600));
            ca.look_after_hierarchy().await.unwrap();
        }
        let labels = ca.keys().labels().unwrap();
        assert_eq!(of_the_hierarchy(&labels), 2, "the old intermediate's key is gone from the token: {labels:?}");
        ca.close().await;
    });
    // An offline root in the same token.
    let keys: Arc<dyn KeyStore> = Arc::new(Pkcs11Keys::new(token(&folder), "cluster.local"));
    let root = RootKey { keys: keys.clone(), label: label("root-1") };
    let (life, now) = (Duration::from_secs(365 * 24 * 3600), Hands::new().now());
    let made =
        RootFolder::init(&folder.join("root"), &"cluster.local".parse().unwrap(), &root, KeyAlgorithm::P384, life, now);
    let made = made.unwrap().info().clone();
    assert_eq!(RootFolder::open(&folder.join("root"), &*keys).unwrap().info(), &made);
    alcazar_ca::ceremony::verify_transcript(&folder.join("root"), &made.certificate).unwrap();
}
