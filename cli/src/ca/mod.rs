//! `alcazar ca`: what an operator asks of a CA.

mod hierarchy;

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
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Hierarchy { ca } => operator::run(hierarchy::show(ca)),
    }
}
