//! `alcazar ca`: what an operator asks of a CA.

mod hierarchy;
mod status;

use std::process::ExitCode;

use crate::operator::{self, CaArg};

/// What is asked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show the certificates that everything stands on
    Hierarchy {
        #[command(flatten)]
        ca: CaArg,
    },
    /// Show how the CA is: certificates and how far they reach, what it issued and refused, each part
    Status {
        #[command(flatten)]
        ca: CaArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Hierarchy { ca } => operator::run(hierarchy::show(ca)),
        Command::Status { ca, json } => operator::run(status::show(ca, *json)),
    }
}
