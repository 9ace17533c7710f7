//! Folders on a real disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{Credentials, SvidKey};
use alcazar_service::{Health, Readiness, Shutdown};
use tempfile::TempDir;
use tokio::sync::watch;

use super::config::{FilesConfig, Roots};
use super::content::Content;
use super::folder::{Access, Folder, FolderError};
use super::keeper::Keeper;
use super::pkcs12::Password;
use crate::adoption::Clients;
use crate::registration::Registration;
use crate::registry::{Held, Registry, Served};
use crate::testing::ca::Ca;

const PLAIN: Access = Access { uid: None, gid: None, mode: 0o644, key_mode: 0o600 };

const WEB: &str = "spiffe://td.example/ns/shop/sa/web";

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn credentials(ca: &mut Ca) -> Arc<Credentials> {
    let svid = ca.svid(WEB, Duration::from_secs(3600), noon());
    Arc::new(Credentials::new(svid, ca.bundles()))
}

/// The files of three certificates, one after the other.
fn contents() -> [Content; 3] {
    let mut ca = Ca::new(noon());
    [(); 3].map(|()| Content::of(&credentials(&mut ca), Roots::Own))
}

fn put(folder: &Path, content: &Content) -> Result<bool, FolderError> {
    Folder::open(folder).and_then(|folder| folder.put(content, PLAIN))
}

/// What a program reads.
fn read(folder: &Path) -> Vec<Vec<u8>> {
    ["cert-chain.pem", "key.pem", "root-cert.pem"].iter().map(|name| fs::read(folder.join(name)).unwrap()).collect()
}

fn expected(content: &Content) -> Vec<Vec<u8>> {
    content.files().map(|(_, bytes, _)| bytes.to_vec()).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_set_of_files_is_exchanged_as_a_whole_with_its_owner_and_modes() {
    let home = tempfile::tempdir().unwrap();
    let [one, two, three] = &contents();
    let folder = home.path().join("deep/web");
    assert!(put(&folder, one).unwrap());
    assert_eq!(read(&folder), expected(one));
    assert!(!put(&folder, one).unwrap(), "the same is not written again");
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["cert-chain.pem", "key.pem", "root-cert.pem"].map(mode), [0o644, 0o600, 0o644]);

    // A reader that has the folder of before open goes on reading what belongs together.
    let before = fs::canonicalize(folder.join("..data")).unwrap();
    assert!(put(&folder, two).unwrap());
    assert_eq!((read(&folder), read(&before)), (expected(two), expected(one)));
    Folder::open(&folder).unwrap().sweep().unwrap();
    assert!(!before.exists());
    assert_eq!(names(&folder).len(), 5, "{:?}", names(&folder));

    // Altered or lost files are put right.
    fs::write(folder.join("cert-chain.pem"), "other").unwrap();
    assert!(put(&folder, two).unwrap());
    fs::remove_file(folder.join("..data/key.pem")).unwrap();
    assert!(put(&folder, two).unwrap());
    assert_eq!(read(&folder), expected(two));

    // Stricter is in force at once.
    let strict = Access { key_mode: 0o400, ..PLAIN };
    assert!(Folder::open(&folder).unwrap().put(two, strict).unwrap());
    assert!(!Folder::open(&folder).unwrap().put(two, strict).unwrap());
    assert_eq!(mode("key.pem"), 0o400);

    let access = Access { uid: Some(4321), gid: Some(1234), mode: 0o640, key_mode: 0o440 };
    if rustix::process::geteuid().is_root() {
        Folder::open(&folder).unwrap().put(three, access).unwrap();
        let key = fs::metadata(folder.join("key.pem")).unwrap();
        assert_eq!((key.uid(), key.gid(), key.mode() & 0o7777), (4321, 1234, 0o440));
    } else {
        assert!(matches!(Folder::open(&folder).unwrap().put(three, access), Err(FolderError::Write { .. })));
        assert_eq!(read(&folder), expected(two), "what is there stays");
    }
    Folder::open(&folder).unwrap().clear().unwrap();
    assert_eq!(names(&folder), Vec::<String>::new());
}

