//! A CA finds again what it left, however it ended, and says what to do when it cannot.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use alcazar_ca::{Ca, Config, ConfiguredRegistration, OpenError};
use alcazar_service::process;

use crate::support::{Hands, Served, key, node, web};

async fn open(folder: &Path) -> Result<Ca, OpenError> {
    Ca::open(Config::new(folder), Hands::new().clock()).await
}

/// A closed CA's files.
async fn left(folder: &Path) -> alcazar_ca::Fingerprints {
    let ca = open(folder).await.unwrap();
    let prints = ca.fingerprints();
    ca.close().await;
    prints
}

#[tokio::test]
async fn a_second_start_finds_the_same_root_and_lineages() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let prints = served.ca.fingerprints();
    let one = served.attested(&node("one")).await;
    let unused = served.token(&node("two")).await;
    served.stop().await;

    let served = Served::start(folder.path(), &hands).await;
    assert_eq!(served.ca.fingerprints(), prints);
    served.renew(&one, &key()).await.unwrap();
    served.attest(&unused, &key()).await.unwrap();

    let error = open(folder.path()).await.err().unwrap();
    assert!(process::chain(&error).contains("already in use by another process"), "{}", process::chain(&error));
    served.stop().await;
}

#[tokio::test]
async fn keys_are_private() {
    let folder = tempfile::tempdir().unwrap();
    left(folder.path()).await;
    let mut keys = 0;
    for file in fs::read_dir(folder.path().join("hierarchy")).unwrap() {
        let path = file.unwrap().path();
        if path.to_str().unwrap().ends_with("-key.pem") {
            keys += 1;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
    }
    assert_eq!(keys, 2);
}

#[tokio::test]
async fn a_key_that_others_can_read_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    left(folder.path()).await;
    for file in fs::read_dir(folder.path().join("hierarchy")).unwrap() {
        let path = file.unwrap().path();
        let allow = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if !path.to_str().unwrap().ends_with("-key.pem") {
            continue;
        }
        for mode in [0o644, 0o640, 0o602] {
            allow(mode);
            let error = process::chain(&open(folder.path()).await.err().unwrap());
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "it is for a person to mend");
        }
        allow(0o400);
        left(folder.path()).await;
    }
}

#[tokio::test]
async fn a_folder_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (theirs, fresh) = (folder.path().join("theirs"), folder.path().join("fresh"));
    fs::create_dir_all(theirs.join("store")).unwrap();
    fs::write(theirs.join("thesis.tex"), "").unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o755)).unwrap();
    let error = process::chain(&open(&theirs).await.err().unwrap());
    assert!(error.contains("has something else in it") && error.contains("dataDir"), "{error}");
    assert_eq!(fs::metadata(&theirs).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 2, "nothing was put there");

    // A fresh file system, a first start that was cut short, and our own folder with a note in it are none of that.
    fs::create_dir_all(fresh.join("lost+found")).unwrap();
    fs::create_dir_all(fresh.join("store")).unwrap();
    let prints = left(&fresh).await;
    fs::write(fresh.join("README"), "the CA of the east").unwrap();
    assert_eq!(left(&fresh).await, prints);
}

#[tokio::test]
async fn a_configured_registration_is_for_a_node_of_this_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let configured = ConfiguredRegistration {
        id: "shop.web".into(),
        node: "spiffe://cluster.local/node/west/one".into(),
        identity: "shop/web".into(),
        selectors: vec!["uid:7".into()],
        ttl: None,
        profile: None,
        dns_names: Vec::new(),
    };
    let config = Config { registrations: vec![configured], ..Config::new(folder.path()) };
    let error = process::chain(&Ca::open(config, Hands::new().clock()).await.err().unwrap());
    assert!(error.contains("shop.web") && error.contains("not a node of this cluster"), "{error}");
}

/// Each part lost, emptied, cut, garbled or exchanged: an error that names the file and says what to do; and never a new root.
#[tokio::test]
async fn a_damaged_or_incomplete_hierarchy_is_refused_and_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, other, trial) = (folder.path().join("whole"), folder.path().join("other"), folder.path().join("trial"));
    let prints = left(&whole).await;
    left(&other).await;
    let names: Vec<_> = fs::read_dir(whole.join("hierarchy")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4);
    let theirs = |name: &str| {
        let found = fs::read_dir(other.join("hierarchy")).unwrap().map(|file| file.unwrap().path());
        let alike =
            |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&name[..name.len().min(8)]);
        let longest = |path: &PathBuf| path.to_str().unwrap().ends_with("-key.pem") == name.ends_with("-key.pem");
        found
            .into_iter()
            .find(|path| alike(path) && longest(path))
            .unwrap_or_else(|| other.join("hierarchy").join(name))
    };
    for name in &names {
        let name = name.to_str().unwrap();
        for harm in ["lost", "emptied", "cut", "garbled", "exchanged"] {
            drop(fs::remove_dir_all(&trial));
            copy(&whole, &trial);
            let file = trial.join("hierarchy").join(name);
            let bytes = fs::read(&file).unwrap();
            match harm {
                "lost" => fs::remove_file(&file).unwrap(),
                "emptied" => fs::write(&file, "").unwrap(),
                "cut" => fs::write(&file, &bytes[..bytes.len() / 2]).unwrap(),
                "garbled" => {
                    fs::write(&file, bytes.iter().map(|b| if *b == b'A' { b'B' } else { *b }).collect::<Vec<_>>())
                        .unwrap()
                }
                _ => {
                    fs::copy(theirs(name), &file).unwrap();
                }
            }
            let error = match open(&trial).await {
                Err(OpenError::Hierarchy(error)) => process::chain(&error),
                Err(error) => panic!("{name} {harm}: {}", process::chain(&error)),
                Ok(ca) => panic!("{name} {harm}: opened with {:?}", ca.fingerprints()),
            };
            assert!(error.contains("restore"), "{name} {harm}: {error}");
            assert!(error.contains("hierarchy"), "{name} {harm}: {error}");
        }
    }
    // All of it lost.
    drop(fs::remove_dir_all(&trial));
    copy(&whole, &trial);
    fs::remove_dir_all(trial.join("hierarchy")).unwrap();
    let error = process::chain(&open(&trial).await.err().unwrap());
    assert!(
        error.contains(&prints.root.fingerprint.to_string()) && error.contains("restore it from a backup"),
        "{error}"
    );
    assert!(!trial.join("hierarchy").exists());
    // A whole set, but of another CA.
    copy(&other.join("hierarchy"), &trial.join("hierarchy"));
    let error = process::chain(&open(&trial).await.err().unwrap());
    assert!(error.contains("has issued under"), "{error}");
    // The store lost, the hierarchy there: it goes on under its root.
    drop(fs::remove_dir_all(&trial));
    copy(&whole, &trial);
    fs::remove_dir_all(trial.join("store")).unwrap();
    assert_eq!(left(&trial).await, prints);
}

