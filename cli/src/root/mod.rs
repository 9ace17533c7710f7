//! `alcazar root`: a root that is kept away from every CA, which needs no network and no running CA; and the exchange of the one
//! that a running CA has.

mod init;
mod keys;
mod sign;
mod transcript;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alcazar_ca::duration;
use alcazar_identity::TrustDomain;

use self::keys::KeyArgs;
use crate::{operator, rotation};

/// What is done with a root.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a root in a folder of its own, on a machine that you keep away from others
    Init {
        /// The folder; it is made
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The trust domain that it is the root of
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        /// The kind of its key
        #[arg(long, value_name = "KIND", default_value = "p256")]
        algorithm: init::Algorithm,
        /// How long it is good
        #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = duration::parse)]
        life: Duration,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Sign the certificate authority of a cluster, as `alcazar ca request` asks for it
    Sign {
        /// The request
        request: PathBuf,
        /// The folder of the root
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// Where the set for the cluster is put; without it, a folder beside the request
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// How long it is good
        #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration::parse)]
        life: Duration,
        /// Sign without asking
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Check the record of what a root has signed
    VerifyTranscript {
        /// The folder of the root
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
    },
    /// Exchange the root of a running CA while everything goes on
    Rotate {
        /// The certificate of the new root, or a folder that has it, where its key is kept elsewhere; without it one is made
        #[arg(long, value_name = "PATH")]
        new_root: Option<PathBuf>,
        #[command(flatten)]
        args: rotation::RotateArgs,
    },
    /// Show the rotation that is under way: its phase, and who is waited for
    Rotation(rotation::RotationArgs),
}

pub(crate) fn run(command: &Command) -> ExitCode {
    let outcome = match command {
        Command::Init { out, trust_domain, algorithm, life, keys } => {
            init::run(out, trust_domain, *algorithm, *life, keys)
        }
        Command::Sign { request, root, out, life, yes, keys } => {
            sign::run(request, root, out.as_deref(), *life, *yes, keys)
        }
        Command::VerifyTranscript { root } => transcript::run(root),
        Command::Rotate { new_root, args } => {
            return operator::run(rotation::rotate(rotation::What::Root(new_root.as_deref()), args));
        }
        Command::Rotation(args) => return operator::run(rotation::rotation(args)),
    };
    crate::ca::finished(outcome)
}
