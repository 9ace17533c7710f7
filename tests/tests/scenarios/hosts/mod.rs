//! A CA and machines on a network of their own, as the operator onboards them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use alcazar_identity::X509Svid;
use alcazar_testkit::{DEADLINE, Host, Process, Switch, binary, until, wrong_clock};
use tempfile::TempDir;

const CONTROL: &str = "alcazar-system.alcazar-control";
const CREDENTIALS: &str = "/run/credentials/alcazar-node-agent.service";
pub(crate) const FILES: &str = "/var/lib/orders";

/// A CA on a host of its own, and room for machines beside it.
pub(crate) struct World {
    home: TempDir,
    switch: Switch,
    ca_host: Host,
    _ca: Process,
}

impl World {
    /// Certificates live for so many seconds. `None` where this user may have no networks.
    pub(crate) fn new(life: u64) -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let switch = Switch::new(&home.path().join("switch.log")).unwrap()?;
        let folder = home.path().join("ca");
        fs::create_dir(&folder).unwrap();
        let ca_host = switch.host(1, &folder).unwrap();
        let config = format!(
            "trustDomain: td.example\ncluster: east\ndataDir: {}\nlisten: 10.77.0.1:15012\nadmin: 127.0.0.1:15014\ncertificates: {{ttl: {life}s}}\nregistrations:\n- {{id: {CONTROL}, node: one, identity: alcazar-system/alcazar-control, selectors: ['socket:{CONTROL}']}}\n",
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
    pub(crate) fn onboard(&self, name: &str) -> PathBuf {
        self.onboard_as(name, "orders", &[])
    }

    /// The same with another service account and more words.
    pub(crate) fn onboard_as(&self, name: &str, account: &str, more: &[&str]) -> PathBuf {
        let out = self.home.path().join(format!("carried-{name}"));
        let output = self.onboarding(name, account, &out, more);
        assert!(output.status.success(), "{output:?}");
        out
    }

    pub(crate) fn onboarding(&self, name: &str, account: &str, out: &Path, more: &[&str]) -> std::process::Output {
        let mut command = Command::new(binary("alcazar").unwrap());
        command.args(["vm", "onboard", name, "--namespace", "shop", "--service-account", account]).args(more);
        command.args(["--ca-address", "10.77.0.1:15012", "--ca"]).arg(self.home.path().join("ca/data/admin.sock"));
        command.arg("--out").arg(out).output().unwrap()
    }

    /// A control plane beside the CA, with an agent of its own.
    pub(crate) fn control(&self, mesh: &str, policy: &str) -> [Process; 2] {
        let folder = self.home.path().join("ca");
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        let start = |program: &str, name: &str, port| {
            let mut command = self.ca_host.command(&binary(program).unwrap());
            command.arg("--config").arg(folder.join(format!("{name}.yaml")));
            let process = self.ca_host.start(command, &format!("{name}.log")).unwrap();
            wait_ready(&self.ca_host, &process, port);
            process
        };
        let mut token = Command::new(binary("alcazar-ca").unwrap());
        let token = token.args(["token", "--node", "one", "--config"]).arg(folder.join("ca.yaml")).output().unwrap();
        assert!(token.status.success(), "{token:?}");
        write("token", str::from_utf8(token.stdout.trim_ascii()).unwrap());
        let at = folder.display();
        write("mesh.yaml", &format!("trustDomain: td.example\ncluster: east\npolicies: policy.yaml\n{mesh}"));
        write("policy.yaml", policy);
        write(
            "agent.yaml",
            &format!(
                "trustDomain: td.example\ncluster: east\nnode: one\ncaAddress: 10.77.0.1:15012\njoinTokenFile: {at}/token\ndataDir: {at}/agent\nsocketsDir: /run/alcazar\nadmin: 127.0.0.1:15020\n"
            ),
        );
        write(
            "control.yaml",
            &format!(
                "mesh: {at}/mesh.yaml\nlisten: 10.77.0.1:15010\nsdsSocket: /run/alcazar/{CONTROL}.sock\nadmin: 127.0.0.1:15016\n"
            ),
        );
        [start("alcazar-node-agent", "agent", 15020), start("alcazar-control", "control", 15016)]
    }

    /// A host for a machine, and where it keeps its things.
    pub(crate) fn host(&self, number: u8) -> (Host, PathBuf) {
        let home = self.home.path().join(format!("machine-{number}"));
        fs::create_dir(&home).unwrap();
        (self.switch.host(number, &home).unwrap(), home)
    }

    pub(crate) fn machine(&self, number: u8, folder: &Path) -> Machine {
        let (host, home) = self.host(number);
        let installed = home.join("installed");
        fs::create_dir_all(installed.join("usr/bin")).unwrap();
        let missing = Command::new(folder.join("install.sh")).env("DESTDIR", &installed).output().unwrap();
        let said = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert!(!missing.status.success() && said.contains("alcazar-node-agent is missing"), "{said}");
        for program in ["alcazar-node-agent", "alcazar-proxy"] {
            symlink(binary(program).unwrap(), installed.join("usr/bin").join(program)).unwrap();
        }
        let output = Command::new(folder.join("install.sh")).env("DESTDIR", &installed).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let config = installed.join("etc/alcazar/agent.yaml");
        let node = fs::read_to_string(&config).unwrap();
        let name = node.lines().find_map(|line| line.strip_prefix("node: ")).unwrap();
        let files = format!(
            "files:\n- {{registration: shop.{name}, directory: {FILES}, keyMode: \"0640\", owner: 4321, group: 4322}}\n"
        );
        fs::write(&config, node.clone() + &files).unwrap();
        Machine { host, installed, agent: None }
    }
}

/// A machine on which the folder was installed.
pub(crate) struct Machine {
    pub(crate) host: Host,
    pub(crate) installed: PathBuf,
    agent: Option<Process>,
}

impl Machine {
    /// What systemd does: the token where the unit says, then the agent.
    pub(crate) fn boot(&mut self) {
        self.boot_with(|_| ());
    }

