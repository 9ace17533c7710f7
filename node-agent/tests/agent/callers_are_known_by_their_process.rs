//! Real processes call on the shared socket: other users, services, programs, and those who would like to be one of them.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alcazar_api::envoy::SECRET_URL;
use alcazar_api::envoy::discovery::{DiscoveryRequest, DiscoveryResponse};
use alcazar_api::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::support::{CaServer, Home, passed_over, soon};

const PYTHON: &str = "/usr/bin/python3";

/// A process that says to the agent what we say to it.
struct Relay {
    child: Child,
    folder: TempDir,
}

impl Relay {
    /// Runs `python3 relay.py` behind a command that changes who it is.
    async fn start(agent: &Path, who: &[&str]) -> Self {
        Self::with(agent, who, PYTHON, &[]).await
    }

    async fn with(agent: &Path, who: &[&str], python: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let script = folder.path().join("relay.py");
        fs::write(&script, include_str!("support/relay.py")).unwrap();
        let mut words = who.iter().copied().chain([python]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(&script).arg(folder.path().join("socket")).arg(agent).args(more);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let relay = Self { child, folder };
        soon(async {
            while !relay.socket().exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        relay
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn exe(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.child.id())).unwrap()
    }

    /// What the agent says to this process when it asks for everything.
    async fn ask(&self) -> Result<Vec<String>, Code> {
        ask(&self.socket()).await.map_err(|status| status.code())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

async fn client(socket: &Path) -> SecretDiscoveryServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    SecretDiscoveryServiceClient::new(soon(endpoint.connect()).await.unwrap())
}

fn everything() -> DiscoveryRequest {
    DiscoveryRequest { type_url: SECRET_URL.into(), ..DiscoveryRequest::default() }
}

/// The SPIFFE IDs in what a caller gets, as text that certificates have in them.
async fn ask(socket: &Path) -> Result<Vec<String>, Status> {
    let response = soon(client(socket).await.fetch_secrets(everything())).await?.into_inner();
    Ok(response.resources.iter().map(|any| String::from_utf8_lossy(&any.value).into_owned()).collect())
}

async fn stream(socket: &Path) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let (requests, outgoing) = mpsc::channel(4);
    requests.send(everything()).await.unwrap();
    let responses = soon(client(socket).await.stream_secrets(ReceiverStream::new(outgoing))).await.unwrap();
    (requests, responses.into_inner())
}

/// A CA at which these are registered, and an agent that has certificates for all of them.
async fn serving(registrations: &[(&str, &[&str])]) -> (CaServer, Home, crate::support::Running) {
    let ca = CaServer::start().await;
    for (id, selectors) in registrations {
        ca.ca().register(id, id, selectors);
    }
    let home = Home::new();
    home.open_to_all();
    let token = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(token)).await;
    let all = registrations.len();
    agent.until(|status| status.registrations.iter().filter(|r| r.certificate.is_some()).count() == all).await;
    (ca, home, agent)
}

fn digest(path: &Path) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &fs::read(path).unwrap());
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tokio::test]
async fn a_program_is_known_by_its_path_and_by_its_content() {
    let python = fs::canonicalize(PYTHON).unwrap();
    let (path, content) = (format!("path:{}", python.display()), format!("sha256:{}", digest(&python)));
    let own = format!("path:{}", fs::canonicalize("/proc/self/exe").unwrap().display());
    let (_ca, home, agent) = serving(&[("both", &[&path, &content])]).await;
    let socket = home.socket("agent");
    let relay = Relay::start(&socket, &[]).await;
    assert_eq!(relay.exe(), python);
    assert_eq!(relay.ask().await.unwrap().len(), 2);
    // This program is another, and so is a copy that lies elsewhere.
    assert_eq!(ask(&socket).await.unwrap_err().code(), Code::PermissionDenied);
    let elsewhere = relay.folder.path().join("python3");
    fs::copy(&python, &elsewhere).unwrap();
    let copy = Relay::with(&socket, &["env", "PYTHONHOME=/usr"], elsewhere.to_str().unwrap(), &[]).await;
    assert_eq!(copy.ask().await, Err(Code::PermissionDenied));

    // Registered with what only one of them is, each gets it on a new stream, at once.
    let wrong = format!("sha256:{}", "0".repeat(64));
    _ca.change(|ca| {
        ca.registrations[0].selectors = vec![content.clone()];
        ca.register("own", "own", &[&own, "gid:0"]);
        ca.register("wrong", "wrong", &[&own, &wrong]);
    });
    soon(async {
        while copy.ask().await.is_err() || ask(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(relay.ask().await.unwrap().len(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_user_a_group_and_a_service_are_themselves_and_nobody_else() {
    if !is_root() {
        return passed_over("root");
    }
    let (_ca, home, agent) =
        serving(&[("user", &["uid:41001"]), ("group", &["group:41007"]), ("unit", &["unit:alcazar-q.service"])]).await;
    let socket = home.socket("agent");
    let user = |uid: &'static str, groups: &'static str| {
        let socket = socket.clone();
        async move {
            let who = ["setpriv", "--reuid", uid, "--regid", "41000", "--groups", groups];
            Relay::start(&socket, &who).await.ask().await.map(|secrets| secrets.len())
        }
    };
    assert_eq!(user("41001", "41005").await, Ok(2));
    assert_eq!(user("41002", "41005").await, Err(Code::PermissionDenied));
    assert_eq!(user("41002", "41005,41007").await, Ok(2));

    let Some(unit) = Cgroup::make("system.slice/alcazar-q.service") else { return passed_over("cgroups of its own") };
    let below = Cgroup::make("system.slice/alcazar-q.service/alcazar-other.service").unwrap();
    let users = Cgroup::make("system.slice/user@41001.service/alcazar-q.service").unwrap();
    let relay = Relay::start(&socket, &[]).await;
    assert_eq!(relay.ask().await, Err(Code::PermissionDenied));
    for (cgroup, expected) in [(&unit, true), (&below, true), (&users, false)] {
        cgroup.take(relay.child.id());
        assert_eq!(relay.ask().await.is_ok(), expected, "{}", cgroup.0.display());
    }
    drop(relay);
    agent.stop().await;
}

#[tokio::test]
async fn what_somebody_laid_over_a_program_is_not_that_program() {
    let forged = ["unshare", "--mount", "sh", "-c", "mount --bind \"$0\" /usr/bin/env && exec /usr/bin/env \"$@\""];
    if !is_root() || !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|s| s.success()) {
        return passed_over("root and mounts of its own");
    }
    let (_ca, home, agent) = serving(&[("env", &["path:/usr/bin/env"])]).await;
    let socket = home.socket("agent");
    let copy = tempfile::tempdir().unwrap();
    let python = copy.path().join("python3");
    fs::copy(fs::canonicalize(PYTHON).unwrap(), &python).unwrap();
    let relay = Relay::with(&socket, &forged, python.to_str().unwrap(), &[]).await;
    assert_eq!(relay.exe(), Path::new("/usr/bin/env"), "so the kernel calls it");
    assert_eq!(relay.ask().await, Err(Code::PermissionDenied));
    drop(relay);
    agent.stop().await;
}

#[tokio::test]
async fn whoever_inherits_a_connection_gets_nothing_once_its_process_has_ended() {
    let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    let (_ca, home, agent) = serving(&[("user", &[&uid])]).await;
    let mut relay = Relay::with(&home.socket("agent"), &[], PYTHON, &["inherit"]).await;
    let (_requests, mut responses) = stream(&relay.socket()).await;
    assert_eq!(soon(responses.message()).await.unwrap().unwrap().resources.len(), 2);
    // Its child of the same user has the descriptor and speaks on.
    relay.child.kill().unwrap();
    let end = soon(responses.message()).await;
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    drop(relay);
    agent.stop().await;
}

#[tokio::test]
async fn a_process_that_has_the_number_of_another_gets_nothing_of_it() {
    let works = ["--pid", "--fork", "--mount-proc", "sh", "-c", "echo 100 > /proc/sys/kernel/ns_last_pid"];
    if !is_root() || !Command::new("unshare").args(works).status().is_ok_and(|status| status.success()) {
        return passed_over("root and processes of its own");
    }
    let ca = CaServer::start().await;
    ca.ca().register("user", "user", &["uid:0", &format!("path:{}", fs::canonicalize(PYTHON).unwrap().display())]);
    let folder = tempfile::tempdir().unwrap();
    let (config, script) = (folder.path().join("agent.yaml"), folder.path().join("reuse.py"));
    fs::write(&script, include_str!("support/reuse.py")).unwrap();
    let text = format!(
        "{{trustDomain: td.example, cluster: east, node: vm-1, caAddress: '{}', joinToken: '{}', dataDir: {}, socketsDir: {}}}",
        ca.address,
        ca.ca().token(),
        folder.path().join("data").display(),
        folder.path().join("s").display()
    );
    fs::write(&config, text).unwrap();
    let output = tokio::process::Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", PYTHON])
        .arg(&script)
        .arg(env!("CARGO_BIN_EXE_alcazar-node-agent"))
        .arg(&config)
        .arg(folder.path().join("s/agent.sock"))
        .arg(request().iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        }))
        .output();
    let output = soon(output).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "served\nrefused\nrefused\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_bad_narrowing_file_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let (config, narrow) = (folder.path().join("agent.yaml"), folder.path().join("narrow.yaml"));
    let text = format!(
        "{{trustDomain: td.example, cluster: east, node: vm-1, caAddress: '127.0.0.1:1', narrow: {}, dataDir: {}, socketsDir: {}}}",
        narrow.display(),
        folder.path().join("data").display(),
        folder.path().join("s").display()
    );
    fs::write(&config, text).unwrap();
    fs::write(&narrow, "- registration: web\n  selectors: ['exe:/bin/web']\n").unwrap();
    let agent =
        tokio::process::Command::new(env!("CARGO_BIN_EXE_alcazar-node-agent")).arg("--config").arg(&config).output();
    let output = soon(agent).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("narrow.yaml:2:15") && said.contains("you mean `path:`?"), "{said}");
    assert!(!folder.path().join("data").exists(), "nothing was touched");
}

/// HTTP/2 by hand: the beginning (33 bytes), and a whole FetchSecrets for everything.
fn request() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
    let mut frame = |kind: u8, flags: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        bytes.extend([length[1], length[2], length[3], kind, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
    };
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets"),
        (":authority", "agent"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend(text.bytes());
        }
    }
    frame(1, 4, &headers);
    // Its type alone (field 4): everything is asked for.
    let length = u8::try_from(SECRET_URL.len()).unwrap();
    let message = [&[0x22, length], SECRET_URL.as_bytes()].concat();
    frame(0, 1, &[&[0, 0, 0, 0, length + 2], message.as_slice()].concat());
    bytes
}

/// A control group in the hierarchy that systemd would keep, until it is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Option<Self> {
        let kept = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"].map(Path::new);
        let root = kept.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let path = root.join(name);
        fs::create_dir_all(&path).ok()?;
        Some(Self(path))
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever is in it has been killed, and may take a moment; what is left is empty and hurts nobody.
        drop(fs::remove_dir(&self.0));
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