#[tokio::test]
async fn a_damaged_store_says_how_to_recover() {
    let folder = tempfile::tempdir().unwrap();
    left(folder.path()).await;
    let db = folder.path().join("store/db");
    let mut bytes = fs::read(&db).unwrap();
    for byte in bytes.iter_mut().skip(20).take(2000) {
        *byte ^= 0x55;
    }
    fs::write(&db, bytes).unwrap();
    let error = process::chain(&open(folder.path()).await.err().unwrap());
    assert!(error.contains("the store is damaged") && error.contains("to recover"), "{error}");
}

#[tokio::test]
async fn a_start_that_was_cut_short_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("hierarchy.new")).unwrap();
    fs::write(folder.path().join("hierarchy.new/root-key.pem"), "half of a k").unwrap();
    let prints = left(folder.path()).await;
    assert!(!folder.path().join("hierarchy.new").exists());
    assert_eq!(left(folder.path()).await, prints);
}

#[tokio::test]
async fn another_trust_domain_in_the_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    left(folder.path()).await;
    let mut config = Config::new(folder.path());
    config.trust_domain = "other.example".parse().unwrap();
    let error = process::chain(&Ca::open(config, Hands::new().clock()).await.err().unwrap());
    assert!(error.contains("other.example") && error.contains("trustDomain"), "{error}");
}

#[tokio::test]
async fn the_intermediate_is_renewed_at_half_of_its_life_under_the_same_root() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let first = served.ca.fingerprints();
    served.stop().await;

    hands.advance(Duration::from_secs(190 * 24 * 3600));
    let served = Served::start(folder.path(), &hands).await;
    let second = served.ca.fingerprints();
    assert_eq!(second.root, first.root);
    assert_ne!(second.intermediate, first.intermediate);
    assert!(second.intermediate.validity.not_after() > first.intermediate.validity.not_after());
    served.attested(&node("one")).await;
    served.stop().await;
    let files = fs::read_dir(folder.path().join("hierarchy")).unwrap().map(|file| file.unwrap().file_name());
    let ours = |name: &String| name.starts_with("intermediate-");
    let of_certificates = files.map(|name| name.into_string().unwrap()).filter(ours).count();
    assert_eq!(of_certificates, 4, "the old one is there as long as leaves of it live");
}

#[tokio::test]
async fn configured_registrations_come_and_go_and_leave_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let configured = |id: &str, identity: &str| ConfiguredRegistration {
        id: id.into(),
        node: "one".into(),
        identity: identity.into(),
        selectors: vec![format!("socket:{id}")],
        ttl: None,
        profile: None,
        dns_names: Vec::new(),
    };
    let names = async |registrations: Vec<ConfiguredRegistration>| {
        let config = Config { registrations, ..Config::new(folder.path()) };
        let ca = Ca::open(config, Hands::new().clock()).await.unwrap();
        let found = ca.registrations().await.unwrap();
        ca.close().await;
        found
            .iter()
            .map(|found| format!("{} {} on {}", found.id(), found.spiffe_id(), found.node()))
            .collect::<Vec<_>>()
    };
    let ca = open(folder.path()).await.unwrap();
    ca.put_registration(crate::support::registration("by-hand", &node("two"), &web())).await.unwrap();
    ca.close().await;
    let hand = format!("by-hand {} on {}", web(), node("two"));
    let line = |id: &str, account: &str| format!("{id} spiffe://cluster.local/ns/shop/sa/{account} on {}", node("one"));
    assert_eq!(
        names(vec![configured("a", "shop/web"), configured("c", "shop/db")]).await,
        [line("a", "web"), hand.clone(), line("c", "db")]
    );
    assert_eq!(
        names(vec![configured("c", "spiffe://cluster.local/ns/shop/sa/new")]).await,
        [hand.clone(), line("c", "new")]
    );
    assert_eq!(names(vec![]).await, [hand]);

    let twice = Config {
        registrations: vec![configured("a", "shop/web"), configured("a", "shop/db")],
        ..Config::new(folder.path())
    };
    let error = Ca::open(twice, Hands::new().clock()).await.err().unwrap();
    assert!(process::chain(&error).contains("a stands twice"), "{}", process::chain(&error));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), target).unwrap();
        }
    }
}
