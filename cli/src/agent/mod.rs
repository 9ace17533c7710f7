//! `alcazar agent`: the agent of this node.

mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use alcazar_node_agent::StatusReport;
use alcazar_service::process::chain;

use crate::ask::{AskError, ask};
use crate::say;

/// What is asked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show what it holds and does: identities and their next rotation, who is served, what went wrong last
    Status {
        /// The agent's data directory
        #[arg(long = "data-dir", value_name = "DIR", default_value = "/var/lib/alcazar-agent")]
        data_dir: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: &Command) -> ExitCode {
    let Command::Status { data_dir, json } = command;
    match ask::<StatusReport>(&data_dir.join("admin.sock")) {
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
