//! `alcazar vm`: machines that are nobody's Kubernetes node.

mod folder;
mod onboard;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alcazar_service::duration;

use crate::operator::{self, CaArg};

/// What is asked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Register a machine and its workload, and make the one folder that it needs to join
    Onboard(OnboardArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct OnboardArgs {
    /// The machine's name within the cluster; the workload has the same
    #[arg(value_name = "NAME")]
    name: String,
    /// The namespace of its workload
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: String,
    /// The service account of its workload
    #[arg(long, value_name = "ACCOUNT")]
    service_account: String,
    /// Where the machine reaches the CA; several, separated by commas, where it has replicas
    #[arg(long, value_name = "HOST:PORT")]
    ca_address: String,
    /// Where the machine reaches the control plane: then a proxy stands in front of its workload
    #[arg(long, value_name = "HOST:PORT", requires = "outbound_user")]
    control_address: Option<String>,
    /// The user, by number, whose processes may call others through the proxy as this workload
    #[arg(long, value_name = "UID", requires = "control_address")]
    outbound_user: Option<u32>,
    /// How the agent knows the workload, such as uid:1000; may be repeated, all must hold. Without it, by a socket of its own,
    /// or by the unit of its proxy
    #[arg(long = "selector", value_name = "SELECTOR", conflicts_with = "control_address")]
    selectors: Vec<String>,
    /// How long the token can be used, 24h at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse_positive)]
    token_ttl: Duration,
    /// The folder that is made; without it, one of the machine's name here
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    ca: CaArg,
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Onboard(args) => operator::run(onboard::onboard(args)),
    }
}
