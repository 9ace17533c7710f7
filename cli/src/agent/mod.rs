//! `alcazar agent`: the agent of this node.

mod show;

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
    let data_dir = data_dir.clone().unwrap_or_else(here);
    match ask::<StatusReport>(&data_dir.join(SOCKET)) {
        Ok(report) if *json => say(&(serde_json::to_string_pretty(&report).unwrap_or_default() + "\n")),
        Ok(report) => say(&show::text(&report, alcazar_service::clock::now())),
        Err(error) => {
            eprintln!("alcazar: no agent answers in {}: {}", data_dir.display(), chain(&error));
            if matches!(error, AskError::Nobody(_)) {
                eprintln!("start it, name its dataDir with --data-dir, and be its user, or root");
            }
            ExitCode::FAILURE
        }
    }
}

/// The agent of the mesh in this folder, where there is one, else that of the machine.
fn here() -> PathBuf {
    let mesh = Paths::of(Path::new(DEFAULT_DATA_DIR)).agent();
    if mesh.join(SOCKET).exists() { mesh } else { "/var/lib/alcazar-agent".into() }
}

const SOCKET: &str = "admin.sock";
