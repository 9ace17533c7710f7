//! One thread, one runtime, its own listeners and connections.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alcazar_service::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::listen::Sockets;
use crate::outbound::OwnerCheck;
use crate::plane::Plane;
use crate::{inbound, outbound};

/// Runs one worker on a thread of its own until the shutdown and its drain.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn start(
    number: usize,
    sockets: Sockets,
    plane: Arc<Plane>,
    drain: Duration,
    shutdown: Shutdown,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a worker has no runtime");
                return shutdown.trigger("a worker has no runtime");
            }
        };
        runtime.block_on(work(sockets, plane, drain, &shutdown));
        // Whatever the drain's deadline has cut short ends with the runtime.
        runtime.shutdown_background();
    })
}

async fn work(sockets: Sockets, plane: Arc<Plane>, drain: Duration, shutdown: &Shutdown) {
    // Parts of this worker: one that panics ends the process.
    let parts = shutdown.child();
    let spawned = sockets.listen(|listener, part| match part {
        Part::Inbound => spawn(&parts, shutdown, "inbound", inbound::accept(listener, plane.clone())),
        Part::Outbound(owner) => {
            spawn(&parts, shutdown, "outbound", outbound::accept(listener, owner, plane.clone()));
        }
        Part::Forward(to, owner) => {
            spawn(&parts, shutdown, "forward", outbound::forward_tcp(listener, to, owner, plane.clone()));
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "a worker cannot use its listeners");
        shutdown.trigger("a worker cannot use its listeners");
    }
    spawn(&parts, shutdown, "pruning", prune(plane.clone()));
    parts.cancelled().await;
    let drained = async {
        if let Err(unfinished) = parts.finished(drain).await {
            tracing::warn!(%unfinished, "a part of a worker does not end");
        }
        plane.drained().await;
    };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::warn!(?drain, "connections were still open at the end of the drain; they are cut");
    }
}

/// What a listener is for.
pub(crate) enum Part {
    Inbound,
    Outbound(Option<Arc<OwnerCheck>>),
    Forward(String, Option<Arc<OwnerCheck>>),
}

/// A part whose panic ends not only this worker: a process that lost one must not look alive.
fn spawn<F>(parts: &Shutdown, all: &Shutdown, name: &'static str, part: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (parts_here, all) = (parts.clone(), all.clone());
    parts.spawn(name, async move {
        part.await;
        // Parts end by the shutdown alone.
        if !parts_here.is_cancelled() {
            all.trigger("a part of a worker ended");
        }
    });
}

async fn prune(plane: Arc<Plane>) {
    let mut ticks = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => plane.prune(),
            () = plane.shutdown.cancelled() => return,
        }
    }
}

/// The next connection of a listener; `None` at the shutdown.
pub(crate) async fn next_connection(
    listener: &TcpListener,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return None,
        };
        match accepted {
            Ok((stream, address)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection ended as it came");
                    continue;
                }
                return Some((stream, address));
            }
            Err(error) => {
                // Most often no file descriptor is left: others must end first.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const PRUNE_EVERY: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
