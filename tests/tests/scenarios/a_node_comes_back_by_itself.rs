//! A node that was off until everything expired, or whose disk is full, needs nobody: the real CA and the real agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use alcazar_identity::X509Svid;
use alcazar_testkit::{CaProcess, DEADLINE, Process, SmallDisk, binary, free_port, turn, until};

/// The CA's configuration: what it issues is over in seconds.
const SHORT: &str = "certificates: {ttl: 10s, maxTtl: 10s}\n\
                     registrations:\n- {id: shop.web, node: vm-1, identity: shop/web, selectors: [\"socket:shop.web\"]}\n";

/// An agent with its data folder in `data`.
fn configured(home: &Path, data: &Path, ca: &CaProcess, node: &str) -> u16 {
    let admin = free_port().unwrap();
    let (here, data, port) = (home.display(), data.display(), ca.port());
    let text = format!(
        "trustDomain: cluster.local\ncluster: local\nnode: {node}\ncaAddress: 127.0.0.1:{port}\njoinTokenFile: {here}/token\n\
         dataDir: {data}\nsocketsDir: {here}/s\nadmin: 127.0.0.1:{admin}\nseal: {{keyFile: {here}/seal.key}}\n"
    );
    fs::write(home.join("agent.yaml"), text).unwrap();
    fs::write(home.join("seal.key"), [3; 32]).unwrap();
    fs::set_permissions(home.join("seal.key"), fs::Permissions::from_mode(0o600)).unwrap();
    admin
}

async fn token(ca: &CaProcess, home: &Path, node: &str) {
    fs::write(home.join("token"), ca.token(node).await.unwrap()).unwrap();
}

fn agent(home: &Path) -> Process {
    Process::component("alcazar-node-agent", home, "agent").unwrap()
}

fn logged(process: &Process, what: &str) -> usize {
    process.log().lines().filter(|line| line.contains(what)).count()
}

