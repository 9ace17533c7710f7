//! `alcazar-proxy --config proxy.yaml`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alcazar_proxy::{Config, Proxy};
use alcazar_service::process::{self, Failure};
use alcazar_service::{Readiness, Shutdown, config, systemd, telemetry};
use clap::Parser;

/// The data plane of an Alcazar mesh, in front of one workload.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
    /// Write logs as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = if arguments.json { telemetry::Format::Json } else { telemetry::Format::Plain };
    telemetry::init(format, "info");
    alcazar_mtls::install_default_provider();
    process::run("alcazar-proxy", REST, |shutdown, readiness| run(arguments, shutdown, readiness))
}

async fn run(arguments: Arguments, shutdown: Shutdown, readiness: Readiness) -> Result<(), Failure> {
    let config: Config = config::load(&arguments.config).map_err(Failure::refused)?;
    let is_anybodys = config.outbound_user.is_none() && (config.outbound.is_some() || !config.forwards.is_empty());
    let proxy = Proxy::bind(config).await?;
    // What listens is all that others wait for: a boot that waited for the CA or the control plane could wait for ever.
    systemd::ready();
    if is_anybodys {
        tracing::warn!(
            "whoever can connect to outbound and forwards speaks as the workload; outboundUser keeps them to one user"
        );
    }
    Ok(proxy.run(shutdown, readiness).await?)
}

/// The data plane drains by its own deadline; this is for what is left.
const REST: Duration = Duration::from_secs(5);
