//! `alcazar ledger` against a CA that runs, and against its files.

use std::fs;
use std::path::Path;
use std::time::Duration;

use alcazar_ca::{Ca, Config};
use alcazar_service::{Readiness, Shutdown, clock};
use tokio::net::TcpListener;

/// A CA that serves, in this process.
struct Running {
    shutdown: Shutdown,
    runtime: tokio::runtime::Runtime,
    root: Vec<u8>,
    serial: String,
}

impl Running {
    fn start(dir: &Path) -> Self {
        alcazar_mtls::install_default_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        let (root, serial) = runtime.block_on(async {
            let ca = Ca::open(Config::new(dir), clock::system()).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let running = ca.run(listener, shutdown.clone(), readiness.clone());
            shutdown.spawn("the CA of a test", async move { running.await.unwrap() });
            readiness.wait().await;
            let serial = ca.issued(None, 1).await.unwrap().remove(0).serial;
            (ca.trust_bundles().get(ca.trust_domain()).unwrap().to_pem().into_bytes(), serial)
        });
        Self { shutdown, runtime, root, serial }
    }

    fn stop(self) {
        self.shutdown.trigger("the test is over");
        self.runtime.block_on(self.shutdown.finished(Duration::from_secs(20))).unwrap();
    }
}

/// Runs `alcazar ledger` with these words: whether it succeeded, and what it said.
fn ledger(words: &[&str]) -> (bool, String) {
    let output = assert_cmd::Command::cargo_bin("alcazar").unwrap().arg("ledger").args(words).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn an_operator_lists_shows_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, state, root) = (path("ca/admin.sock"), path("state.json"), path("root.pem"));
    let dir = folder.path().join("ca");
    let ca = Running::start(&dir);
    fs::write(&root, &ca.root).unwrap();

    let (good, said) = ledger(&["list", "--ca", &socket]);
    assert!(
        good && said.contains(&ca.serial) && said.contains("spiffe://cluster.local/ns/alcazar-system/sa/alcazar-ca"),
        "{said}"
    );
    let (good, said) = ledger(&["list", "--ca", &socket, "--json", "--caller", "ca", "--since", "1h"]);
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["certificate", "intermediate", "root"]);
    let line = &lines[0];
    assert!(good && line["serial"] == ca.serial.as_str() && line["entry"] == 2, "{said}");
    let (good, said) = ledger(&["list", "--ca", &socket, "--until", "1h"]);
    assert!(good && said.contains("nothing on record"), "{said}");

    let colons: Vec<_> =
        ca.serial.to_uppercase().as_bytes().chunks(2).map(|pair| String::from_utf8(pair.to_vec()).unwrap()).collect();
    for serial in [&ca.serial, &colons.join(":")] {
        let (good, said) = ledger(&["show", serial, "--ca", &socket, "--root", &root]);
        assert!(
            good && said.contains("entry 2 is in the ledger of 3 entries") && said.contains("BEGIN CERTIFICATE"),
            "{said}"
        );
    }
    let (good, said) = ledger(&["show", "00ff", "--ca", &socket]);
    assert!(!good && said.contains("nothing with the serial number 00ff"), "{said}");

    let verify = ["verify", "--ca", &socket, "--root", &root, "--state", &state, "--files"];
    let (good, said) = ledger(&verify);
    assert!(
        good && said.contains("the first in") && said.contains("the newest 3 entries") && said.contains("1 segments"),
        "{said}"
    );
    ca.stop();

    // Another start, another certificate: the head goes on from the one that was seen.
    let ca = Running::start(&dir);
    let (good, said) = ledger(&verify[..7]);
    assert!(good && said.contains("4 entries") && said.contains("with the 3 entries that were seen at"), "{said}");
    let (good, said) = ledger(&["verify", "--ca", &socket, "--state", &state]);
    assert!(good && said.contains("with the 4 entries"), "roots from the state: {said}");
    let (good, said) = ledger(&["verify", "--dir", &path("ca/ledger")]);
    assert!(!good && said.contains("in use by another process"), "{said}");
    ca.stop();
    let (good, said) = ledger(&["verify", "--dir", &path("ca/ledger")]);
    assert!(good && said.contains("4 entries") && said.contains("not asked"), "{said}");

    // Files of a backup are held against what was seen of the CA.
    let held = ["verify", "--dir", &path("ca/ledger"), "--state", &state];
    let (good, said) = ledger(&held);
    assert!(good && said.contains("consistent  with the 4 entries"), "{said}");
    let text = fs::read_to_string(&state).unwrap();
    for (field, value, reason) in [
        ("size", serde_json::json!(9), "these files end after 4 entries"),
        ("rootHash", serde_json::json!(vec![7; 32]), "the first 4 entries in these files are not those"),
        ("ledger", serde_json::json!("00"), "the last head seen was of the ledger 00"),
    ] {
        let mut seen: serde_json::Value = serde_json::from_str(&text).unwrap();
        seen[field] = value;
        fs::write(&state, seen.to_string()).unwrap();
        let (good, said) = ledger(&held);
        assert!(!good && said.contains(reason), "{said}");
    }
    let (good, said) = ledger(&["verify", "--dir", &path("ca/ledger"), "--state", &path("none.json")]);
    assert!(good && said.contains("not known"), "{said}");
    let (good, said) = ledger(&verify);
    assert!(!good && said.contains("no CA answers on"), "{said}");
}

