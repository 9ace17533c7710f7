//! The Debian packages, as `cargo xtask deb` makes them of what was built for these tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use alcazar_testkit::{DEADLINE, Process, binary, passed_over};

fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let output = Command::new(&program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{:?} {arguments:?}: {said}", program.as_ref());
    said
}

/// Whether packages can be installed here.
pub(crate) fn can_install() -> bool {
    let works = Command::new("dpkg-deb").arg("--version").output().is_ok_and(|output| output.status.success());
    works && rustix::process::geteuid().is_root()
}

/// Makes them of the programs beside this test.
pub(crate) fn packages(out: &Path) -> Vec<PathBuf> {
    let programs = binary("alcazar").unwrap();
    let words = ["deb", "--fast", "--binaries", programs.parent().unwrap().to_str().unwrap(), "--out"];
    let made = run(binary("xtask").unwrap(), &[&words, [out.to_str().unwrap()].as_slice()].concat());
    made.lines().filter(|line| line.ends_with(".deb")).map(PathBuf::from).collect()
}

/// Changes an image that is nobody's running system, and may be empty.
pub(crate) fn dpkg(root: &Path, words: &[&str]) {
    let status = root.join("var/lib/dpkg/status");
    if !status.exists() {
        fs::create_dir_all(status.parent().unwrap()).unwrap();
        fs::write(status, "").unwrap();
    }
    let root = format!("--root={}", root.display());
    let first = [root.as_str(), "--force-depends", "--force-script-chrootless"];
    run("dpkg", &[&first, words].concat());
}

#[test]
fn packages_are_installed_and_removed() {
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has("dpkg-deb") || !rustix::process::geteuid().is_root() {
        return passed_over("root, and Debian's dpkg").unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    let made = packages(&home.path().join("out"));
    let debs: Vec<&str> = made.iter().map(|deb| deb.to_str().unwrap()).collect();
    let names = ["alcazar_", "alcazar-ca_", "alcazar-node-agent_", "alcazar-proxy_"];
    for name in names {
        assert!(debs.iter().any(|deb| deb.contains(&format!("/{name}"))), "{name} is not among {debs:?}");
    }
    let of = |name: &str| *debs.iter().find(|deb| deb.contains(name)).unwrap();
    let agent = run("dpkg-deb", &["--info", of("/alcazar-node-agent_")]);
    for what in ["Depends: libc6 (>= 2.", "Section: net", "postinst", "prerm", "postrm", "Description: The node agent"]
    {
        assert!(agent.contains(what), "{what:?} is missing in {agent}");
    }
    assert!(run("dpkg-deb", &["--info", of("/alcazar-ca_")]).contains("conffiles"));
    let listed = run("dpkg-deb", &["--contents", of("/alcazar-node-agent_")]);
    for what in
        ["-rwxr-xr-x root/root", "./usr/bin/alcazar-node-agent", "./usr/lib/systemd/system/alcazar-node-agent.socket"]
    {
        assert!(listed.contains(what), "{what:?} is missing in {listed}");
    }

    // Into an image that is nobody's running system.
    let root = home.path().join("root");
    let dpkg = |words: &[&str]| dpkg(&root, words);
    dpkg(&[&["--install"], debs.as_slice()].concat());
    let there = |name: &str| root.join(name).exists();
    for name in ["alcazar", "alcazar-ca", "alcazar-node-agent", "alcazar-proxy"] {
        let program = root.join("usr/bin").join(name);
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o7777, 0o755);
        assert!(run(&program, &["--version"]).contains(env!("CARGO_PKG_VERSION")), "{name}");
    }
    // Everything that a unit names is there.
    for unit in fs::read_dir(root.join("usr/lib/systemd/system")).unwrap() {
        let text = fs::read_to_string(unit.unwrap().path()).unwrap();
        let started = text.lines().filter_map(|line| line.strip_prefix("ExecStart=/")?.split(' ').next());
        started.for_each(|program| assert!(there(program), "{program}"));
    }

    // The CA as it is installed makes nobody's root: whoever starts it is told what to write first.
    let config = root.join("etc/alcazar/ca.yaml");
    let shipped = fs::read_to_string(&config).unwrap();
    let refused = |text: &str| {
        let (folder, data) = (home.path().join("ca"), home.path().join("ca/data"));
        fs::create_dir_all(&folder).unwrap();
        let text = text.replace("/var/lib/alcazar-ca", data.to_str().unwrap());
        fs::write(folder.join("ca.yaml"), text).unwrap();
        let mut command = Command::new(root.join("usr/bin/alcazar-ca"));
        command.arg("--config").arg(folder.join("ca.yaml"));
        let mut process = Process::start(command, &folder.join("ca.log")).unwrap();
        assert!(!process.wait(DEADLINE).unwrap().success());
        assert!(!data.exists(), "{}", process.log());
        process.log()
    };
    let said = refused(&shipped);
    assert!(said.contains("CHANGE ME") && said.contains("trustDomain"), "{said}");
    let said = refused(&shipped.replace("trustDomain: \"CHANGE ME\"", "trustDomain: td.example"));
    assert!(said.contains("cluster: \"CHANGE ME\""), "{said}");

    // What a person changed, and what the machine is, outlive a removal and end with a purge.
    fs::write(&config, "trustDomain: td.example\n").unwrap();
    dpkg(&["--install", of("/alcazar-ca_")]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "trustDomain: td.example\n");
    let state = Path::new("var/lib/private/alcazar-agent/node.json");
    fs::create_dir_all(root.join(state).parent().unwrap()).unwrap();
    fs::write(root.join(state), "{}").unwrap();
    for name in ["agent.yaml", "token", "root-cert.pem", "seal.key", "narrow.yaml", "proxy.yaml"] {
        fs::write(root.join("etc/alcazar").join(name), "").unwrap();
    }
    let packages = ["alcazar-proxy", "alcazar-node-agent", "alcazar-ca", "alcazar"];
    dpkg(&[&["--remove"], packages.as_slice()].concat());
    assert!(!there("usr/bin/alcazar-node-agent") && there("etc/alcazar/ca.yaml") && root.join(state).exists());
    dpkg(&[&["--purge"], packages.as_slice()].concat());
    assert!(!there("etc/alcazar") && !root.join(state).exists());
}
