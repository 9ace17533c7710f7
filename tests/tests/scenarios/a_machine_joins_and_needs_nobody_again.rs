//! Machines on a network of their own: one is onboarded, and lives through what happens to machines.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use alcazar_identity::X509Svid;
use alcazar_testkit::{DEADLINE, Host, Process, Switch, binary, turn, until};
use tempfile::TempDir;

/// The life of every certificate, in seconds: a renewal comes at five or six of them.
const LIFE: u64 = 14;

const CREDENTIALS: &str = "/run/credentials/alcazar-node-agent.service";
const FILES: &str = "/var/lib/orders";

struct World {
    home: TempDir,
    switch: Switch,
    ca_host: Host,
    _ca: Process,
}

impl World {
    fn new() -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let switch = Switch::new(&home.path().join("switch.log")).unwrap()?;
        let folder = home.path().join("ca");
        fs::create_dir(&folder).unwrap();
        let ca_host = switch.host(1, &folder).unwrap();
        let config = format!(
            "trustDomain: td.example\ncluster: east\ndataDir: {}\nlisten: 10.77.0.1:15012\nadmin: 127.0.0.1:15014\ncertificates: {{ttl: {LIFE}s}}\n",
            folder.join("data").display()
        );
        fs::write(folder.join("ca.yaml"), config).unwrap();
        let mut command = ca_host.command(&binary("alcazar-ca").unwrap());
        command.arg("--config").arg(folder.join("ca.yaml"));
        let ca = ca_host.start(command, "ca.log").unwrap();
        wait_ready(&ca_host, &ca, 15014);
        Some(Self { home, switch, ca_host, _ca: ca })
    }

    /// What the operator does, and the folder that comes of it.
    fn onboard(&self, name: &str) -> PathBuf {
        let out = self.home.path().join(format!("carried-{name}"));
        let output = self.onboarding(name, &out);
        assert!(output.status.success(), "{output:?}");
        out
    }

    fn onboarding(&self, name: &str, out: &Path) -> std::process::Output {
        let mut command = Command::new(binary("alcazar").unwrap());
        command.args(["vm", "onboard", name, "--namespace", "shop", "--service-account", "orders"]);
        command.args(["--ca-address", "10.77.0.1:15012", "--ca"]).arg(self.home.path().join("ca/data/admin.sock"));
        command.arg("--out").arg(out).output().unwrap()
    }

    fn machine(&self, number: u8, folder: &Path) -> Machine {
        let home = self.home.path().join(format!("machine-{number}"));
        fs::create_dir(&home).unwrap();
        let host = self.switch.host(number, &home).unwrap();
        let installed = home.join("installed");
        fs::create_dir_all(installed.join("usr/bin")).unwrap();
        let missing = Command::new(folder.join("install.sh")).env("DESTDIR", &installed).output().unwrap();
        let said = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert!(!missing.status.success() && said.contains("alcazar-node-agent is missing"), "{said}");
        symlink(binary("alcazar-node-agent").unwrap(), installed.join("usr/bin/alcazar-node-agent")).unwrap();
        let output = Command::new(folder.join("install.sh")).env("DESTDIR", &installed).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let config = installed.join("etc/alcazar/agent.yaml");
        let files = format!(
            "files:\n- {{registration: shop.vm-1, directory: {FILES}, keyMode: \"0640\", owner: 4321, group: 4322}}\n"
        );
        fs::write(&config, fs::read_to_string(&config).unwrap() + &files).unwrap();
        Machine { host, installed, agent: None }
    }
}

/// A machine on which the folder was installed.
struct Machine {
    host: Host,
    installed: PathBuf,
    agent: Option<Process>,
}

