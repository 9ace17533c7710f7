//! `alcazar agent`: the agent of this node.

mod show;

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alcazar_node_agent::StatusReport;
use alcazar_service::process::chain;

use crate::args::DEFAULT_DATA_DIR;
use crate::ask::{AskError, ask};
use crate::say;
use crate::up::Paths;

/// What is asked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show what it holds and does: identities and their next rotation, who is served, what went wrong last
    Status {
        /// The agent's data directory; without it, that of the mesh that `up` made here, else /var/lib/alcazar-agent
        #[arg(long = "data-dir", value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: &Command) -> ExitCode {
    let Command::Status { data_dir, json } = command;
    let (data_dir, mesh_has_ended) = data_dir.clone().map_or_else(here, |data_dir| (data_dir, false));
    match ask::<StatusReport>(&data_dir.join(SOCKET)) {
        Ok(report) if *json => say(&(serde_json::to_string_pretty(&report).unwrap_or_default() + "\n")),
        Ok(report) => say(&show::text(&report, alcazar_service::clock::now())),
        Err(error) => {
            eprintln!("alcazar: no agent answers in {}: {}", data_dir.display(), chain(&error));
            if mesh_has_ended {
                eprintln!(
                    "the mesh that `alcazar up` made in this folder has ended, so this machine's agent was asked"
                );
            }
            if matches!(error, AskError::Nobody(_)) {
                eprintln!("start it, name its dataDir with --data-dir, and be its user, or root");
            }
            ExitCode::FAILURE
        }
    }
}

/// The agent of the mesh in this folder, where there is one, else that of the machine; and whether a mesh that was here has ended.
fn here() -> (PathBuf, bool) {
    let mesh = Paths::of(Path::new(DEFAULT_DATA_DIR)).agent();
    let socket = mesh.join(SOCKET);
    if is_somebodys(&socket) { (mesh, false) } else { ("/var/lib/alcazar-agent".into(), socket.exists()) }
}

/// Whether somebody listens, be it to others than this user: a mesh that was killed has left its socket behind.
fn is_somebodys(socket: &Path) -> bool {
    let nobody = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
    UnixStream::connect(socket).map_or_else(|error| !nobody.contains(&error.kind()), |_| true)
}

const SOCKET: &str = "admin.sock";

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_a_dead_agent_has_left_is_nobodys() {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join(SOCKET);
        assert!(!is_somebodys(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(is_somebodys(&socket));
        drop(listener);
        assert!(socket.exists() && !is_somebodys(&socket));
    }
}
