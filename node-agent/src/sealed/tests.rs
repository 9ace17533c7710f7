use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_identity::{ListIssuer, Revocation, RevocationList, RevocationReason};
use alcazar_service::{Readiness, Shutdown};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::issued::{Issued, Trust};
use crate::keys;
use crate::testing::ca::{self, Ca, node};

const HOUR: Duration = Duration::from_secs(3600);

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn seal(byte: u8) -> Seal {
    Seal::new(&[byte; 32], node()).unwrap()
}

fn registration(ca: &mut Ca, id: &str, account: &str) -> Registration {
    ca.register(id, account, &["uid:7", "socket:a"]);
    let wire = ca.registrations.iter().find(|wire| wire.id == id).unwrap();
    Registration::read(wire, &node()).unwrap()
}

fn issued(ca: &mut Ca, registration: &Registration) -> Issued {
    let key = keys::generate().unwrap();
    let id = registration.spiffe_id();
    let reply = ca.issue_one(&keys::request(&key).unwrap(), id.as_str(), HOUR, noon());
    Issued::accept(&reply, key, id, Trust::Established, noon()).unwrap()
}

/// A folder and who writes it.
struct Run {
    directory: TempDir,
}

impl Run {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// One run of an agent, which does this and ends.
    async fn run<T>(&self, byte: u8, work: impl FnOnce(&Sealed) -> T) -> T {
        let (sealed, writer) = Sealed::open(self.directory.path(), seal(byte));
        let (shutdown, part) = (Shutdown::new(), Readiness::new().part("sealed"));
        shutdown.spawn("writer", writer.keep(None, part, shutdown.clone()));
        let result = work(&sealed);
        shutdown.trigger("test");
        shutdown.finished(Duration::from_secs(20)).await.unwrap();
        result
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.directory.path().join("sealed")).unwrap().map(|file| file.unwrap().path()).collect()
    }
}

#[tokio::test]
async fn what_is_sealed_comes_back_while_it_is_good() {
    let (mut ca, run) = (Ca::new(noon()), Run::new());
    let (one, two) = (registration(&mut ca, "shop.a", "a"), registration(&mut ca, "shop.b", "b"));
    let certificate = issued(&mut ca, &one);
    run.run(1, |sealed| {
        sealed.put(&Entry::new(one.clone(), Some(&certificate)));
        sealed.put(&Entry::new(two.clone(), None));
    })
    .await;
    for file in run.files() {
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = std::fs::read(&file).unwrap();
        let shown = String::from_utf8_lossy(&bytes);
        assert!(!shown.contains("shop") && !shown.contains("CERTIFICATE"), "nothing is to be read in it");
    }
    let bundles = ca.bundles();
    let none = Arc::new(Revocations::default());
    let load = async |bundles: &TrustBundles, revoked: &Arc<Revocations>, now| {
        let mut all = run.run(1, |sealed| sealed.load(&node(), bundles, revoked, now).unwrap()).await;
        all.sort_by(|one, other| one.registration.id().cmp(other.registration.id()));
        assert_eq!([&all[0].registration, &all[1].registration], [&one, &two]);
        assert!(all[1].issued.is_none());
        all.swap_remove(0).issued
    };
    let back = load(&bundles, &none, noon() + HOUR / 2).await.expect("it is good");
    assert_eq!(back.svid().chain(), certificate.svid().chain());
    assert_eq!(back.svid().key().secret_pkcs8_der(), certificate.svid().key().secret_pkcs8_der());
    assert_eq!((back.life(), back.bundles()), (certificate.life(), &bundles));

    assert!(load(&bundles, &none, noon() + HOUR).await.is_none(), "it has expired");
    assert!(load(&bundles, &none, noon() - HOUR).await.is_none(), "the clock is wrong");
    assert!(load(&Ca::new(noon()).bundles(), &none, noon()).await.is_none(), "its root is believed no more");
    let mut list = RevocationList::new(ca::TRUST_DOMAIN.parse().unwrap(), ListIssuer::Cluster("east".into()), 1);
    let why = Revocation { reason: RevocationReason::KeyCompromise, since: noon(), until: noon() + HOUR };
    assert!(list.revoke_serial(certificate.svid().serial(), None, why));
    let mut keeper = alcazar_api::revocations::Keeper::default();
    let lists = v1::SignedRevocations { lists: vec![ca.signed(&list, noon())] };
    assert!(keeper.take(&lists, &bundles, noon()).is_change());
    assert!(load(&bundles, keeper.current(), noon()).await.is_none(), "it is revoked");
}