/// Runs a program on a file; whether it was content, and what it said.
fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_key_store_is_exchanged_with_the_other_files_and_openssl_reads_it() {
    let home = tempfile::tempdir().unwrap();
    let mut ca = Ca::new(noon());
    let [one, two] = [(); 2].map(|()| credentials(&mut ca));
    let password = |text: &str, mode: u32| {
        let path = home.path().join("password");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Password::read(&path)
    };
    assert!(password("changeit\n", 0o644).err().unwrap().to_string().contains("is open to everybody (mode 0644)"));
    for unfit in ["", "\n", "two\nlines", "pässword", &"x".repeat(129)] {
        assert!(password(unfit, 0o600).err().unwrap().to_string().contains("one line of 1 to 128"), "{unfit:?}");
    }
    let good = password("change it\n", 0o640).unwrap();
    let content = |of: &Credentials, by: &Password| Content::of(of, Roots::Own).with_store(of, Roots::Own, by).unwrap();
    let folder = home.path().join("web");
    let store = folder.join("keystore.p12");
    assert!(put(&folder, &content(&one, &good)).unwrap());
    assert!(!put(&folder, &content(&one, &good)).unwrap(), "the same content is the same file");
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(put(&folder, &content(&two, &good)).unwrap());
    assert_eq!(fs::read_link(&store).unwrap(), Path::new("..data/keystore.p12"));

    let path = store.to_str().unwrap();
    let (opens, said) = run("openssl", &["pkcs12", "-in", path, "-noenc", "-info", "-passin", "pass:change it"]);
    assert!(opens, "{said}");
    for what in ["MAC: sha256, Iteration 10000", "PBES2, PBKDF2, AES-256-CBC, Iteration 10000, PRF hmacWithSHA256"] {
        assert!(said.contains(what), "{what} is missing in {said}");
    }
    // The leaf, the intermediate and the root; and the very key, and the certificate that it is of.
    assert_eq!(said.matches("-----BEGIN CERTIFICATE-----").count(), two.svid().chain().len() + 1, "{said}");
    let key = SvidKey::from_pem(said.as_bytes()).unwrap();
    assert_eq!(key.public_key(), two.svid().key().public_key());
    assert!(!run("openssl", &["pkcs12", "-in", path, "-noenc", "-passin", "pass:other"]).0);

    // Where there is a Java, which no machine needs for these tests. It takes the root into the chain, as it finds it there.
    if std::process::Command::new("keytool").arg("-help").output().is_ok() {
        let (opens, said) = run("keytool", &["-list", "-v", "-keystore", path, "-storepass", "change it"]);
        assert!(opens, "{said}");
        for what in ["PrivateKeyEntry", "Certificate chain length: 3", "Alias name: identity", "trustedCertEntry", WEB]
        {
            assert!(said.contains(what), "{what} is missing in {said}");
        }
    } else {
        eprintln!("no Java here: what keytool says of the file is not asked");
    }

    // Another password is in force at once, and a store that is wanted no more goes.
    let other = password("other", 0o600).unwrap();
    assert!(put(&folder, &content(&two, &other)).unwrap());
    assert!(run("openssl", &["pkcs12", "-in", path, "-noenc", "-passin", "pass:other"]).0);
    assert!(put(&folder, &Content::of(&two, Roots::Own)).unwrap());
    Folder::open(&folder).unwrap().sweep().unwrap();
    assert_eq!(names(&folder).len(), 5, "{:?}", names(&folder));
    assert_eq!(read(&folder), expected(&Content::of(&two, Roots::Own)));
}

#[tokio::test]
async fn a_password_that_is_missing_is_said_and_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("password");
    let mut world = World::new(serde_json::json!({"pkcs12": {"passwordFile": path}}));
    let first = credentials(&mut world.ca);
    let _held = world.register(Held::Certificate(first));
    let so =
        |world: &World| matches!(world.health(), Health::Degraded(why) if why.contains("cannot read the password"));
    world.until("the complaint", so).await;
    assert!(!world.folder().join("key.pem").exists(), "all of them or none");
    fs::write(&path, "changeit").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    world.until("the files", |world| world.health() == Health::Ready).await;
    assert!(world.folder().join("keystore.p12").exists());
    world.stop().await;
}