#[test]
fn what_is_not_as_it_was_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, state, other_root) = (path("ca/admin.sock"), path("state.json"), path("other.pem"));
    let other = Running::start(&folder.path().join("other"));
    fs::write(&other_root, &other.root).unwrap();
    other.stop();
    let ca = Running::start(&folder.path().join("ca"));
    let verify = |more: &[&str]| ledger(&[&["verify", "--ca", &socket], more].concat());
    let (good, said) = verify(&["--root", &other_root]);
    assert!(!good && said.contains("not to be believed (roots from") && said.contains("leads to no root"), "{said}");
    let (good, said) = verify(&["--root", &path("nothing.pem")]);
    assert!(!good && said.contains("cannot read"), "{said}");
    let (good, said) = verify(&["--root", &state]);
    assert!(!good && said.contains("cannot read"), "{said}");
    assert!(verify(&["--state", &state]).0);

    // The state of a head that was never this ledger's, and of another ledger.
    let text = fs::read_to_string(&state).unwrap();
    let mut seen: serde_json::Value = serde_json::from_str(&text).unwrap();
    seen["rootHash"][0] = (seen["rootHash"][0].as_u64().unwrap() ^ 1).into();
    fs::write(&state, seen.to_string()).unwrap();
    let (good, said) = verify(&["--state", &state]);
    assert!(!good && said.contains("does not go on from the head of 3 entries"), "{said}");
    seen["size"] = 9.into();
    fs::write(&state, seen.to_string()).unwrap();
    let (good, said) = verify(&["--state", &state]);
    assert!(!good && said.contains("never shrinks"), "{said}");
    seen["ledger"] = "00".into();
    fs::write(&state, seen.to_string()).unwrap();
    let (good, said) = verify(&["--state", &state]);
    assert!(!good && said.contains("the last head seen was of the ledger 00"), "{said}");
    fs::write(&state, "{}").unwrap();
    let (good, said) = verify(&["--state", &state]);
    assert!(!good && said.contains("is not a state"), "{said}");
    ca.stop();

    let file = folder.path().join("ca/ledger/000000000000.entries");
    let mut bytes = fs::read(&file).unwrap();
    bytes[200] ^= 4;
    fs::write(&file, bytes).unwrap();
    let (good, said) = ledger(&["verify", "--dir", &path("ca/ledger")]);
    assert!(!good && said.contains("000000000000.entries at byte") && said.contains("checksum"), "{said}");
}
