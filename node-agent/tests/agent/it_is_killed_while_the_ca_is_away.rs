//! kill -9 while the CA is away: with a sealed store the next run serves at once what the last one held, and clients come back
//! by themselves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use alcazar_api::sds;
use alcazar_identity::Credentials;
use alcazar_service::{Shutdown, clock};
use tempfile::TempDir;

use crate::support::ca::TRUST_DOMAIN;
use crate::support::{CaServer, PATIENCE, soon};

/// The agent as a process, which is killed when it is dropped.
struct Agent(Child);

impl Agent {
    fn start(folder: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(folder.join("agent.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_alcazar-node-agent"));
        command.arg("--config").arg(folder.join("agent.yaml")).stdin(Stdio::null());
        Self(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// As kill -9 does it.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A folder with the configuration of an agent of this CA.
fn home(ca: &CaServer) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("token"), ca.ca().token()).unwrap();
    fs::write(path.join("seal.key"), [9; 32]).unwrap();
    fs::set_permissions(path.join("seal.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let (here, address) = (path.display(), ca.address);
    let text = format!(
        "trustDomain: {TRUST_DOMAIN}\ncluster: east\nnode: vm-1\ncaAddress: {address}\njoinTokenFile: {here}/token\n\
         dataDir: {here}/data\nsocketsDir: {here}/s\nseal: {{keyFile: {here}/seal.key}}\n"
    );
    fs::write(path.join("agent.yaml"), text).unwrap();
    let socket = path.join("s/shop.reviews.sock");
    (folder, socket)
}

fn serial(credentials: &Arc<Credentials>) -> String {
    credentials.svid().serial().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_is_served_at_once_and_clients_come_back() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let (folder, socket) = home(&ca);
    let agent = Agent::start(folder.path());
    // A client that stays, whatever becomes of the agent.
    let (mut staying, driver) = soon(sds::connect(socket.clone(), clock::system())).await;
    let clients = Shutdown::new();
    clients.spawn("a client that stays", driver);
    let first = serial(&staying.borrow_and_update());
    let sealed = folder.path().join("data/sealed");
    let kept = async {
        // The certificate, and not the registration alone.
        while !fs::read_dir(&sealed).unwrap().any(|file| file.unwrap().metadata().unwrap().len() > 1000) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon(kept).await;

    ca.stop().await;
    agent.kill();
    let agent = Agent::start(folder.path());
    let (fresh, driver) = soon(sds::connect(socket.clone(), clock::system())).await;
    assert_eq!(serial(&fresh.borrow()), first, "at once, and without the CA");
    drop((fresh, driver));
    assert_eq!(ca.ca().issued, 1);

    // The CA is back and wants other lives: the client that stayed hears of the next certificate on a new connection.
    let ca = ca.restart().await;
    ca.change(|ca| ca.registrations[0].ttl = 1800);
    soon(staying.wait_for(|credentials| serial(credentials) != first)).await.unwrap();
    agent.kill();

    // What is no more registered is not served by any later run, though nobody is there to say so again.
    let agent = Agent::start(folder.path());
    ca.change(|ca| ca.registrations.clear());
    let gone = async {
        while fs::read_dir(&sealed).unwrap().count() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon(gone).await;
    ca.stop().await;
    agent.kill();
    let agent = Agent::start(folder.path());
    let shared = folder.path().join("s/agent.sock");
    let listening = async {
        while std::os::unix::net::UnixStream::connect(&shared).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon(listening).await;
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err(), "nobody serves it");
    agent.kill();
    drop(staying);
    clients.trigger("test");
    clients.finished(PATIENCE).await.unwrap();
}
