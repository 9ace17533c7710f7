//! The packages and the units for real: a container that systemd boots, with the folder of an onboarded machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use alcazar_testkit::{ControlGroups, Host, Process, binary, passed_over, turn};

use crate::hosts::{START, World, wait_ready};
use crate::packages_are_installed_and_removed::{can_install, dpkg, packages};

const MESH: &str = "
workloads:
- {name: orders, namespace: shop, serviceAccount: orders, address: 10.77.0.2, inbound: '10.77.0.2:15008', outbound: '127.0.0.1:15101'}
";

const POLICY: &str = "apiVersion: rbac.istio.io/v1alpha1
kind: ClusterRbacConfig
metadata: {name: default}
spec: {mode: 'ON'}
";

#[test]
fn units_run_where_systemd_boots() {
    let _turn = turn();
    let nspawn = Command::new("systemd-nspawn").arg("--version").output().is_ok_and(|output| output.status.success());
    if !nspawn || !can_install() {
        return passed_over("root, dpkg and systemd-nspawn (Debian: systemd-container)").unwrap();
    }
    let Some(world) = World::new(3600) else { return };
    let _mesh = world.control(MESH, POLICY);
    let more = ["--control-address", "10.77.0.1:15010", "--outbound-user", "1000"];
    let folder = world.onboard_as("orders", "orders", &more);
    let (host, home) = world.host(2);

    // The packages, then the folder, in an image whose other programs are this machine's.
    let root = home.join("root");
    for name in ["dev", "proc", "root", "run", "sys", "tmp", "usr"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64", "sbin"] {
        symlink(Path::new("usr").join(name), root.join(name)).unwrap();
    }
    let debs = packages(&home.join("packages"));
    dpkg(&root, &["--install"].into_iter().chain(debs.iter().map(|deb| deb.to_str().unwrap())).collect::<Vec<_>>());
    for deb in &debs {
        fs::copy(deb, root.join("root").join(deb.file_name().unwrap())).unwrap();
    }
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    fs::copy(folder.join("alcazar-proxy.service"), units.join("alcazar-proxy.service")).unwrap();
    let installed = Command::new(folder.join("install.sh")).env("DESTDIR", &root).output().unwrap();
    assert!(installed.status.success(), "{installed:?}");
    let own: Vec<_> = fs::read_dir(&units).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(own, ["alcazar-proxy.service.old"], "the packages have the units");
    assert!(String::from_utf8_lossy(&installed.stdout).contains("the unit of the package"), "{installed:?}");
    let ca = root.join("etc/alcazar/ca.yaml");
    let named = fs::read_to_string(&ca).unwrap().replace("trustDomain: \"CHANGE ME\"", "trustDomain: other.example");
    fs::write(&ca, named.replace("cluster: \"CHANGE ME\"", "cluster: east")).unwrap();
    // Not its first start, at which systemd would enable everything that there is.
    fs::write(root.join("etc/machine-id"), "6d9b1f0c2a5e4f8b9c3d7e6a5b4c3d2e\n").unwrap();
    fs::copy("/etc/os-release", root.join("etc/os-release")).unwrap();
    let mut enable = Command::new("systemctl");
    enable.arg("--root").arg(&root).args([
        "enable",
        "alcazar-node-agent.socket",
        "alcazar-node-agent",
        "alcazar-proxy",
        "alcazar-ca",
    ]);
    let enabled = enable.output().unwrap();
    assert!(enabled.status.success(), "{enabled:?}");

    let state = root.join("var/lib/private/alcazar-agent");
    let first = Booted::boot(&host, &root);
    let status = status(&state);
    assert!(status.contains("spiffe://td.example/node/east/orders") && status.contains("join token"), "{status}");
    // Our proxy, known by its unit and on the socket that systemd holds; and it is another user than the agent.
    let proxy = status
        .lines()
        .find(|line| line.starts_with("spiffe://td.example/ns/shop/sa/orders") && line.contains("uid 1000"));
    let caller = proxy.and_then(|line| line.rsplit_once("uid ")).unwrap_or_else(|| panic!("{status}")).1;
    let user: u32 = caller.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    let agent = fs::metadata(&state).unwrap().uid();
    assert!(agent != 0 && user != 0 && user != agent, "{agent} and {user}: {status}");

    // A reboot: the token is used, and nobody is needed.
    drop(first);
    let again = Booted::boot(&host, &root);

    // An update: what runs goes on with the new programs.
    let began = |unit: &str| again.run(&format!("systemctl show --property=ExecMainStartTimestampMonotonic {unit}"));
    let before = UNITS.map(began);
    again.run("dpkg --force-depends --install /root/*.deb");
    let all = || UNITS.map(began).iter().zip(&before).all(|(after, before)| after != before).then_some(());
    again.machine.until("new programs", START, all).unwrap();
    again.wait_ready(&host);
    // A systemctl that fails leaves no package half configured.
    again.run("ln -s /bin/false /run/systemctl && PATH=/run:$PATH dpkg --force-depends --install /root/alcazar-*.deb");

    // And an end.
    again.run("dpkg --force-depends --purge alcazar-proxy alcazar-node-agent alcazar-ca");
    let left = again.run("systemctl list-units --all --plain --no-legend --state=active 'alcazar-*'");
    assert_eq!(left, "");
    assert!(!state.exists() && !root.join("etc/alcazar").exists());
}

const UNITS: [&str; 3] = ["alcazar-node-agent", "alcazar-proxy", "alcazar-ca"];

/// A container that was booted. It ends as a machine does that is shut down.
struct Booted {
    machine: Process,
    /// Its own, which go after it.
    _groups: ControlGroups,
}

impl Booted {
    /// Starts it as a machine starts, on the network of this host, until its services say that they are ready.
    fn boot(host: &Host, root: &Path) -> Self {
        let name = format!("alcazar-orders-{}", std::process::id());
        let groups = ControlGroups::make(&name).unwrap();
        let mut command = groups.command(Path::new("systemd-nspawn"));
        command.args(["--boot", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"]);
        command.arg(format!("--machine={name}"));
        command.arg(format!("--directory={}", root.display()));
        command.arg(format!("--overlay=/usr:{}:/usr", root.join("usr").display()));
        command.arg(format!("--network-namespace-path={}", host.network().display()));
        let machine = host.start(command, "boot.log").unwrap();
        let booted = Self { machine, _groups: groups };
        booted.wait_ready(host);
        booted
    }

    fn wait_ready(&self, host: &Host) {
        for port in [15020, 15021, 15014] {
            wait_ready(host, &self.machine, port);
        }
    }

    /// Runs words of a shell in it, which have to succeed, and returns what they say.
    fn run(&self, words: &str) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.machine.child().unwrap().to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]);
        let output = command.args(["sh", "-c", &format!("cd / && {words}")]).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{words}: {said}\n{}", self.machine.log());
        said
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Longer than its units may take to stop: killed, it would leave behind what it has mounted.
        if self.machine.terminate().is_err() {
            drop(self.machine.wait(Duration::from_secs(60)));
        }
    }
}

fn status(state: &Path) -> String {
    let mut command = Command::new(binary("alcazar").unwrap());
    let output = command.args(["agent", "status", "--data-dir"]).arg(state).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
