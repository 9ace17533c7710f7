//! `alcazar bundle`: whom a trust domain believes: itself, by its roots, and others, by their bundles.

mod change;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use alcazar_identity::TrustDomain;

use crate::operator::{self, CaArg, OperatorError};

/// What is asked, or changed.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print a trust bundle: ours, or another trust domain's
    Show {
        /// Whose; without it, ours
        #[arg(long, value_name = "NAME")]
        trust_domain: Option<TrustDomain>,
        /// As what
        #[arg(long, value_enum, default_value_t = Format::Spiffe)]
        format: Format,
        #[command(flatten)]
        ca: CaArg,
    },
    /// List every trust domain that is believed
    List {
        #[command(flatten)]
        ca: CaArg,
    },
    /// Trust further roots for our own trust domain
    Add {
        /// The roots: PEM
        #[arg(long, value_name = "FILE")]
        root: PathBuf,
        #[command(flatten)]
        ca: CaArg,
    },
    /// Trust a root of our own trust domain no more
    Remove {
        /// The root: PEM
        #[arg(long, value_name = "FILE")]
        root: PathBuf,
        /// Also where somebody would be cut off
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        ca: CaArg,
    },
    /// Believe another trust domain, by a bundle that was brought by hand
    Set {
        /// Whose bundle it is
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        /// A SPIFFE bundle document, or roots in PEM
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        ca: CaArg,
    },
    /// Believe another trust domain no more
    Delete {
        /// Which
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        ca: CaArg,
    },
}

fn no_bundle(trust_domain: &TrustDomain) -> OperatorError {
    OperatorError::Nothing(format!("the CA has no bundle of {trust_domain}; `alcazar bundle list` names those it has"))
}

/// How a bundle is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A SPIFFE bundle document (a JWK set): roots, keys for JWT-SVIDs, sequence, refresh hint
    Spiffe,
    /// The roots alone, as PEM
    Pem,
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Show { trust_domain, format, ca } => operator::run(show::show(ca, trust_domain.as_ref(), *format)),
        Command::List { ca } => operator::run(show::list(ca)),
        Command::Add { root, ca } => operator::run(change::add(ca, root)),
        Command::Remove { root, force, ca } => operator::run(change::remove(ca, root, *force)),
        Command::Set { trust_domain, file, ca } => operator::run(change::set(ca, trust_domain, file)),
        Command::Delete { trust_domain, ca } => operator::run(change::delete(ca, trust_domain)),
    }
}
