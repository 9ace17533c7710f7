//! The packages and the units for real: a container that systemd boots, with the folder of an onboarded machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use alcazar_testkit::{Host, Process, binary, passed_over, turn};

use crate::hosts::{World, wait_ready};
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
    let wanted =
        debs.iter().map(|deb| deb.to_str().unwrap()).filter(|deb| deb.contains("-agent_") || deb.contains("-proxy_"));
    dpkg(&root, &["--install"].into_iter().chain(wanted).collect::<Vec<_>>());
    let installed = Command::new(folder.join("install.sh")).env("DESTDIR", &root).output().unwrap();
    assert!(installed.status.success(), "{installed:?}");
    assert_eq!(fs::read_dir(root.join("etc/systemd/system")).unwrap().count(), 0, "the packages have the units");
    // Not its first start, at which systemd would enable everything that there is.
    fs::write(root.join("etc/machine-id"), "6d9b1f0c2a5e4f8b9c3d7e6a5b4c3d2e\n").unwrap();
    fs::copy("/etc/os-release", root.join("etc/os-release")).unwrap();
    let mut enable = Command::new("systemctl");
    enable.arg("--root").arg(&root).args([
        "enable",
        "alcazar-node-agent.socket",
        "alcazar-node-agent",
        "alcazar-proxy",
    ]);
    let enabled = enable.output().unwrap();
    assert!(enabled.status.success(), "{enabled:?}");

    let state = root.join("var/lib/private/alcazar-agent");
    let mut first = boot(&host, &root);
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
    first.terminate().unwrap();
    let _again = boot(&host, &root);
}

/// Starts it as a machine starts, on the network of this host, until its services say that they are ready.
fn boot(host: &Host, root: &Path) -> Process {
    let mut command = Command::new("systemd-nspawn");
    command.args([
        "--boot",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--link-journal=no",
        "--console=pipe",
        "--machine=orders",
    ]);
    command.arg(format!("--directory={}", root.display()));
    command.arg(format!("--overlay-ro=/usr:{}:/usr", root.join("usr").display()));
    command.arg(format!("--network-namespace-path={}", host.network().display()));
    let machine = host.start(command, "boot.log").unwrap();
    for port in [15020, 15021] {
        wait_ready(host, &machine, port);
    }
    machine
}

fn status(state: &Path) -> String {
    let mut command = Command::new(binary("alcazar").unwrap());
    let output = command.args(["agent", "status", "--data-dir"]).arg(state).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