#[tokio::test]
async fn what_was_sealed_otherwise_is_removed_and_what_the_ca_does_not_name_goes() {
    let (mut ca, run) = (Ca::new(noon()), Run::new());
    let (one, two) = (registration(&mut ca, "shop.a", "a"), registration(&mut ca, "shop.b", "b"));
    let fill = async || {
        run.run(1, |sealed| {
            sealed.put(&Entry::new(one.clone(), None));
            sealed.put(&Entry::new(two.clone(), None));
        })
        .await;
        assert_eq!(run.files().len(), 2);
    };
    let bundles = ca.bundles();
    let none = Arc::new(Revocations::default());
    let load = async |byte| run.run(byte, |sealed| sealed.load(&node(), &bundles, &none, noon()).unwrap().len()).await;
    fill().await;
    assert_eq!((load(2).await, run.files().len()), (0, 0), "another key");
    fill().await;
    let files = run.files();
    std::fs::write(&files[0], "hello").unwrap();
    assert_eq!((load(1).await, run.files().len()), (1, 1), "damage");
    fill().await;
    let files = run.files();
    std::fs::copy(&files[0], &files[1]).unwrap();
    assert_eq!((load(1).await, run.files().len()), (1, 1), "one registration's in another's place");
    fill().await;
    std::fs::write(run.directory.path().join("sealed/abc.new"), "half").unwrap();
    assert_eq!((load(1).await, run.files().len()), (2, 2), "what a crash has left");

    std::fs::write(run.directory.path().join("sealed/other"), "x").unwrap();
    run.run(1, |sealed| sealed.only([&two].into_iter())).await;
    assert_eq!(run.files(), [run.directory.path().join("sealed").join(name_of("shop.b"))]);
    run.run(1, |sealed| sealed.remove("shop.b")).await;
    assert!(run.files().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_is_told_and_tried_again() {
    let (mut ca, run) = (Ca::new(noon()), Run::new());
    let one = registration(&mut ca, "shop.a", "a");
    let (sealed, writer) = Sealed::open(run.directory.path(), seal(1));
    let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
    shutdown.spawn("writer", writer.keep(None, readiness.part("sealed"), shutdown.clone()));
    // The old file stays whole where the new one cannot be written beside it.
    let half = run.directory.path().join("sealed").join(format!("{}.new", name_of("shop.a")));
    sealed.put(&Entry::new(one.clone(), None));
    let until = async |so: &dyn Fn() -> bool| {
        let waiting = async {
            while !so() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it never came to be");
    };
    let file = run.directory.path().join("sealed").join(name_of("shop.a"));
    until(&|| file.exists()).await;
    let before = std::fs::read(&file).unwrap();
    std::fs::create_dir(&half).unwrap();
    let certificate = issued(&mut ca, &one);
    sealed.put(&Entry::new(one, Some(&certificate)));
    let health = || readiness.parts().pop().unwrap().1;
    until(&|| matches!(health(), alcazar_service::Health::Degraded(_))).await;
    assert_eq!(std::fs::read(&file).unwrap(), before);
    std::fs::remove_dir(&half).unwrap();
    until(&|| health() == alcazar_service::Health::Ready).await;
    assert_ne!(std::fs::read(&file).unwrap(), before);
    shutdown.trigger("test");
    shutdown.finished(Duration::from_secs(20)).await.unwrap();
}

#[test]
fn a_key_is_32_bytes_that_nobody_else_reads() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    assert!(read_key(&path).unwrap_err().to_string().contains("head -c 32"));
    for (bytes, mode, expected) in [
        (32, 0o600, None),
        (32, 0o400, None),
        (31, 0o600, Some("has 31 bytes")),
        (33, 0o600, Some("has 33 bytes")),
        (32, 0o640, Some("chmod 600")),
    ] {
        drop(std::fs::remove_file(&path));
        std::fs::write(&path, vec![7; bytes]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        match (read_key(&path), expected) {
            (Ok(key), None) => assert_eq!(*key, [7; 32]),
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (outcome, _) => panic!("{bytes} {mode:o}: {:?}", outcome.err()),
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_but_those_that_were_sealed_open(place: prop::sample::Index, bit in 0_u8..8, noise: Vec<u8>) {
        let seal = seal(1);
        let mut sealed = seal.seal("name", zeroize::Zeroizing::new(b"{}".to_vec())).unwrap();
        prop_assert_eq!(&**seal.open("name", &sealed).unwrap(), b"{}");
        prop_assert!(seal.open("other", &sealed).is_err());
        prop_assert!(seal.open("name", &noise).is_err());
        let place = place.index(sealed.len());
        sealed[place] ^= 1 << bit;
        prop_assert!(seal.open("name", &sealed).is_err());
    }
}
