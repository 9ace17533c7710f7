//! `alcazar-ca --config ca.yaml`, and `alcazar-ca token` for a new node.

use std::{
    error::Error,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use alcazar_api::ca::v1::{CreateJoinTokenRequest, administration_client::AdministrationClient};
use alcazar_ca::{Ca, Config, duration};
use alcazar_identity::rfc3339;
use alcazar_service::{
    Admin, Metrics, Readiness, Shutdown,
    audit::{Audit, AuditLayer},
    clock, config, process,
    process::Failure,
    telemetry,
};
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;

/// Issues the identities of a cluster.
#[derive(Parser)]
#[command(name = "alcazar-ca", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    serve: Option<Serve>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Without a subcommand: serve.
#[derive(Args)]
struct Serve {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the log as one JSON object a line.
    #[arg(long)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Print a token that admits a node once.
    Token {
        /// The configuration file of the CA.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The node: a name in the CA's cluster, or a whole SPIFFE ID.
        #[arg(long, value_name = "NAME")]
        node: String,
        /// How long the token can be used. Default: 10m.
        #[arg(long, value_name = "TIME", value_parser = duration::parse_positive)]
        ttl: Option<Duration>,
        /// The name is that of a node of Kubernetes, and the machine is that node: it gets the certificates of the pods there.
        #[arg(long)]
        kubernetes_node: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.serve.as_ref().is_some_and(|serve| serve.log_json);
    let format = if json { telemetry::Format::Json } else { telemetry::Format::Plain };
    let quiet = arguments.command.is_some();
    let audit = Arc::new(OnceLock::new());
    let layer = AuditLayer::new(Arc::clone(&audit), alcazar_ca::AUDIT_TARGETS);
    telemetry::init_with_audit(format, if quiet { "warn" } else { "info" }, layer);
    alcazar_mtls::install_default_provider();
    process::run("alcazar-ca", Duration::from_secs(10), |shutdown, readiness| async move {
        match (arguments.command, arguments.serve) {
            (Some(Command::Token { config: path, node, ttl, kubernetes_node }), _) => {
                let config: Config = config::load(&path).map_err(Failure::refused)?;
                Ok(print_token(config, &node, ttl, kubernetes_node).await?)
            }
            (None, Some(Serve { config: path, .. })) => {
                let config: Config = config::load(&path).map_err(Failure::refused)?;
                serve(config, &audit, shutdown, readiness).await
            }
            (None, None) => Err("give --config FILE, or a subcommand; --help shows them".into()),
        }
    })
}

async fn serve(
    config: Config,
    audit: &OnceLock<Audit>,
    shutdown: Shutdown,
    readiness: Readiness,
) -> Result<(), Failure> {
    let listener = bind(config.listen, "nodes").await?;
    let opening = readiness.register("store");
    let metrics = Metrics::new();
    if let Some(config) = &config.audit {
        let failed = |error| format!("the audit file {} cannot be written: {error}", config.file.display());
        let opened = Audit::open(config).map_err(failed)?;
        // The log's layer takes it from there; nobody else puts one.
        let opened = audit.get_or_init(|| opened);
        let watch = alcazar_ca::watch_audit(opened.clone(), readiness.part("audit"), metrics.clone(), shutdown.clone());
        shutdown.spawn("audit file", watch);
    }
    let opened = Arc::new(OnceLock::new());
    if let Some(address) = config.admin {
        let listener = bind(address, "health checks").await?;
        let routes = alcazar_ca::crl_routes(opened.clone());
        let admin = Admin::new(readiness.clone()).with_metrics(metrics.clone()).with_routes(routes);
        let end = shutdown.clone();
        shutdown.spawn("health checks", async move {
            if let Err(error) = admin.serve(listener, end).await {
                tracing::error!(%error, "health checks ended");
            }
        });
    }
    alcazar_ca::wait_for_room(&config, &readiness, &shutdown).await;
    if shutdown.is_cancelled() {
        return Ok(());
    }
    let ca = Ca::open_with(config, clock::system(), metrics).await?;
    // What is asked before is told to come back.
    drop(opened.set(ca.clone()));
    // Polled in this order: running has registered its own part before opening is over.
    let (outcome, ()) = tokio::join!(ca.run(listener, shutdown, readiness), async { opening.ready() });
    if let Some(audit) = audit.get().cloned() {
        // What was decided last is written before the process ends.
        tokio::task::spawn_blocking(move || audit.close()).await?;
    }
    Ok(outcome?)
}

async fn bind(address: std::net::SocketAddr, whom: &str) -> Result<TcpListener, Box<dyn Error + Send + Sync>> {
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address} for {whom}: {error}").into())
}

/// Asks the CA that runs; when none does, opens its data folder for a moment.
async fn print_token(
    config: Config,
    node: &str,
    ttl: Option<Duration>,
    kubernetes_node: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let node = config.node_id(node)?;
    let socket = config.data_dir.join(alcazar_ca::ADMIN_SOCKET);
    let (token, expires) = if tokio::net::UnixStream::connect(&socket).await.is_ok() {
        let mut ca = AdministrationClient::connect(format!("unix:{}", socket.display())).await?;
        let ttl = i64::try_from(ttl.unwrap_or_default().as_secs())?;
        let wanted = CreateJoinTokenRequest { node_id: node.to_string(), ttl, kubernetes_node };
        let reply = ca.create_join_token(wanted).await;
        let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
        (reply.token, SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(reply.expires_at)?))
    } else {
        let owner = std::fs::metadata(&config.data_dir).map(|folder| folder.uid());
        let own = rustix::process::geteuid().as_raw();
        if let Ok(owner) = owner
            && owner != own
        {
            let folder = config.data_dir.display();
            return Err(format!(
                "no CA answers on {}, and {folder} is user {owner}'s, while this is user {own}: what is written there now would be closed to the CA. Start the CA first (`systemctl start alcazar-ca`), or be that user",
                socket.display()
            )
            .into());
        }
        let ca = Ca::open(config, clock::system()).await?;
        if !kubernetes_node {
            ca.has_no_pods(&node)?;
        }
        let (token, expires) = ca.create_join_token(&node, ttl).await?;
        ca.close().await;
        (token.reveal().to_string(), expires)
    };
    eprintln!("admits {node} once, until {}", rfc3339(expires));
    println!("{token}");
    Ok(())
}