#[test]
fn what_a_crash_has_left_does_no_harm() {
    let home = tempfile::tempdir().unwrap();
    let [one, ..] = &contents();
    let folder = home.path();
    let generation = folder.join(one.generation());
    fs::create_dir(&generation).unwrap();
    fs::write(generation.join("key.pem.new"), "half").unwrap();
    symlink("nowhere", folder.join("..data.alcazar-new")).unwrap();
    assert!(put(folder, one).unwrap());
    assert_eq!(read(folder), expected(one));
    assert_eq!(names(&generation), ["cert-chain.pem", "key.pem", "root-cert.pem"]);
}

#[test]
fn nothing_is_replaced_or_followed_that_somebody_else_has_put_there() {
    let home = tempfile::tempdir().unwrap();
    let [one, ..] = &contents();
    let precious = home.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let folder = |name: &str| {
        let folder = home.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    // A file of a person, and a link elsewhere, under a name of ours.
    let with_file = folder("file");
    fs::write(with_file.join("key.pem"), "mine").unwrap();
    assert!(put(&with_file, one).unwrap_err().to_string().contains("was not made by the agent"));
    assert_eq!(fs::read(with_file.join("key.pem")).unwrap(), b"mine");
    let with_link = folder("link");
    symlink(&precious, with_link.join("cert-chain.pem")).unwrap();
    assert!(matches!(put(&with_link, one), Err(FolderError::InTheWay(_))));

    // Links where the agent writes.
    let planted = folder("planted");
    symlink(home.path(), planted.join(one.generation())).unwrap();
    assert!(put(&planted, one).is_err());
    let within = folder("within");
    let generation = within.join(one.generation());
    fs::create_dir(&generation).unwrap();
    symlink(&precious, generation.join("key.pem.new")).unwrap();
    symlink(&precious, generation.join("key.pem")).unwrap();
    put(&within, one).unwrap();
    assert_eq!(read(&within), expected(one));

    // The folder itself, or one above it.
    symlink(home.path(), home.path().join("above")).unwrap();
    assert!(matches!(put(&home.path().join("above/deep"), one), Err(FolderError::Link { .. })));
    assert!(!home.path().join("deep").exists());
    symlink(folder("real"), home.path().join("turned")).unwrap();
    assert!(matches!(put(&home.path().join("turned"), one), Err(FolderError::Link { .. })));
    assert!(put(&precious, one).is_err());
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
}

struct World {
    home: TempDir,
    ca: Ca,
    registry: watch::Sender<Arc<Registry>>,
    readiness: Readiness,
    clients: Clients,
    shutdown: Shutdown,
}

impl World {
    fn new(more: serde_json::Value) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut config = serde_json::json!({"registration": "shop.web", "directory": home.path().join("web")});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config: FilesConfig = serde_json::from_value(config).unwrap();
        let registry = watch::Sender::new(Arc::new(Registry::default()));
        let (readiness, clients, shutdown) = (Readiness::new(), Clients::new(), Shutdown::new());
        let keeper = Keeper {
            access: PLAIN,
            config,
            registry: registry.subscribe(),
            clients: clients.clone(),
            part: readiness.part("files"),
        };
        shutdown.spawn("files", keeper.keep(shutdown.clone()));
        Self { home, ca: Ca::new(noon()), registry, readiness, clients, shutdown }
    }

    fn folder(&self) -> std::path::PathBuf {
        self.home.path().join("web")
    }

    fn register(&self, held: Held) -> watch::Sender<Arc<Held>> {
        let node = "spiffe://td.example/node/east/vm-1";
        let wire = v1::Registration {
            id: "shop.web".into(),
            node_id: node.into(),
            spiffe_id: WEB.into(),
            selectors: vec!["uid:1".into()],
            ..v1::Registration::default()
        };
        let registration = Registration::read(&wire, &node.parse().unwrap()).unwrap();
        let held = watch::Sender::new(Arc::new(held));
        let served = Served::new(registration, held.subscribe());
        self.registry.send_replace(Arc::new(Registry::new([Arc::new(served)])));
        held
    }

    fn health(&self) -> Health {
        self.readiness.parts().remove(0).1
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never: {what}; {:?}", self.health());
    }

    /// The serial and the bundle that the reader of the files is known to have.
    fn holds(&self) -> Option<(String, u64)> {
        let clients = self.clients.now(tokio::time::Instant::now());
        let holds = &clients.first()?.holds;
        Some((holds.leaf.clone()?.0, holds.sequence?))
    }

    async fn stop(self) {
        self.shutdown.trigger("test");
        self.shutdown.finished(Duration::from_secs(5)).await.unwrap();
    }
}

