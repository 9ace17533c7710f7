//! `alcazar root`: a root that is kept away from every CA, which needs no network and no running CA; and the exchange of the one
//! that a running CA has.

mod init;
mod keys;
mod revoke;
mod sign;
mod transcript;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alcazar_ca::{CrlUrl, duration};
use alcazar_identity::{RevocationReason, TrustDomain};

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
        /// Where this root's CRLs will be found: the certificate names `<URL>/<SHA-256 of the root>.crl`. Without it, it names none
        #[arg(long, value_name = "URL")]
        crl_url: Option<CrlUrl>,
        /// Sign without asking
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Take back the certificate authority of a cluster, for good: writes the list that is imported at each CA under the root
    RevokeIntermediate {
        /// Its certificate, as ca-cert.pem of its set, or the SHA-256 of one that this root has signed
        #[arg(value_name = "FILE|SHA-256")]
        intermediate: String,
        /// The folder of the root
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// Why, as RFC 5280 has it: keyCompromise, cACompromise, superseded, cessationOfOperation, ...
        #[arg(long, value_name = "REASON")]
        reason: RevocationReason,
        /// Where a copy of the list is put; without it, it is in the folder of the root alone
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Take it back without asking
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
        Command::Sign { request, root, out, life, crl_url, yes, keys } => {
            sign::run(request, root, out.as_deref(), *life, crl_url.clone(), *yes, keys)
        }
        Command::RevokeIntermediate { intermediate, root, reason, out, yes, keys } => {
            revoke::run(intermediate, root, *reason, out.as_deref(), *yes, keys)
        }
        Command::VerifyTranscript { root } => transcript::run(root),
        Command::Rotate { new_root, args } => {
            return operator::run(rotation::rotate(rotation::What::Root(new_root.as_deref()), args));
        }
        Command::Rotation(args) => return operator::run(rotation::rotation(args)),
    };
    crate::ca::finished(outcome)
}
