//! What an operator reads of a CA that runs, and what where there is none: the words, as they are.

use std::path::Path;
use std::time::Duration;

use alcazar_ca::{Ca, Config};
use alcazar_service::{Readiness, Shutdown, clock};
use tokio::net::TcpListener;

/// A CA that serves, in this process.
struct Running {
    shutdown: Shutdown,
    runtime: tokio::runtime::Runtime,
}

impl Running {
    fn start(dir: &Path) -> Self {
        alcazar_mtls::install_default_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        runtime.block_on(async {
            let ca = Ca::open(Config::new(dir), clock::system()).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let running = ca.run(listener, shutdown.clone(), readiness.clone());
            shutdown.spawn("the CA of a test", async move { running.await.unwrap() });
            readiness.wait().await;
        });
        Self { shutdown, runtime }
    }

    fn stop(self) {
        self.shutdown.trigger("the test is over");
        self.runtime.block_on(self.shutdown.finished(Duration::from_secs(20))).unwrap();
    }
}

/// Runs `alcazar` with these words: whether it succeeded, what it said, and what it complained of.
fn alcazar(words: &[&str]) -> (bool, String, String) {
    let output = assert_cmd::Command::cargo_bin("alcazar").unwrap().args(words).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// The words without what is another at each run, one space between them.
fn words(text: &str) -> String {
    let word = |word: &str| {
        let (bare, end) = word.strip_suffix([',', ';']).map_or((word, ""), |bare| (bare, &word[bare.len()..]));
        let is = |kind: fn(&u8) -> bool| bare.bytes().all(|byte| kind(&byte));
        let name = if bare.len() >= 16 && is(u8::is_ascii_hexdigit) {
            "<hex>"
        } else if bare.len() == 20 && bare.ends_with('Z') {
            "<time>"
        } else if bare.len() > 3 && is(u8::is_ascii_digit) {
            "<number>"
        } else if bare.ends_with('%') {
            "<part>"
        } else if bare.trim_matches(['(', ')']).trim_end_matches(['d', 'h', 'm', 's']).parse::<u32>().is_ok()
            && !is(u8::is_ascii_digit)
        {
            "<span>"
        } else {
            bare
        };
        format!("{name}{end}")
    };
    text.lines().map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn of_a_ca_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Running::start(&folder.path().join("ca"));
    let socket = folder.path().join("ca/admin.sock").to_str().unwrap().to_owned();

    let (good, said, complaint) = alcazar(&["ca", "status", "--ca", &socket]);
    assert!(good && complaint.is_empty(), "{complaint}");
    let said = words(&said);
    // Further parts may say how they are; each that is there is ready.
    let (before, rest) = said.split_once("PART STATE WHY\n").unwrap();
    let (parts, facts) = rest.split_once("\n\n").unwrap();
    assert_eq!(
        before,
        "trust domain cluster.local\ncluster local\nup for <span>\nissued 0 of 0 that were asked for\nrefused none\n\
         waiting 0 (none told to come back)\n\n\
         CERTIFICATE LEFT UNTIL FINGERPRINT\nroot <part> <span> <time> <hex>\nintermediate <part> <span> <time> <hex>\n\
         serving <part> <span> <time> <hex>\n\n"
    );
    for part in ["hierarchy", "issuance"] {
        assert!(parts.lines().any(|line| line == format!("{part} ready")), "{parts}");
    }
    assert!(parts.lines().all(|line| line.ends_with(" ready")), "{parts}");
    // Replicas are told by names of their own, and these count what is another at each start.
    let (replicas, facts): (Vec<_>, Vec<_>) = facts.lines().partition(|line| line.starts_with("replicas "));
    assert!(replicas.len() <= 1, "{replicas:?}");
    let counts = ["trust sequence ", "ledger entries ", "revocation version "];
    let facts = facts.into_iter().map(|line| match counts.iter().find(|count| line.starts_with(**count)) {
        Some(count) if line[count.len()..].parse::<u64>().is_ok() || line.ends_with("<number>") => {
            format!("{count}<number>")
        }
        _ => line.to_owned(),
    });
    let facts: Vec<_> = facts.collect();
    assert_eq!(
        facts.join("\n") + "\n",
        "OF NOW\ntrust sequence <number>\ntrust roots 1\nledger entries <number>\nledger root <hex>\nledger last signed head 3 entries, <time>\n\
         revocation version <number>\nrevocation certificates 0\nrevocation identities 0\nrevocation intermediates 0\n\
         rotation under way none, and there was none\njwt-svids issued 0 of 0 that were asked for\njwt-svids keys 1\n\
         jwt-svids signs with <hex>, until <time>\nstore is sled, in the data folder\n"
    );
    let (good, json, _) = alcazar(&["ca", "status", "--ca", &socket, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(good && value["facts"][0]["part"] == "trust", "{json}");

    let (good, said, complaint) = alcazar(&["ledger", "list", "--ca", &socket]);
    let id = "spiffe://cluster.local/ns/alcazar-system/sa/alcazar-ca";
    let listed = words(&said);
    let (first, entries) = listed.split_once('\n').unwrap();
    assert_eq!(first, "ENTRY KIND ISSUED UNTIL IDENTITY SERIAL CALLER");
    // The certificate that the CA serves with.
    let own = format!(" <time> <time> {id} <hex> ca");
    assert!(entries.lines().any(|entry| entry.ends_with(&own)), "{said}");
    assert!(good && complaint.is_empty(), "{complaint}");

    let (good, said, complaint) = alcazar(&["bundle", "show", "--ca", &socket]);
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(good && document["keys"][0]["use"] == "x509-svid" && complaint.is_empty(), "{said}{complaint}");
    let (good, said, complaint) = alcazar(&["bundle", "show", "--ca", &socket, "--format", "pem"]);
    let is_pem = said.starts_with("-----BEGIN CERTIFICATE-----\n") && said.ends_with("-----END CERTIFICATE-----\n");
    assert!(good && is_pem && complaint.is_empty(), "{said}{complaint}");
    let (good, said, complaint) = alcazar(&["bundle", "show", "--ca", &socket, "--trust-domain", "other.example"]);
    let expected = "alcazar: the CA has no bundle of other.example; `alcazar bundle list` names those it has\n";
    assert_eq!((good, said.as_str(), complaint.as_str()), (false, "", expected));

    let registration = |words: &[&str]| alcazar(&[&["registration"], words, &["--ca", &socket]].concat());
    assert_eq!(registration(&["list"]).1, "no workload is registered\n");
    let web = ["put", "shop.web", "--node", "vm-1", "--identity", "shop/web", "--selector", "uid:7", "--ttl", "30m"];
    let (good, said, complaint) = registration(&web);
    assert_eq!((good, complaint.as_str()), (true, ""));
    assert_eq!(said, "shop.web: spiffe://cluster.local/ns/shop/sa/web on spiffe://cluster.local/node/local/vm-1\n");
    let (_, said, _) = registration(&["list"]);
    let listed =
        "shop.web spiffe://cluster.local/node/local/vm-1 spiffe://cluster.local/ns/shop/sa/web uid:7 30 min default";
    assert_eq!(words(&said).lines().nth(1), Some(listed));
    let (good, _, complaint) =
        registration(&["put", "shop.db", "--node", "vm-1", "--identity", "shop/db", "--selector", "hat:red"]);
    assert!(!good && complaint.starts_with("alcazar: ") && complaint.contains("hat:red"), "{complaint}");

    // A machine does not take another's workload by its name.
    let out = folder.path().join("vm").to_str().unwrap().to_owned();
    let onboard = |name: &str, account: &str| {
        let words = ["vm", "onboard", name, "--namespace", "shop", "--service-account", account];
        alcazar(&[&words[..], &["--ca-address", "ca.example:15012", "--out", &out, "--ca", &socket]].concat())
    };
    let (good, _, complaint) = onboard("web", "web");
    assert!(!good && complaint.contains("the registration shop.web is") && !Path::new(&out).exists(), "{complaint}");
    let (good, said, complaint) = onboard("vm-9", "db");
    assert!(good && complaint.is_empty() && said.contains("install.sh"), "{said}{complaint}");
    let agent = std::fs::read_to_string(Path::new(&out).join("agent.yaml")).unwrap();
    assert!(agent.contains("node: vm-9\n"), "{agent}");
    assert!(registration(&["list"]).1.contains("socket:shop.vm-9"));
    assert!(registration(&["delete", "shop.web"]).0);
    let (good, _, complaint) = registration(&["delete", "shop.web"]);
    assert_eq!((good, complaint.as_str()), (false, "alcazar: there is no registration shop.web\n"));
    ca.stop();
}

#[test]
fn where_no_ca_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (missing, file, left) = (path("none.sock"), path("file"), path("left.sock"));
    std::fs::write(&file, "").unwrap();
    // As a CA that was killed leaves it.
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    for (socket, expected) in [
        (
            &missing,
            format!(
                "there is no socket {missing}; start the CA (`alcazar up`, or `alcazar-ca --config ca.yaml`), or name its socket with --ca (admin.sock in its dataDir)"
            ),
        ),
        (
            &file,
            format!(
                "no CA answers on {file}, as it does while it runs; start it (`alcazar up`, or `alcazar-ca --config ca.yaml`), or name its socket with --ca (admin.sock in its dataDir)"
            ),
        ),
        (
            &left,
            format!(
                "no CA answers on {left}, as it does while it runs; start it (`alcazar up`, or `alcazar-ca --config ca.yaml`), or name its socket with --ca (admin.sock in its dataDir)"
            ),
        ),
    ] {
        for command in [&["ca", "status"][..], &["ledger", "list"], &["bundle", "show"]] {
            let (good, said, complaint) = alcazar(&[command, &["--ca", socket]].concat());
            assert!(!good && said.is_empty(), "{said}");
            let first = complaint.strip_prefix("alcazar: ").unwrap();
            assert!(first.starts_with(&expected), "{command:?}: {complaint:?}\n{expected:?}");
        }
    }
}