#[tokio::test]
async fn files_follow_the_registration_and_its_program_is_told() {
    let told = tempfile::tempdir().unwrap();
    let told = told.path().join("told");
    let count = || fs::read_to_string(&told).map_or(0, |text| text.lines().count());
    let script = format!("echo >> {}", told.display());
    let mut world = World::new(serde_json::json!({"after": {"command": ["sh", "-c", script]}}));
    world
        .until(
            "it says what it waits for",
            |world| matches!(world.health(), Health::NotReady(why) if why.contains("shop.web")),
        )
        .await;

    let first = credentials(&mut world.ca);
    let held = world.register(Held::Nothing("not yet".into()));
    world.until("it waits for the certificate", |world| world.health() == Health::NotReady("not yet".into())).await;
    assert!(!world.folder().exists());
    held.send_replace(Arc::new(Held::Certificate(first.clone())));
    world.until("files", |world| world.health() == Health::Ready).await;
    assert_eq!((read(&world.folder()), count()), (expected(&Content::of(&first, Roots::Own)), 1));
    assert_eq!(world.holds().unwrap().0, first.svid().serial());

    // A rotation; then the same once more, of which the program need not hear.
    let second = credentials(&mut world.ca);
    held.send_replace(Arc::new(Held::Certificate(second.clone())));
    world
        .until("the rotation", |world| world.holds().is_some_and(|(serial, _)| serial == second.svid().serial()))
        .await;
    held.send_replace(Arc::new(Held::Certificate(Arc::new((*second).clone()))));
    // What has expired is nothing to serve, and no reason to take away what the program has.
    held.send_replace(Arc::new(Held::Nothing("it expired".into())));
    world.until("the end", |world| world.health() == Health::NotReady("it expired".into())).await;
    assert_eq!((read(&world.folder()), count()), (expected(&Content::of(&second, Roots::Own)), 2));

    // Nobody's any more.
    world.registry.send_replace(Arc::new(Registry::default()));
    world.until("the files are gone", |world| names(&world.folder()).is_empty()).await;
    world.stop().await;
}

#[tokio::test]
async fn a_program_that_cannot_be_told_is_told_again_and_is_not_taken_to_know() {
    let flag = tempfile::tempdir().unwrap();
    let flag = flag.path().join("up");
    let mut world = World::new(serde_json::json!({"after": {"command": ["ls", flag]}}));
    let first = credentials(&mut world.ca);
    let _held = world.register(Held::Certificate(first.clone()));
    world
        .until(
            "the complaint",
            |world| matches!(world.health(), Health::Degraded(why) if why.contains("ls ended with")),
        )
        .await;
    assert_eq!(read(&world.folder()), expected(&Content::of(&first, Roots::Own)), "the files are there all the same");
    assert_eq!(world.holds().map(|(_, sequence)| sequence), Some(0), "nothing is known of the reader");
    fs::write(&flag, "").unwrap();
    world.until("it is told", |world| world.health() == Health::Ready).await;
    assert_eq!(world.holds().unwrap().0, first.svid().serial());
    world.stop().await;
}

#[tokio::test]
async fn what_an_earlier_run_has_written_stays_until_the_ca_has_spoken() {
    let world = World::new(serde_json::json!({}));
    let [one, ..] = &contents();
    put(&world.folder(), one).unwrap();
    world.registry.send_replace(Arc::new(Registry::default()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(read(&world.folder()), expected(one));
    // It has, and there is no such registration.
    world.registry.send_replace(Arc::new(Registry::default().with_word(true)));
    world.until("the files are gone", |world| names(&world.folder()).is_empty()).await;
    world.stop().await;
}
