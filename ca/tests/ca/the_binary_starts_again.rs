//! The real binary: killed, started again, and what it says at a start.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use alcazar_service::clock;

use crate::support::{Hands, Served, key, node};

/// The real binary; killed when dropped.
struct Process {
    child: Child,
    /// What it said until it served.
    said: Vec<String>,
}

impl Process {
    /// Starts it and waits until it says that it serves.
    #[allow(clippy::zombie_processes, reason = "waited for when it ends early, and when this is dropped")]
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_alcazar-ca"))
            .arg("--config")
            .arg(config)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        while let Some(line) = lines.next() {
            let line = line.unwrap();
            let serves = line.contains("the certificate authority serves");
            said.push(line);
            if serves {
                // Read on, or its log has nowhere to go.
                std::thread::spawn(move || lines.count());
                return Self { child, said };
            }
        }
        panic!("it ended with {}: {said:?}", child.wait().unwrap());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The binary is killed with SIGKILL again and again; every token that it printed admits its node in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_goes_on_with_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = folder.path().join("ca.yaml");
    fs::write(&config, format!("dataDir: {}\nlisten: 127.0.0.1:0\n", data.display())).unwrap();
    let token = |name: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_alcazar-ca"))
            .args(["token", "--node", name, "--ttl", "1h", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // Before there is anything: the first token makes the CA.
    let mut tokens = vec![("before".to_owned(), token("before"))];
    for round in 0..4 {
        let running = Process::start(&config);
        assert!(!running.said.iter().any(|line| line.contains("a new root was made")), "{:?}", running.said);
        let name = format!("n{round}");
        tokens.push((name.clone(), token(&name)));
        drop(running);
    }
    let pins: std::collections::BTreeSet<_> =
        tokens.iter().map(|(_, token)| token.rsplit('.').next().unwrap().to_owned()).collect();
    assert_eq!(pins.len(), 1, "one root throughout");

    let served = Served::start(&data, &Hands::at(clock::now())).await;
    assert!(pins.contains(&served.ca.fingerprints().root.fingerprint.to_string()));
    for (name, token) in tokens {
        let key = key();
        let issued = served.attest(&token, &key).await.unwrap();
        assert_eq!(*crate::support::svid(&issued, &key).id(), node(&name));
    }
    served.stop().await;
}

/// What root wrote into the folder of a CA that runs as another user, that CA could not read.
#[test]
fn a_token_is_made_by_the_ca_or_by_its_user() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = (folder.path().join("data"), folder.path().join("ca.yaml"));
    fs::write(&config, format!("dataDir: {}\nlisten: 127.0.0.1:0\n", data.display())).unwrap();
    fs::create_dir(&data).unwrap();
    if std::os::unix::fs::chown(&data, Some(4242), None).is_err() {
        println!("passed over: only root can give a folder to somebody else");
        return;
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_alcazar-ca")).args(["token", "--node", "a", "--config"]).arg(&config).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("user 4242's") && said.contains("Start the CA first"), "{said}");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_new_root_is_said_loudly_with_its_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = (folder.path().join("data"), folder.path().join("ca.yaml"));
    fs::write(&config, format!("dataDir: {}\nlisten: 127.0.0.1:0\n", data.display())).unwrap();
    let running = Process::start(&config);
    let line = running.said.iter().find(|line| line.contains("a new root was made")).expect("it is said").clone();
    let pem = fs::read(data.join("hierarchy/root.pem")).unwrap();
    let root: alcazar_identity::CertificateDer<'_> = rustls_pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    let fingerprint = alcazar_identity::Fingerprint::of(&root).to_string();
    assert!(line.contains("WARN") && line.contains(&fingerprint), "{line}");
}

#[test]
fn a_bad_configuration_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ca.yaml");
    let run = |text: &str| {
        fs::write(&config, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_alcazar-ca")).arg("--config").arg(&config).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run("dataDir: /tmp/x\ntrustDomian: a\n");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("trustDomian") && said.contains("ca.yaml:2:1"), "{said}");
    let (code, said) = run("dataDir: /tmp/x\ncertificates: {ttl: 1 hour}\n");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is not a span of time"), "{said}");
}