    /// The same with a clock that is so many seconds wrong.
    pub(crate) fn boot_wrong_by(&mut self, faketime: &Path, seconds: i64) {
        self.boot_with(|command| wrong_clock(command, faketime, seconds));
    }

    fn boot_with(&mut self, change: impl FnOnce(&mut Command)) {
        let credentials = self.host.seen(Path::new(CREDENTIALS));
        fs::create_dir_all(&credentials).unwrap();
        fs::copy(self.installed.join("etc/alcazar/token"), credentials.join("join-token")).unwrap();
        let mut command = self.host.command(&binary("alcazar-node-agent").unwrap());
        command.arg("--config").arg(self.installed.join("etc/alcazar/agent.yaml"));
        change(&mut command);
        self.agent = Some(self.host.start(command, "agent.log").unwrap());
    }

    /// The power goes.
    pub(crate) fn crash(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
        self.host.empty_run().unwrap();
    }

    pub(crate) fn agent(&self) -> &Process {
        self.agent.as_ref().unwrap()
    }

    pub(crate) fn wait_ready(&self) {
        wait_ready(&self.host, self.agent(), 15020);
    }

    /// What `alcazar agent status` says there.
    pub(crate) fn status(&self) -> String {
        let mut command = self.host.command(&binary("alcazar").unwrap());
        let output = command.args(["agent", "status"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What an old program reads.
    pub(crate) fn certificate(&self) -> Option<X509Svid> {
        let folder = self.host.seen(Path::new(FILES));
        // Once: it is turned between one file and the next.
        let folder = folder.join(fs::read_link(folder.join("..data")).ok()?);
        let read = |name: &str| fs::read(folder.join(name)).ok();
        X509Svid::from_pem(&read("cert-chain.pem")?, &read("key.pem")?).ok()
    }

    pub(crate) fn good_certificate(&self) -> Option<X509Svid> {
        self.certificate().filter(|svid| svid.validity().contains(alcazar_service::clock::now()))
    }

    pub(crate) fn wait_for_a_certificate_but(&self, serial: &str) -> X509Svid {
        let other = || self.good_certificate().filter(|svid| svid.serial() != serial);
        until("another certificate", DEADLINE, other).unwrap_or_else(|error| panic!("{error}\n{}", self.agent().log()))
    }
}

/// What starts takes its time on a loaded machine; what has ended is not waited for.
pub(crate) const START: Duration = Duration::from_secs(120);

pub(crate) fn wait_ready(host: &Host, process: &Process, port: u16) {
    let url = format!("http://127.0.0.1:{port}/readyz");
    let ready = || host.curl(&[&url]).is_ok_and(|answer| answer.code == 200);
    process.until("readiness", START, || ready().then_some(())).unwrap_or_else(|error| panic!("{error:?}"));
}
