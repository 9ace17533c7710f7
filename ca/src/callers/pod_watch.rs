//! The pods of the cluster, kept up to date by a watch.

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use alcazar_identity::rfc3339;
use alcazar_service::{Part, Shutdown, clock::Clock, process};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::ListParams,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::pods::{Pods, read};

/// The pods as the API server last told them.
pub(crate) struct PodWatch {
    client: Client,
    clock: Clock,
    pods: RwLock<Pods>,
    /// Rises when somebody comes to a node as the first of an account, or goes as the last; `None` until all pods are known.
    changes: watch::Sender<Option<u64>>,
}

impl PodWatch {
    pub(super) fn new(client: Client, clock: Clock) -> Self {
        Self { client, clock, pods: RwLock::default(), changes: watch::Sender::new(None) }
    }

    /// What is asked of the pods; `None` until they are known. When the API server goes away they are as they were.
    pub(super) fn read<T>(&self, ask: impl FnOnce(&Pods) -> T) -> Option<T> {
        let known = self.changes.borrow().is_some();
        known.then(|| ask(&self.pods.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// When it changes of whom a pod is on some node; `None` until all pods are known.
    pub(super) fn changes(&self) -> watch::Receiver<Option<u64>> {
        self.changes.subscribe()
    }

    /// Follows the pods until the shutdown.
    pub(crate) async fn run(&self, part: Part, shutdown: Shutdown) {
        part.degraded(UNKNOWN);
        let events = watcher(Api::<Pod>::all(self.client.clone()), watcher::Config::default()).default_backoff();
        pin_mut!(events);
        let mut listed = Pods::default();
        let mut quiet = true;
        loop {
            let was_cut_off = !quiet && self.changes.borrow().is_some();
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
                // Where nothing changes, a watch that is back says nothing; one that is not fails again before.
                () = sleep(FOLLOWED), if was_cut_off => {
                    if self.is_answered().await {
                        part.ready();
                        quiet = true;
                    }
                    continue;
                }
            };
            match event {
                Some(Ok(event)) => {
                    // That a list is about to be asked for comes before anybody has answered.
                    let is_answered = !matches!(event, Event::Init);
                    self.apply(event, &mut listed);
                    if is_answered && self.changes.borrow().is_some() {
                        part.ready();
                    }
                    quiet |= is_answered;
                }
                // Once per outage; the watch tries again by itself, less and less often.
                Some(Err(error)) if quiet => {
                    quiet = false;
                    let reason = process::chain(&error);
                    if self.changes.borrow().is_some() {
                        tracing::warn!(
                            reason,
                            "the pods of the cluster cannot be followed at the moment; what was known of them goes on"
                        );
                        let since = rfc3339((self.clock)());
                        part.degraded(format!("{NOT_FOLLOWED} {since}; what was known goes on: {reason}"));
                    } else {
                        tracing::warn!(
                            reason,
                            "the pods of the cluster cannot be read: until they are known, no node is told what is registered for it, and nobody gets what depends on them"
                        );
                        part.degraded(format!("{UNKNOWN}: {reason}"));
                    }
                }
                Some(Err(_)) => {}
                None => return,
            }
        }
    }

    /// Whether the API server answers who asks for pods.
    async fn is_answered(&self) -> bool {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let one = ListParams::default().limit(1);
        timeout(ANSWER, pods.list(&one)).await.is_ok_and(|answer| answer.is_ok())
    }

    fn apply(&self, event: Event<Pod>, listed: &mut Pods) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let put = |pods: &mut Pods, object: &Pod| read(object).is_some_and(|(name, pod)| pods.put(name, pod));
        let (mut all, mut changed) = (false, false);
        match event {
            Event::Init => *listed = Pods::default(),
            Event::InitApply(object) => drop(put(listed, &object)),
            Event::InitDone => {
                *pods = std::mem::take(listed);
                tracing::info!(pods = pods.len(), "the pods of the cluster are known");
                all = true;
            }
            Event::Apply(object) => changed = put(&mut pods, &object),
            Event::Delete(object) => changed = read(&object).is_some_and(|(name, _)| pods.remove(&name)),
        }
        drop(pods);
        self.changes.send_if_modified(|changes| {
            let told = all || changed && changes.is_some();
            if told {
                *changes = Some(changes.unwrap_or_default().wrapping_add(1));
            }
            told
        });
    }
}

const NOT_FOLLOWED: &str = "the pods of the cluster are not followed since";
/// A try to connect takes half a minute at most, and so does the pause before it.
const FOLLOWED: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(10);
const UNKNOWN: &str = "the pods of the cluster are not known yet; whoever depends on them waits";
