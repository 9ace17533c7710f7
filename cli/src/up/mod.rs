//! `alcazar up`: a whole mesh in one process.
//!
//! ```text
//!   DataDir (locked) ─▶ Control::open (the mesh file is right) ─▶ CA ─▶ node agent ─▶ control plane
//!                                         │ world                ▲
//!                                         └────────▶ Fleet ──────┘ registers, then for each workload:
//!                                                                  proxy, command
//! ```
//!
//! It ends the other way round: commands once their proxies have drained, then control plane, agent and CA.

mod authority;
mod banner;
mod console;
mod data_dir;
mod events;
mod fleet;
pub(crate) mod leftovers;
mod prepare;
mod sample;
mod supervise;
mod survey;
mod watch;
mod words;
mod workload;

use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use alcazar_node_agent::Agent;
use alcazar_service::process::{self, Failure};
use alcazar_service::telemetry::{colour_wanted, filter};
use alcazar_service::{Readiness, Shutdown, clock, local};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::authority::Authority;
use self::console::Console;
pub(crate) use self::data_dir::Paths;
use self::events::{Events, TARGETS};
use self::fleet::Fleet;
use self::prepare::Prepared;
use self::supervise::Spawner;
use self::survey::Survey;
use self::watch::{Mesh, run_part, while_spawning};
use self::workload::Surroundings;
use crate::args::UpArgs;

/// How long CA, agent and control plane may take to end.
const PARTS_END: Duration = Duration::from_secs(8);

/// Runs the command.
pub(crate) fn run(args: UpArgs) -> ExitCode {
    let started = Instant::now();
    let console = match Console::start(io::stdout()) {
        Ok(console) => console,
        Err(error) => {
            eprintln!("alcazar: cannot start a thread: {error}");
            return ExitCode::FAILURE;
        }
    };
    follow_events(&console);
    alcazar_mtls::install_default_provider();
    let code = match Prepared::open(&args) {
        Ok(prepared) => process::run("alcazar", PARTS_END, |shutdown, readiness| {
            up(prepared, started, console.clone(), shutdown, readiness)
        }),
        Err(error) => error.report(),
    };
    console.flush();
    code
}

/// Events go to the console; other logs to standard error, warnings and worse unless `RUST_LOG` says otherwise.
fn follow_events(console: &Console) {
    let events = Events::new(console.clone(), clock::system(), colour_wanted(&io::stdout()));
    let others = filter_fn(|metadata| !metadata.target().starts_with(TARGETS));
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(colour_wanted(&io::stderr()))
        .with_filter(others.and(filter("warn")));
    let outcome = tracing_subscriber::registry().with(events.with_filter(Events::filter())).with(logs).try_init();
    if outcome.is_err() {
        tracing::debug!("logging was started before");
    }
}

async fn up(
    prepared: Prepared,
    started: Instant,
    console: Console,
    shutdown: Shutdown,
    readiness: Readiness,
) -> Result<(), Failure> {
    let starting = readiness.register("start");
    let Prepared { data, source, control, listener } = prepared;
    let paths = data.paths();
    let mut worlds = control.world();
    let world = worlds.borrow_and_update().clone();
    let control_listener = TcpListener::from_std(listener)?;
    let ca_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;

    // From here on something runs, and is ended on every way out.
    let parts = Shutdown::new();
    let (failed, mut failures) = mpsc::channel(1);
    let authority = Authority::open(paths, &world).await?;
    let agent = Agent::open(
        alcazar_node_agent::Config {
            trust_domain: world.trust_domain.clone(),
            cluster: world.cluster.clone(),
            node: Authority::node().to_owned(),
            ca_address: ca_listener.local_addr()?.to_string(),
            join_token: Some(authority.join_token().await?.to_string()),
            join_token_file: None,
            attest: alcazar_node_agent::AttestConfig::default(),
            seal: None,
            data_dir: paths.agent(),
            kubernetes: None,
            sockets_dir: paths.sockets(),
            admin: None,
            files: Vec::new(),
            narrow: None,
            crls: alcazar_node_agent::CrlsConfig::Auto,
        },
        clock::system(),
    )
    .await?;
    let agent_status = agent.status();
    let (spawner, mut orders) = Spawner::new();
    let surroundings = Surroundings {
        paths: paths.clone(),
        directory: source.directory(),
        commands: std::path::absolute(paths.commands())?,
        control: control_listener.local_addr()?,
        console: console.clone(),
        spawner,
        readiness: readiness.clone(),
    };
    let (ca, ready) = (authority.ca(), readiness.clone());
    run_part(&parts, "certificate authority", &failed, async move |end| ca.run(ca_listener, end, ready).await);
    let ready = readiness.clone();
    run_part(&parts, "node agent", &failed, async move |end| agent.run(end, ready).await);
    let ready = readiness.clone();
    run_part(&parts, "control plane", &failed, async move |end| control.run(control_listener, end, ready).await);

    let mut fleet = Fleet::new(surroundings, authority.clone());
    let survey = Survey::new(worlds.clone(), agent_status, authority, readiness.clone(), fleet.processes());
    let listener = local::bind(&paths.status_socket())?;
    let seen = survey.clone();
    let status = move || seen.status();
    run_part(&parts, "status", &failed, async move |end| local::serve(listener, status, end).await);

    let mesh = Mesh { source, survey, console, readiness, shutdown, parts: parts.clone() };
    let joined = while_spawning(&mut orders, fleet.follow(&world)).await;
    let outcome = match joined {
        Ok(()) => {
            starting.ready();
            mesh.watch(started, &mut fleet, &mut worlds, &mut orders, &mut failures).await
        }
        Err(error) => Err(error.into()),
    };
    // Commands that are asked for now will not be started.
    drop(orders);
    fleet.end().await;
    parts.trigger("the mesh ends");
    if let Err(unfinished) = parts.finished(PARTS_END).await {
        tracing::warn!("{unfinished}");
    }
    outcome
}
