//! A mesh that runs: the loop that follows the world, starts commands, and notices when a part fails.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use alcazar_control::World;
use alcazar_service::process::{Failure, chain};
use alcazar_service::{Readiness, Shutdown, clock};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::banner;
use super::console::Console;
use super::fleet::Fleet;
use super::prepare::Source;
use super::supervise::{Order, Spawner};
use super::survey::Survey;

/// How long the mesh may take before it says what it waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the tasks of a part may take to end after it.
const PART_END: Duration = Duration::from_secs(5);

/// A mesh that runs.
pub(super) struct Mesh {
    pub(super) source: Source,
    pub(super) survey: Survey,
    pub(super) console: Console,
    pub(super) readiness: Readiness,
    pub(super) shutdown: Shutdown,
    /// CA, agent, control plane and status run on it.
    pub(super) parts: Shutdown,
}

impl Mesh {
    /// Follows the world until the end is asked for or a part fails.
    pub(super) async fn watch(
        &self,
        started: Instant,
        fleet: &mut Fleet,
        worlds: &mut watch::Receiver<Arc<World>>,
        orders: &mut mpsc::Receiver<Order>,
        failures: &mut mpsc::Receiver<PartFailed>,
    ) -> Result<(), Failure> {
        let workloads = fleet.shutdown();
        let ready = self.greet(started);
        tokio::pin!(ready);
        let mut is_greeted = false;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => {
                    self.console.say("ending: proxies finish what is under way");
                    return Ok(());
                }
                Some(failure) = failures.recv() => return Err(failure.into()),
                () = self.parts.cancelled() => return Err("a part of the mesh has panicked; see the log".into()),
                () = workloads.cancelled() => return Err("a workload's task has panicked; see the log".into()),
                Some(order) = orders.recv() => Spawner::carry_out(order),
                () = &mut ready, if !is_greeted => is_greeted = true,
                Ok(()) = worlds.changed() => {
                    let world = worlds.borrow_and_update().clone();
                    let followed = while_spawning(orders, fleet.follow(&world)).await;
                    if let Err(errors) = followed {
                        tracing::error!(target: "alcazar::reload", "{errors}");
                    }
                }
            }
        }
    }

    /// Prints the banner once everything is ready.
    async fn greet(&self, started: Instant) {
        while tokio::time::timeout(PATIENCE, self.readiness.wait()).await.is_err() {
            self.console.say(format!("still waiting for {}", self.readiness.pending().join(", ")));
        }
        let status = self.survey.status();
        let (tries, name) = match self.source.is_sample {
            true => (banner::sample(&status), format!("the sample in {}", self.source.directory().display())),
            false => (Vec::new(), self.source.mesh.display().to_string()),
        };
        self.console.say(banner::banner(&status, &tries, started.elapsed(), &name, clock::now()));
    }
}

/// A part of the mesh has ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("the {part} has failed: {why}")]
pub(super) struct PartFailed {
    part: &'static str,
    why: String,
}

/// Runs a part; its failure, or an end that nobody asked for, ends the mesh.
pub(super) fn run_part<E: Error + 'static, F>(
    parts: &Shutdown,
    part: &'static str,
    failed: &mpsc::Sender<PartFailed>,
    run: impl FnOnce(Shutdown) -> F,
) where
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    let (failed, all, own) = (failed.clone(), parts.clone(), parts.child());
    let running = run(own.clone());
    parts.spawn(part, async move {
        let why = match running.await {
            Ok(()) => "it has ended by itself; see the log".to_owned(),
            Err(error) => chain(&error),
        };
        if !all.is_cancelled() {
            // Full: another part has failed already, and is the one to report.
            failed.try_send(PartFailed { part, why }).unwrap_or_default();
        }
        own.trigger("the part has ended");
        if let Err(unfinished) = own.finished(PART_END).await {
            tracing::warn!(part, "{unfinished}");
        }
    });
}

/// Waits for something, and meanwhile starts commands on this thread.
pub(super) async fn while_spawning<T>(orders: &mut mpsc::Receiver<Order>, something: impl Future<Output = T>) -> T {
    tokio::pin!(something);
    loop {
        tokio::select! {
            outcome = &mut something => return outcome,
            Some(order) = orders.recv() => Spawner::carry_out(order),
        }
    }
}
