//! `alcazar`: what people type.
//!
//! ```text
//!   alcazar up ─────▶ CA, node agent, control plane, proxies, commands: one process, one data directory
//!   alcazar status ─▶ asks the running `up` over a Unix socket in its data directory
//!   alcazar ca ..., alcazar ledger ... ─▶ ask a running CA over its administration socket
//!   alcazar revoke, unrevoke, revocations ─▶ the same
//!   alcazar bundle ... ─▶ roots and other trust domains, by the same socket
//!   alcazar registration ─▶ the same
//!   alcazar vm onboard ─▶ registers a machine by the same socket, and makes the folder with which it joins
//!   alcazar agent status ─▶ asks a node agent by the socket in its data directory
//!   alcazar cert show ─▶ reads a file, or asks a node agent as a workload does
//!   alcazar root ... ▶ makes a root and signs with it, on a machine without a network
//!   alcazar policy explain ─▶ the decision engine of the proxies, asked directly
//! ```
//!
//! Exit status: 0 for success, 1 for failure (or a denial), 2 for what a person has to mend in what they wrote.

mod agent;
mod app;
mod args;
mod ask;
mod bundle;
mod ca;
mod cert;
mod explain;
mod ledger;
mod operator;
mod registration;
mod revocation;
mod root;
mod rotation;
mod span;
mod status;
mod supervised;
mod table;
mod up;
mod vm;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::args::{Command, CommandLine, PolicyCommand};

fn main() -> ExitCode {
    match CommandLine::parse().command {
        Command::Up(args) => up::run(args),
        Command::Status(args) => status::run(&args),
        Command::Policy(PolicyCommand::Explain(args)) => explain::run(&args),
        Command::Ca(command) => ca::run(&command),
        Command::Ledger(command) => ledger::run(&command),
        Command::Revoke(args) => revocation::revoke(&args),
        Command::Unrevoke(args) => revocation::unrevoke(&args),
        Command::Revocations(args) => revocation::list(&args),
        Command::Bundle(command) => bundle::run(&command),
        Command::Root(command) => root::run(&command),
        Command::Cert(command) => cert::run(&command),
        Command::Registration(command) => registration::run(&command),
        Command::Agent(command) => agent::run(&command),
        Command::Vm(command) => vm::run(&command),
        Command::Version => say(&format!("alcazar {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut CommandLine::command(), "alcazar", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
        Command::App { name } => app::run(name),
        Command::Supervised { parent, note, workload, command } => supervised::exec(parent, &note, &workload, &command),
    }
}

/// Prints a text; whoever closed the pipe has read enough.
fn say(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