#[tokio::test]
async fn a_node_that_was_off_until_everything_expired_attests_by_the_key_of_its_last_certificate() {
    let _turn = turn();
    let (home, of_agent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut ca = CaProcess::start(home.path(), SHORT).unwrap();
    ca.wait_ready().unwrap();
    let at = of_agent.path();
    configured(at, &at.join("data"), &ca, "vm-2");

    // A token for another node is told on both sides, and stays good.
    token(&ca, at, "vm-1").await;
    let wrong = agent(at);
    wrong
        .wait_for_line("the refusal", |line| line.contains("node/local/vm-1") && line.contains("node/local/vm-2"))
        .unwrap();
    drop(wrong);
    ca.process().wait_for_line("the refusal", |line| line.contains("a join token is still good")).unwrap();
    fs::remove_dir_all(at.join("data")).unwrap();
    fs::remove_file(at.join("agent.log")).unwrap();
    let admin = configured(at, &at.join("data"), &ca, "vm-1");
    let running = agent(at);
    running.wait_ready(admin).unwrap();
    drop(running);

    // Off for twice the life of everything it had.
    std::thread::sleep(Duration::from_secs(20));
    let running = agent(at);
    running.wait_ready(admin).unwrap();
    let by = "attested by the key of its last certificate: the saved certificate expired at";
    assert_eq!(logged(&running, by), 1, "{}", running.log());
    ca.process().wait_for_line("the return", |line| line.contains("a node comes back")).unwrap();
}

#[tokio::test]
async fn a_full_disk_ends_no_identity() {
    let _turn = turn();
    let (home, of_agent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = of_agent.path();
    let Some(disk) = SmallDisk::mount(&at.join("disk"), 8, &at.join("disk.log")).unwrap() else { return };
    let ca = CaProcess::start(home.path(), SHORT).unwrap();
    ca.wait_ready().unwrap();
    token(&ca, at, "vm-1").await;
    let admin = configured(at, &disk.path().join("data"), &ca, "vm-1");
    let files = format!("files:\n- {{registration: shop.web, directory: {}/web}}\n", disk.path().display());
    let config = fs::read_to_string(at.join("agent.yaml")).unwrap();
    fs::write(at.join("agent.yaml"), config + &files).unwrap();
    let mut command = disk.command(&binary("alcazar-node-agent").unwrap());
    command.arg("--config").arg(at.join("agent.yaml"));
    let running = Process::start(command, &at.join("agent.log")).unwrap();
    running.wait_ready(admin).unwrap();
    disk.fill(0).unwrap();
    let node: PathBuf = disk.seen().join("data/node.json");
    let before = fs::read(&node).unwrap();
    running.wait_for_line("that it is in memory alone", |line| line.contains("identity is in memory alone")).unwrap();
    running.wait_for_line("a sealed file that is not written", |line| line.contains("cannot be sealed")).unwrap();
    let failed = |line: &str| line.contains("the files of a workload are not what they should be");
    running.wait_for_line("files that are not written", failed).unwrap();
    let written = files_of(&disk);
    assert!(X509Svid::from_pem(&written[0], &written[1]).is_ok(), "a certificate and its key");
    // Three lives later it is still somebody, and what is on the disk is whole.
    std::thread::sleep(Duration::from_secs(30));
    assert_eq!(logged(&running, "good no more"), 0, "{}", running.log());
    assert_eq!(fs::read(&node).unwrap(), before);
    assert!(files_of(&disk) == written, "the files of before stay whole");
    let mut status = disk.command(&binary("alcazar").unwrap());
    let status = status.args(["agent", "status", "--data-dir"]).arg(disk.path().join("data")).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout);
    let said = status.lines().find(|line| line.starts_with("trouble") && line.contains("/web: "));
    assert!(said.is_some_and(|line| line.contains("cannot write the files")), "{status}");
    running.wait_ready(admin).unwrap();
    disk.clear().unwrap();
    running.wait_for_line("that it is saved", |line| line.contains("identity is saved again")).unwrap();
    until("another file", DEADLINE, || (fs::read(&node).ok()? != before).then_some(())).unwrap();
    until("the files of a workload", DEADLINE, || (files_of(&disk) != written).then_some(())).unwrap();
    let new = files_of(&disk);
    assert!(X509Svid::from_pem(&new[0], &new[1]).is_ok(), "a certificate and its key");
}

/// What a program reads on that disk: chain, key and roots of one moment.
fn files_of(disk: &SmallDisk) -> [Vec<u8>; 3] {
    let folder = disk.seen().join("web");
    let folder = folder.join(fs::read_link(folder.join("..data")).unwrap());
    ["cert-chain.pem", "key.pem", "root-cert.pem"].map(|name| fs::read(folder.join(name)).unwrap())
}

#[tokio::test]
async fn a_machine_certificate_joins_a_ca_that_is_known_by_its_root_file() {
    let _turn = turn();
    let (home, of_agent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (at, here) = (of_agent.path(), home.path().display());
    let root = CertifiedIssuer::self_signed(authority(), KeyPair::generate().unwrap()).unwrap();
    fs::write(home.path().join("machines.pem"), root.pem()).unwrap();
    let machines = format!(
        "{SHORT}callers:\n  machines:\n    roots: {here}/machines.pem\n    rules:\n    \
         - match: {{commonName: \"vm-*\"}}\n      identity: node/local/{{commonName}}\n"
    );
    let ca = CaProcess::start(home.path(), &machines).unwrap();
    ca.wait_ready().unwrap();

    let admin = configured(at, &at.join("data"), &ca, "vm-1");
    let (config, place) = (at.join("agent.yaml"), at.display());
    let root_file = ca.data().join("hierarchy/root.pem");
    let mut text = fs::read_to_string(&config).unwrap();
    text.push_str(&format!(
        "attest:\n  machine: {{certificateFile: {place}/machine.pem, keyFile: {place}/machine-key.pem}}\n  rootFile: {}\n",
        root_file.display()
    ));
    fs::write(&config, text).unwrap();
    let running = agent(at);
    running
        .wait_for_line("what is missing", |line| line.contains("cannot read") && line.contains("machine.pem"))
        .unwrap();
    // The certificate comes, and the agent takes it by itself.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "vm-1");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    fs::write(at.join("machine-key.pem"), key.serialize_pem()).unwrap();
    fs::write(at.join("machine.pem"), params.signed_by(&key, &root).unwrap().pem()).unwrap();
    running.wait_ready(admin).unwrap();
    assert_eq!(logged(&running, "attested by its machine certificate"), 1, "{}", running.log());
}

/// The enterprise's own CA.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "enterprise");
    params
}
