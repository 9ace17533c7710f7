//! `alcazar ca`: what an operator asks of a CA.

mod hierarchy;
mod install;
mod request;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::operator::{self, CaArg};
use crate::rotation;

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
    /// Make the request for this cluster's intermediate, for a root that is kept elsewhere
    Request {
        /// The configuration file of the CA
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where a copy of the request is put
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check a set of certificates for this CA, and put it where the CA finds it
    Install {
        /// The folder with the set, as `alcazar root sign` writes it
        folder: PathBuf,
        /// The configuration file of the CA
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Exchange the intermediate, or the key of JWT-SVIDs, while everything goes on
    Rotate {
        /// The key of JWT-SVIDs, and not the intermediate
        #[arg(long)]
        jwt: bool,
        /// A key of JWT-SVIDs was stolen: replace all of them at once, and wait for nobody
        #[arg(long, requires = "jwt")]
        compromised: bool,
        #[command(flatten)]
        args: rotation::RotateArgs,
    },
    /// Show the rotation that is under way: its phase, and who is waited for
    Rotation(rotation::RotationArgs),
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Hierarchy { ca } => operator::run(hierarchy::show(ca)),
        Command::Status { ca, json } => operator::run(status::show(ca, *json)),
        Command::Request { config, out } => finished(request::run(config, out.as_deref())),
        Command::Install { folder, config } => finished(install::run(config, folder)),
        Command::Rotate { jwt, compromised, args } => {
            let jwt = jwt.then_some(rotation::What::Jwt { compromised: *compromised });
            operator::run(rotation::rotate(jwt.unwrap_or(rotation::What::Intermediate), args))
        }
        Command::Rotation(args) => operator::run(rotation::rotation(args)),
    }
}

/// The exit status of a command that speaks to nobody; a failure is printed with its causes.
pub(crate) fn finished(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("alcazar: {error:#}");
        ExitCode::FAILURE
    })
}
