//! `alcazar-control --config control.yaml`

use std::path::PathBuf;
use std::process::ExitCode;

use alcazar_control::{Config, Control, DRAIN};
use alcazar_service::process::{self, Failure};
use alcazar_service::{Readiness, Shutdown, admin, config, telemetry};
use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;

/// The control plane of an Alcazar mesh.
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
    process::run("alcazar-control", DRAIN, |shutdown, readiness| run(arguments, shutdown, readiness))
}

async fn run(arguments: Arguments, shutdown: Shutdown, readiness: Readiness) -> Result<(), Failure> {
    let config: Config = config::load(&arguments.config).map_err(Failure::refused)?;
    let control = Control::open(config.clone()).map_err(Failure::refused)?;
    let bind = |address| async move {
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
    };
    let listener = bind(config.listen).await.context("ADS")?;
    if let Some(address) = config.admin {
        let listener = bind(address).await.context("admin")?;
        let (readiness, end) = (readiness.clone(), shutdown.clone());
        shutdown.spawn("admin", async move {
            if let Err(error) = admin::serve(listener, readiness, end).await {
                tracing::error!(%error, "the admin listener failed");
            }
        });
    }
    tracing::info!(listen = %config.listen, "serving configuration");
    Ok(control.run(listener, shutdown, readiness).await?)
}
