//! One workload for as long as it is in the mesh file: its proxy, and its command.
//!
//! ```text
//!   watch of the workload ─▶ start ─▶ proxy ─┐ until the shape changes, the workload goes, or a part ends
//!                              ▲      command ┘
//!                              └── stop: the proxy drains, then the command ends
//! ```

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alcazar_control::{Forward, Workload};
use alcazar_identity::SpiffeId;
use alcazar_proxy::{BindError, ParseWorkloadNameError, Proxy};
use alcazar_service::process::chain;
use alcazar_service::{Readiness, ReadyGuard, Shutdown};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::console::Console;
use super::data_dir::{Paths, SocketPathTooLong};
use super::supervise::{Job, Spawner, supervise};

/// How long a proxy may take to finish what it has begun.
const DRAIN: Duration = Duration::from_secs(5);

/// How long it may take to end, with that.
const PROXY_END: Duration = Duration::from_secs(7);

/// How long a command may take to end, longer than its own grace.
const COMMAND_END: Duration = Duration::from_secs(5);

/// How long the mesh waits for a command to listen before it calls itself ready all the same.
const LISTENS: Duration = Duration::from_secs(3);

/// The first pause before a part that ended by itself, or did not start, is started again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// What every workload's parts need.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) paths: Paths,
    /// Where commands run.
    pub(crate) directory: PathBuf,
    /// Where their processes are noted; absolute.
    pub(crate) commands: PathBuf,
    /// Where the control plane listens.
    pub(crate) control: SocketAddr,
    pub(crate) console: Console,
    pub(crate) spawner: Spawner,
    pub(crate) readiness: Readiness,
}

/// Why a workload cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(
        "cannot start the proxy of {workload} (an address that was chosen is chosen anew when addresses.json is removed)"
    )]
    Proxy { workload: String, source: BindError },
    #[error("{address} is in use, and the command of {workload} would listen there (its port `{port}`)")]
    Port { workload: String, port: String, address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Socket(#[from] SocketPathTooLong),
    #[error(transparent)]
    Name(#[from] ParseWorkloadNameError),
}

/// Runs a workload until the shutdown, or until `desired` has no sender any more.
///
/// `started` is told how the first start went; what goes wrong later is reported as an event.
pub(crate) async fn run(
    surroundings: Surroundings,
    mut desired: watch::Receiver<Arc<Workload>>,
    pid: watch::Sender<Option<u32>>,
    started: oneshot::Sender<Result<(), StartError>>,
    shutdown: Shutdown,
) {
    let (mut started, mut pause) = (Some(started), FIRST_PAUSE);
    loop {
        let workload = desired.borrow_and_update().clone();
        let parts = Parts::start(&surroundings, &workload, &pid).await;
        let why = match parts {
            Ok(parts) => {
                if let Some(started) = started.take() {
                    // Whoever asked may have been cancelled by the shutdown, which is seen below.
                    started.send(Ok(())).unwrap_or_default();
                }
                pause = FIRST_PAUSE;
                let why = parts.until_over(&workload, &mut desired, &shutdown).await;
                parts.stop().await;
                why
            }
            Err(error) => match started.take() {
                Some(started) => {
                    started.send(Err(error)).unwrap_or_default();
                    Over::Ended
                }
                None => {
                    tracing::error!(target: "alcazar::supervise", "{}", chain(&error));
                    Over::Ended
                }
            },
        };
        match why {
            Over::Gone => return,
            Over::Changed => {}
            Over::Ended => tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
            },
        }
    }
}

enum Over {
    /// The workload has left the mesh file, or the mesh ends.
    Gone,
    /// It is another one now: its parts have to be started anew.
    Changed,
    /// A part ended by itself.
    Ended,
}

/// What runs for a workload.
struct Parts {
    proxy: Shutdown,
    command: Shutdown,
}

impl Parts {
    async fn start(
        surroundings: &Surroundings,
        workload: &Workload,
        pid: &watch::Sender<Option<u32>>,
    ) -> Result<Self, StartError> {
        let key = workload.key();
        if workload.command.is_some() {
            check_ports(workload)?;
        }
        let config = proxy_config(surroundings, workload)?;
        let proxy = Proxy::bind(config).await.map_err(|source| StartError::Proxy { workload: key.clone(), source })?;
        let parts = Self { proxy: Shutdown::new(), command: Shutdown::new() };
        let (running, readiness) = (parts.proxy.clone(), surroundings.readiness.clone());
        let name = key.clone();
        parts.proxy.spawn("proxy", async move {
            let outcome = proxy.run(running.clone(), readiness).await;
            if let Err(error) = outcome {
                tracing::error!(target: "alcazar::supervise", "the proxy of {name} has ended: {}", chain(&error));
            }
            running.trigger("the proxy has ended");
        });
        if let Some(job) = job(surroundings, workload) {
            if let Some(port) = workload.ports.first() {
                let ready = surroundings.readiness.register(format!("the command of {key}"));
                let address = SocketAddr::new(workload.address, port.number);
                parts
                    .command
                    .spawn("first connection to a command", wait_for_listener(address, ready, parts.command.clone()));
            }
            let supervised = supervise(
                job,
                surroundings.spawner.clone(),
                surroundings.console.clone(),
                pid.clone(),
                parts.command.clone(),
            );
            parts.command.spawn("command", supervised);
        }
        Ok(parts)
    }

    async fn until_over(
        &self,
        workload: &Workload,
        desired: &mut watch::Receiver<Arc<Workload>>,
        shutdown: &Shutdown,
    ) -> Over {
        let shape = Shape::of(workload);
        tokio::select! {
            () = shutdown.cancelled() => Over::Gone,
            () = self.proxy.cancelled() => Over::Ended,
            () = self.command.cancelled() => Over::Ended,
            changed = desired.wait_for(|now| Shape::of(now) != shape) => {
                if changed.is_ok() { Over::Changed } else { Over::Gone }
            }
        }
    }

    /// The proxy first, so that the application can answer what is under way.
    async fn stop(self) {
        for (part, deadline) in [(self.proxy, PROXY_END), (self.command, COMMAND_END)] {
            part.trigger("the workload ends");
            if let Err(unfinished) = part.finished(deadline).await {
                tracing::warn!("{unfinished}");
            }
        }
    }
}

/// What of a workload its parts are started with; all else reaches a running proxy as configuration.
#[derive(Debug, PartialEq, Eq)]
struct Shape<'a> {
    spiffe_id: &'a SpiffeId,
    inbound: SocketAddr,
    outbound: Option<SocketAddr>,
    forwards: &'a [Forward],
    command: Option<&'a [String]>,
    port: Option<u16>,
}

