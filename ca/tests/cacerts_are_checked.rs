//! Certificates that a person plugs in: made by OpenSSL as people make them, broken as people break them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use alcazar_ca::{Ca, CacertsConfig, CacertsError, CacertsFiles, Config, PluggedIn, check_cacerts};
use alcazar_identity::Fingerprint;
use alcazar_service::{clock, process::chain};
use support::{Hands, Served, key, node};

fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl").current_dir(folder).args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A workshop with a root, an intermediate of it, and their keys, as `openssl` makes them.
struct Workshop(tempfile::TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        workshop.root("root", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:2");
        workshop.authority("middle", "root", "pathlen:0", "subjectAltName=URI:spiffe://cluster.local", 365);
        workshop
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn key(&self, name: &str, kind: &str) {
        openssl(self.path(), &format!("genpkey -algorithm {kind} -out {name}.key"));
    }

    fn root(&self, name: &str, kind: &str, length: &str) {
        self.key(name, kind);
        openssl(
            self.path(),
            &format!(
                "req -x509 -new -key {name}.key -subj /CN={name} -days 3650 -out {name}.pem \
                 -addext basicConstraints=critical,CA:TRUE,{length} -addext keyUsage=critical,keyCertSign,cRLSign"
            )
            .replace("  ", " "),
        );
    }

    fn authority(&self, name: &str, by: &str, length: &str, more: &str, days: i32) {
        if !self.path().join(format!("{name}.key")).exists() {
            self.key(name, "EC -pkeyopt ec_paramgen_curve:P-256");
        }
        self.certificate(
            name,
            by,
            &format!("basicConstraints=critical,CA:TRUE,{length}\nkeyUsage=critical,keyCertSign,cRLSign\n{more}\n"),
            days,
            "",
        );
    }

    fn certificate(&self, name: &str, by: &str, extensions: &str, days: i32, more: &str) {
        fs::write(self.path().join("extensions"), extensions).unwrap();
        openssl(self.path(), &format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
        let line = format!(
            "x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial -days {days} -extfile extensions -out {name}.pem{more}"
        );
        openssl(self.path(), &line);
    }

    fn read(&self, names: &[&str]) -> Vec<u8> {
        names.iter().flat_map(|name| fs::read(self.path().join(name)).unwrap()).collect()
    }

    /// A set as Istio's documents describe it.
    fn set(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("ca-cert.pem", self.read(&["middle.pem"])),
            ("ca-key.pem", self.read(&["middle.key"])),
            ("cert-chain.pem", self.read(&["middle.pem", "root.pem"])),
            ("root-cert.pem", self.read(&["root.pem"])),
        ]
    }

    fn put(&self, name: &str, set: &[(&'static str, Vec<u8>)]) -> PathBuf {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        for (file, bytes) in set {
            fs::write(folder.join(file), bytes).unwrap();
        }
        folder
    }
}

fn check(set: &[(&'static str, Vec<u8>)]) -> Result<PluggedIn, CacertsError> {
    check_at(set, clock::now())
}

fn check_at(set: &[(&'static str, Vec<u8>)], now: SystemTime) -> Result<PluggedIn, CacertsError> {
    let files = CacertsFiles::new(set.iter().map(|(name, bytes)| (*name, bytes.clone())));
    check_cacerts(&files, &[], None, &"cluster.local".parse().unwrap(), now)
}

fn with(set: &[(&'static str, Vec<u8>)], name: &'static str, bytes: Vec<u8>) -> Vec<(&'static str, Vec<u8>)> {
    let mut set: Vec<_> = set.iter().filter(|(file, _)| *file != name).cloned().collect();
    set.push((name, bytes));
    set
}

fn without(set: &[(&'static str, Vec<u8>)], name: &str) -> Vec<(&'static str, Vec<u8>)> {
    set.iter().filter(|(file, _)| *file != name).cloned().collect()
}

fn refused(set: &[(&'static str, Vec<u8>)], says: &[&str]) {
    let error = chain(&check(set).err().unwrap_or_else(|| panic!("accepted, and should say {says:?}")));
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn sets_as_people_make_them_are_taken() {
    let workshop = Workshop::new();
    let set = workshop.set();
    let found = check(&set).unwrap();
    assert_eq!((found.chain.len(), found.roots.len(), found.is_root), (1, 1, false));
    assert!(found.key.is_some() && found.warnings.is_empty());

    // Trailing newlines, carriage returns, words between the blocks; the root in the chain or not; several roots.
    let mut ragged = set.clone();
    for (_, bytes) in &mut ragged {
        let text = String::from_utf8(bytes.clone()).unwrap().replace('\n', "\r\n");
        *bytes = format!("# a note\r\n{text}\r\n\r\n\n").into_bytes();
    }
    check(&ragged).unwrap();
    check(&with(&set, "cert-chain.pem", workshop.read(&["middle.pem"]))).unwrap();
    check(&with(&set, "cert-chain.pem", workshop.read(&["root.pem"]))).unwrap();
    workshop.root("other", "EC -pkeyopt ec_paramgen_curve:P-384", "pathlen:1");
    let both = check(&with(&set, "root-cert.pem", workshop.read(&["other.pem", "root.pem", "other.pem"]))).unwrap();
    assert_eq!(both.roots.len(), 2);
    assert_eq!(both.roots[0], both.root, "the one above the intermediate comes first");

    // The other names; keys in the older shapes.
    let tls = vec![
        ("tls.crt", workshop.read(&["middle.pem"])),
        ("tls.key", workshop.read(&["middle.key"])),
        ("ca.crt", workshop.read(&["root.pem"])),
    ];
    check(&tls).unwrap();
    openssl(workshop.path(), "ec -in middle.key -out middle.sec1");
    check(&with(&set, "ca-key.pem", workshop.read(&["middle.sec1"]))).unwrap();
    workshop.key("rsa", "RSA -pkeyopt rsa_keygen_bits:2048");
    workshop.authority("rsa", "root", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    openssl(workshop.path(), "rsa -in rsa.key -traditional -out rsa.pkcs1");
    let rsa =
        with(&with(&set, "ca-cert.pem", workshop.read(&["rsa.pem"])), "ca-key.pem", workshop.read(&["rsa.pkcs1"]));
    check(&rsa).unwrap();

    // A longer chain, and a root that is plugged in itself.
    workshop.authority("upper", "root", "pathlen:1", "subjectKeyIdentifier=hash", 365);
    workshop.authority("lower", "upper", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    let long =
        with(&with(&set, "ca-cert.pem", workshop.read(&["lower.pem"])), "ca-key.pem", workshop.read(&["lower.key"]));
    let found = check(&with(&long, "cert-chain.pem", workshop.read(&["lower.pem", "upper.pem", "root.pem"]))).unwrap();
    assert_eq!(found.chain.len(), 2);
    let root =
        with(&with(&set, "ca-cert.pem", workshop.read(&["root.pem"])), "ca-key.pem", workshop.read(&["root.key"]));
    assert!(check(&root).unwrap().is_root);
}

#[test]
fn each_fault_is_told_with_its_file_and_how_to_mend_it() {
    let workshop = Workshop::new();
    let set = workshop.set();
    let replace = |name, from: &[&str]| with(&set, name, workshop.read(from));

    refused(&[], &["ca-cert.pem", "tls.crt"]);
    for (name, _) in &set {
        refused(&without(&set, name), &[name, "missing"]);
        refused(&with(&set, name, Vec::new()), &[name]);
        refused(&with(&set, name, b"\xff\xfe".to_vec()), &[name]);
        let bytes = set.iter().find(|(file, _)| file == name).unwrap().1.clone();
        refused(&with(&set, name, bytes[..bytes.len() / 2].to_vec()), &[name]);
    }
    refused(&with(&set, "tls.key", workshop.read(&["middle.key"])), &["two sets"]);
    refused(&replace("ca-cert.pem", &["middle.key"]), &["ca-cert.pem", "exchanged"]);
    refused(&replace("ca-key.pem", &["middle.pem"]), &["ca-key.pem", "CERTIFICATE"]);
    refused(&replace("ca-key.pem", &["root.key"]), &["does not belong", "that of CN=root in cert-chain.pem"]);
    workshop.key("stray", "EC -pkeyopt ec_paramgen_curve:P-256");
    refused(&replace("ca-key.pem", &["stray.key"]), &["ca-key.pem", "does not belong"]);

    // Not a CA; another trust domain's; limited to something else; constraints that verifiers refuse.
    let own = |name: &str| {
        let set = with(&set, "ca-cert.pem", workshop.read(&[&format!("{name}.pem")]));
        with(&set, "ca-key.pem", workshop.read(&[&format!("{name}.key")]))
    };
    workshop.key("leaf", "EC -pkeyopt ec_paramgen_curve:P-256");
    workshop.certificate("leaf", "root", "basicConstraints=CA:FALSE\n", 365, "");
    refused(&own("leaf"), &["CN=leaf in ca-cert.pem", "not a certificate authority"]);
    workshop.authority("foreign", "root", "pathlen:0", "subjectAltName=URI:spiffe://other.example", 365);
    refused(&own("foreign"), &["spiffe://other.example", "cluster.local", "trustDomain"]);
    workshop.authority("narrow", "root", "pathlen:0", "extendedKeyUsage=codeSigning", 365);
    refused(&own("narrow"), &["extended key usage"]);
    workshop.authority("bound", "root", "pathlen:0", "nameConstraints=permitted;URI:.example", 365);
    refused(&own("bound"), &["name constraints on URIs"]);

    // Weak keys and signatures.
    workshop.key("small", "RSA -pkeyopt rsa_keygen_bits:1024");
    workshop.authority("small", "root", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    refused(&own("small"), &["ca-cert.pem", "RSA key of 1024 bits"]);
    workshop.key("odd", "EC -pkeyopt ec_paramgen_curve:secp256k1");
    workshop.authority("odd", "root", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    assert!(check(&own("odd")).is_err());
    workshop.key("sha1", "EC -pkeyopt ec_paramgen_curve:P-256");
    let extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n";
    workshop.certificate("sha1", "root", extensions, 365, " -sha1");
    assert!(check(&own("sha1")).is_err());

    // Chains that do not lead up; a length that is used up.
    workshop.root("other", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    refused(&replace("root-cert.pem", &["other.pem"]), &["issued by CN=root", "cert-chain.pem"]);
    workshop.authority("below", "middle", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    let too_low = with(&own("below"), "cert-chain.pem", workshop.read(&["below.pem", "middle.pem"]));
    refused(&too_low, &["CN=middle in cert-chain.pem", "pathlen"]);
    refused(&own("below"), &[]);
    workshop.root("short", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:0");
    let root = with(&own("short"), "root-cert.pem", workshop.read(&["short.pem"]));
    refused(&root, &["CN=short", "pathlen"]);

    // Dates, with both clocks.
    let later = clock::now() + Duration::from_secs(400 * 24 * 3600);
    let error = chain(&check_at(&set, later).err().unwrap());
    assert!(
        error.contains("CN=middle in ca-cert.pem is good from") && error.contains("the clock here says"),
        "{error}"
    );
    assert!(check_at(&set, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).is_err());
}

#[test]
fn a_list_of_revocations_is_read() {
    let workshop = Workshop::new();
    let path = workshop.path();
    fs::write(path.join("index"), "").unwrap();
    fs::write(path.join("number"), "01\n").unwrap();
    let ca = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=30\n";
    fs::write(path.join("ca.cnf"), ca).unwrap();
    openssl(path, "ca -config ca.cnf -gencrl -cert root.pem -keyfile root.key -out none.crl");
    let set = workshop.set();
    check(&with(&set, "ca-crl.pem", workshop.read(&["none.crl"]))).unwrap();
    check(&with(&set, "ca-crl.pem", b"\n".to_vec())).unwrap();
    openssl(path, "ca -config ca.cnf -revoke middle.pem -cert root.pem -keyfile root.key");
    openssl(path, "ca -config ca.cnf -gencrl -cert root.pem -keyfile root.key -out revoked.crl");
    refused(&with(&set, "ca-crl.pem", workshop.read(&["revoked.crl"])), &["CN=middle", "revoked by ca-crl.pem"]);
    workshop.root("other", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    openssl(path, "ca -config ca.cnf -gencrl -cert other.pem -keyfile other.key -out other.crl");
    refused(&with(&set, "ca-crl.pem", workshop.read(&["other.crl"])), &["ca-crl.pem", "not signed by any"]);
    refused(&with(&set, "ca-crl.pem", workshop.read(&["root.pem"])), &["ca-crl.pem"]);
}

fn plugged(data: &Path, folder: &Path) -> Config {
    Config { cacerts: Some(CacertsConfig { dir: folder.into() }), ..Config::new(data) }
}

/// OpenSSL makes certificates that are good from now on, and this clock stands still: ahead by less than leaves are backdated.
fn ahead() -> Hands {
    Hands::at(clock::now() + Duration::from_secs(90))
}

fn roots(ca: &Ca) -> Vec<Fingerprint> {
    ca.trust_bundles().get(ca.trust_domain()).unwrap().roots().map(|root| Fingerprint::of(root)).collect()
}

#[tokio::test]
async fn a_ca_issues_under_what_is_plugged_in_and_openssl_verifies_it() {
    let workshop = Workshop::new();
    let folder = workshop.put("cacerts", &workshop.set());
    let hands = ahead();
    let data = workshop.path().join("data");
    let served = Served::start_with(plugged(&data, &folder), &hands).await;
    let one = served.attested(&node("one")).await;
    fs::write(workshop.path().join("leaf.pem"), one.chain_pem()).unwrap();
    openssl(workshop.path(), "verify -CAfile root.pem -untrusted middle.pem leaf.pem");
    // It cannot make what it has no key for, and says what to do.
    let error = chain(&served.ca.make_intermediate(served.ca.fingerprints().root.fingerprint).await.unwrap_err());
    assert!(error.contains("alcazar ca request") && error.contains("alcazar root sign"), "{error}");
    assert!(served.ca.make_root().await.is_err());
    served.stop().await;
    // Found again; and a folder that is gone is told, and never replaced by a root of our own.
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    ca.close().await;
    fs::remove_dir_all(&folder).unwrap();
    assert!(Ca::open(plugged(&data, &folder), hands.clock()).await.is_err());
    assert!(Ca::open(Config::new(&data), hands.clock()).await.is_err());
}

#[tokio::test]
async fn a_root_that_is_plugged_in_signs_intermediates_by_itself() {
    let workshop = Workshop::new();
    let set = workshop.set();
    let set =
        with(&with(&set, "ca-cert.pem", workshop.read(&["root.pem"])), "ca-key.pem", workshop.read(&["root.key"]));
    let folder = workshop.put("cacerts", &set);
    let hands = ahead();
    let data = workshop.path().join("data");
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    let first = ca.fingerprints();
    ca.close().await;
    let ca = Ca::open(plugged(&data, &folder), hands.clock()).await.unwrap();
    assert_eq!(ca.fingerprints(), first, "the same intermediate after a restart");
    hands.advance(Duration::from_secs(190 * 24 * 3600));
    ca.look_after_hierarchy().await.unwrap();
    let second = ca.fingerprints();
    assert_eq!(second.root, first.root);
    assert_ne!(second.intermediate, first.intermediate, "renewed at half of its life");
    ca.close().await;
}

/// The kubelet's way: a new folder, and the link `..data` turned to it.
fn swap(volume: &Path, generation: &str, set: &[(&'static str, Vec<u8>)]) {
    let fresh = volume.join(generation);
    fs::create_dir_all(&fresh).unwrap();
    for (name, bytes) in set {
        fs::write(fresh.join(name), bytes).unwrap();
        if !volume.join(name).is_symlink() {
            symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
        }
    }
    let turning = volume.join("..data_tmp");
    symlink(generation, &turning).unwrap();
    fs::rename(&turning, volume.join("..data")).unwrap();
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_volume_that_kubernetes_swaps_is_taken_over_and_a_bad_one_keeps_the_old_and_alarms() {
    let workshop = Workshop::new();
    let volume = workshop.path().join("volume");
    let set = workshop.set();
    swap(&volume, "..1", &set);
    let hands = ahead();
    let data = workshop.path().join("data");
    let served = Served::start_with(plugged(&data, &volume), &hands).await;
    let ca = served.ca.clone();
    let (first, only) = (ca.fingerprints(), roots(&ca));

    // Another intermediate of the same root signs as soon as it is there.
    workshop.authority("next", "root", "pathlen:0", "subjectAltName=URI:spiffe://cluster.local", 365);
    let next =
        with(&with(&set, "ca-cert.pem", workshop.read(&["next.pem"])), "ca-key.pem", workshop.read(&["next.key"]));
    let next = with(&next, "cert-chain.pem", workshop.read(&["next.pem"]));
    swap(&volume, "..2", &next);
    until("the next intermediate signs", || ca.fingerprints().intermediate != first.intermediate).await;
    let second = ca.fingerprints();
    assert_eq!((roots(&ca), ca.hierarchy_trouble()), (only.clone(), None));

    // One that does not fit is not taken: what signs goes on, and the trouble is told.
    swap(&volume, "..3", &with(&next, "ca-key.pem", workshop.read(&["root.key"])));
    until("the trouble is told", || ca.hierarchy_trouble().is_some()).await;
    assert!(ca.hierarchy_trouble().unwrap().contains("ca-key.pem"), "{:?}", ca.hierarchy_trouble());
    assert_eq!(ca.fingerprints(), second);
    served.attested(&node("one")).await;
    swap(&volume, "..4", &next);
    until("the trouble is over", || ca.hierarchy_trouble().is_none()).await;

    // A new root is trusted at once, signs once everybody has heard of it, and the old one stays as long as leaves of it live.
    workshop.root("fresh", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    workshop.authority("moved", "fresh", "pathlen:0", "subjectAltName=URI:spiffe://cluster.local", 365);
    let moved = vec![
        ("ca-cert.pem", workshop.read(&["moved.pem"])),
        ("ca-key.pem", workshop.read(&["moved.key"])),
        ("cert-chain.pem", workshop.read(&["moved.pem"])),
        ("root-cert.pem", workshop.read(&["fresh.pem"])),
    ];
    swap(&volume, "..5", &moved);
    until("the new root is trusted", || roots(&ca).len() == 2).await;
    assert_eq!(ca.fingerprints().intermediate, second.intermediate, "nobody has heard of the new root yet");
    hands.advance(Duration::from_secs(180));
    ca.look_after_hierarchy().await.unwrap();
    assert_ne!(ca.fingerprints().root, second.root);
    assert_eq!(roots(&ca).len(), 2);
    served.attest(&served.token(&node("two")).await, &key()).await.unwrap();
    hands.advance(Duration::from_secs(25 * 3600));
    ca.look_after_hierarchy().await.unwrap();
    assert_eq!(roots(&ca), [ca.fingerprints().root.fingerprint]);
    served.stop().await;
}