impl Machine {
    /// What systemd does: the token where the unit says, then the agent.
    fn boot(&mut self) {
        let credentials = self.host.seen(Path::new(CREDENTIALS));
        fs::create_dir_all(&credentials).unwrap();
        fs::copy(self.installed.join("etc/alcazar/token"), credentials.join("join-token")).unwrap();
        let mut command = self.host.command(&binary("alcazar-node-agent").unwrap());
        command.arg("--config").arg(self.installed.join("etc/alcazar/agent.yaml"));
        self.agent = Some(self.host.start(command, "agent.log").unwrap());
    }

    /// The power goes.
    fn crash(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
        self.host.empty_run().unwrap();
    }

    fn agent(&self) -> &Process {
        self.agent.as_ref().unwrap()
    }

    fn wait_ready(&self) {
        wait_ready(&self.host, self.agent(), 15020);
    }

    /// What an old program reads.
    fn certificate(&self) -> Option<X509Svid> {
        let folder = self.host.seen(Path::new(FILES)).join("..data");
        let read = |name: &str| fs::read(folder.join(name)).ok();
        X509Svid::from_pem(&read("cert-chain.pem")?, &read("key.pem")?).ok()
    }

    fn good_certificate(&self) -> Option<X509Svid> {
        self.certificate().filter(|svid| svid.validity().contains(alcazar_service::clock::now()))
    }

    fn wait_for_a_certificate_but(&self, serial: &str) -> X509Svid {
        let other = || self.good_certificate().filter(|svid| svid.serial() != serial);
        until("another certificate", DEADLINE, other).unwrap_or_else(|error| panic!("{error}\n{}", self.agent().log()))
    }
}

fn wait_ready(host: &Host, process: &Process, port: u16) {
    let url = format!("http://127.0.0.1:{port}/readyz");
    let ready = || host.curl(&[&url]).is_ok_and(|answer| answer.code == 200);
    until("readiness", DEADLINE, || ready().then_some(())).unwrap_or_else(|error| panic!("{error}\n{}", process.log()));
}

#[test]
fn a_machine_joins_and_needs_nobody_again() {
    let _turn = turn();
    let Some(world) = World::new() else { return };
    let folder = world.onboard("vm-1");
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("token"), mode("install.sh")), (0o700, 0o600, 0o755));
    // What is there has a token in it: it is not replaced.
    let again = world.onboarding("vm-1", &folder);
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is there already"),
        "{again:?}"
    );
    let mut vm = world.machine(2, &folder);
    vm.boot();
    vm.wait_ready();
    let first = vm.wait_for_a_certificate_but("");
    assert_eq!(first.id().to_string(), "spiffe://td.example/ns/shop/sa/orders");
    let key = fs::metadata(vm.host.seen(Path::new(FILES)).join("..data/key.pem")).unwrap();
    assert_eq!((key.uid(), key.gid(), key.mode() & 0o777), (4321, 4322, 0o640));

    // A thief has copied the folder.
    let mut thief = world.machine(3, &folder);
    thief.boot();
    thief.agent().wait_for_line("the refusal", |line| line.contains("token") && line.contains("used")).unwrap();
    assert!(thief.certificate().is_none());
    drop(thief);

    // A cable is cut for longer than half of a certificate's life: there is a good one at each moment.
    vm.host.cut().unwrap();
    let before = vm.good_certificate().unwrap();
    let cut = Instant::now();
    while cut.elapsed() < Duration::from_secs(LIFE / 2 + 1) {
        assert!(vm.good_certificate().is_some(), "{}", vm.agent().log());
        std::thread::sleep(Duration::from_millis(100));
    }
    vm.host.mend().unwrap();
    vm.wait_for_a_certificate_but(before.serial());

    // The power goes; the token is used, and nobody brings another.
    let before = vm.wait_for_a_certificate_but("");
    vm.crash();
    vm.boot();
    vm.wait_ready();
    vm.wait_for_a_certificate_but(before.serial());
    assert!(vm.host.curl(&["http://127.0.0.1:15020/healthz"]).unwrap().code == 200);
    drop(world.ca_host);
}
