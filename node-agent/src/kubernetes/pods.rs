use std::sync::Arc;
use std::time::Duration;

use alcazar_mtls::Clock;
use alcazar_service::{Metrics, Part, Shutdown, process::chain};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::known::Known;
use super::{PodList, Source};
use crate::caller::{Fact, Pod};
use crate::peer::{CgroupRoot, NoPod, PodUid, pod_of};
use crate::status::NodeStatus;

/// Knows the pods of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pods {
    root: Arc<CgroupRoot>,
    known: watch::Receiver<Arc<Known>>,
    asked: Arc<Notify>,
}

/// Has the pods listed whenever somebody asks, once for all who do.
pub(crate) struct Keeper {
    source: Source,
    clock: Clock,
    known: watch::Sender<Arc<Known>>,
    asked: Arc<Notify>,
}

impl Pods {
    pub(crate) fn new(root: CgroupRoot, source: Source, clock: Clock) -> (Self, Keeper) {
        let (known, asked) = (watch::Sender::default(), Arc::<Notify>::default());
        let pods = Self { root: Arc::new(root), known: known.subscribe(), asked: asked.clone() };
        (pods, Keeper { source, clock, known, asked })
    }

    /// The pod that a process is in, from its `/proc/<pid>/cgroup`.
    pub(crate) fn of(&self, cgroup_file: &str) -> Result<PodUid, NoPod> {
        pod_of(cgroup_file, &self.root)
    }

    /// Whose a pod is. One that is not known is waited for: the list lags behind a pod's start.
    pub(crate) async fn whose(&self, uid: &PodUid) -> Fact<Pod> {
        let (asked, mut known) = (Instant::now(), self.known.clone());
        let answered = timeout(PATIENCE, async {
            loop {
                if let Some(fact) = known.borrow_and_update().answer(uid, asked) {
                    return Some(fact);
                }
                self.asked.notify_one();
                // The agent is going.
                known.changed().await.ok()?;
            }
        });
        let answered = answered.await.ok().flatten();
        answered.unwrap_or_else(|| self.known.borrow().last_answer(uid, Instant::now()))
    }

    /// Sets the metrics of it whenever they are read.
    pub(crate) fn measure(&self, metrics: &Metrics) {
        let pods = metrics.gauge("alcazar_agent_pods", "Pods of this node, as they were listed last");
        let up = metrics.gauge(
            "alcazar_agent_pods_up",
            "Whether whoever lists the pods of this node did so when it was asked last: 1, or 0",
        );
        let known = self.known.clone();
        metrics.on_scrape(move || {
            let known = known.borrow().clone();
            pods.set(i64::try_from(known.pods.len()).unwrap_or(i64::MAX));
            up.set(i64::from(known.failed.is_none() && known.listed.is_some()));
        });
    }
}

impl Keeper {
    /// Runs until the shutdown.
    pub(crate) async fn keep(self, part: Part, status: watch::Sender<NodeStatus>, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            never = self.list(part, status) => never,
        }
    }

    async fn list(self, part: Part, status: watch::Sender<NodeStatus>) {
        // Once by itself, so that what is wrong is known before the first pod comes.
        self.asked.notify_one();
        loop {
            self.asked.notified().await;
            let at = Instant::now();
            let listed = self.source.list(&self.clock).await.map_err(|error| chain(&error));
            let error = listed.as_ref().err().cloned();
            status.send_if_modified(|status| {
                let changed = status.pods_error != error;
                status.pods_error = error;
                changed
            });
            self.take(listed, at, &part);
            sleep_until(at + APART).await;
        }
    }

    fn take(&self, listed: Result<PodList, String>, at: Instant, part: &Part) {
        let before = self.known.borrow().clone();
        let now = match listed {
            Ok(pods) => {
                if before.failed.is_some() || before.listed.is_none() {
                    tracing::info!(url = %self.source.url, pods = pods.len(), "the pods of this node are listed");
                }
                part.ready();
                Known::listed(pods, at)
            }
            Err(error) => {
                if before.failed.as_ref().is_none_or(|(_, last)| *last != error) {
                    tracing::warn!(url = %self.source.url, error, "cannot list the pods of this node; those that are known go on");
                }
                part.degraded(&error);
                before.failed(error, at)
            }
        };
        self.known.send_replace(Arc::new(now));
    }
}

/// How long somebody waits for a pod that is not on the list.
const PATIENCE: Duration = Duration::from_secs(5);
/// How far apart two lists are asked for.
const APART: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
