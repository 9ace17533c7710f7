//! `alcazar-node-agent --config agent.yaml`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alcazar_node_agent::{Agent, Config, OpenError};
use alcazar_service::process::Failure;
use alcazar_service::{clock, config, process, systemd, telemetry};
use clap::Parser;

/// Gives the workloads of a node their identities.
#[derive(Parser)]
#[command(name = "alcazar-node-agent", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The name of this node, in place of the one in the configuration.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Write the log as one JSON object a line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = alcazar_node_agent::harden() {
        eprintln!("alcazar-node-agent: cannot give up what it does not need: {error}");
        return ExitCode::FAILURE;
    }
    let format = if arguments.log_json { telemetry::Format::Json } else { telemetry::Format::Plain };
    telemetry::init(format, "info");
    alcazar_mtls::install_default_provider();
    alcazar_node_agent::use_all_descriptors();
    process::run("alcazar-node-agent", Duration::from_secs(10), |shutdown, readiness| async move {
        let mut config: Config = config::load(&arguments.config).map_err(Failure::refused)?;
        if let Some(node) = arguments.node {
            config.node = node;
        }
        let mut agent = match Agent::open(config, clock::system()).await {
            Err(OpenError::Narrowing(error)) => return Err(Failure::refused(error)),
            opened => opened?,
        };
        if let Some(listener) = systemd::unix_listener()? {
            agent.also_serve(listener)?;
        }
        // Its sockets are there. Whoever comes waits for a certificate, and units that come after need no CA to start.
        systemd::ready();
        agent.run(shutdown, readiness).await?;
        Ok(())
    })
}