impl<'a> Shape<'a> {
    fn of(workload: &'a Workload) -> Self {
        Self {
            spiffe_id: &workload.spiffe_id,
            inbound: workload.inbound,
            outbound: workload.outbound,
            forwards: &workload.forwards,
            command: workload.command.as_deref(),
            port: workload.ports.first().map(|port| port.number),
        }
    }
}

/// A command whose port somebody else has would only fail again and again.
fn check_ports(workload: &Workload) -> Result<(), StartError> {
    for port in &workload.ports {
        let address = SocketAddr::new(workload.address, port.number);
        if let Err(source) = TcpListener::bind(address) {
            return Err(StartError::Port { workload: workload.key(), port: port.name.clone(), address, source });
        }
    }
    Ok(())
}

fn proxy_config(surroundings: &Surroundings, workload: &Workload) -> Result<alcazar_proxy::Config, StartError> {
    let forward = |forward: &Forward| alcazar_proxy::Forward {
        listen: forward.listen,
        to: format!("{}:{}", forward.host, forward.port),
    };
    Ok(alcazar_proxy::Config {
        workload: workload.key().parse()?,
        sds_socket: surroundings.paths.sds_socket(&workload.socket_name())?,
        control: alcazar_proxy::ControlPlane { address: surroundings.control.to_string(), identity: None },
        inbound: workload.inbound,
        outbound: workload.outbound,
        outbound_user: None,
        forwards: workload.forwards.iter().map(forward).collect(),
        decision_log: Some(surroundings.paths.decisions()),
        workers: Some(1),
        admin: None,
        drain: DRAIN,
    })
}

fn job(surroundings: &Surroundings, workload: &Workload) -> Option<Job> {
    Some(Job {
        workload: workload.key(),
        note: surroundings.commands.join(workload.socket_name()),
        command: workload.command.clone()?,
        directory: surroundings.directory.clone(),
        port: workload.ports.first().map(|port| port.number),
        outbound: workload.outbound,
    })
}

/// Holds the guard until the command listens, but not for ever.
async fn wait_for_listener(address: SocketAddr, ready: ReadyGuard, shutdown: Shutdown) {
    let listens = async {
        while TcpStream::connect(address).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        late = timeout(LISTENS, listens) => if late.is_err() {
            tracing::warn!(target: "alcazar::supervise", "nothing listens on {address} yet, where a command should");
        }
    }
    ready.ready();
}
