//! The pods of the cluster, kept up to date by a watch.

use std::sync::{
    PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use alcazar_service::{Shutdown, process};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};

use super::pods::{Pods, read};

/// The pods as the API server last told them.
pub(crate) struct PodWatch {
    client: Client,
    pods: RwLock<Pods>,
    known: AtomicBool,
}

impl PodWatch {
    pub(super) fn new(client: Client) -> Self {
        Self { client, pods: RwLock::default(), known: AtomicBool::new(false) }
    }

    /// What is asked of the pods; `None` until they are known. When the API server goes away they are as they were.
    pub(super) fn read<T>(&self, ask: impl FnOnce(&Pods) -> T) -> Option<T> {
        self.known.load(Ordering::Acquire).then(|| ask(&self.pods.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Follows the pods until the shutdown.
    pub(crate) async fn run(&self, shutdown: Shutdown) {
        let events = watcher(Api::<Pod>::all(self.client.clone()), watcher::Config::default()).default_backoff();
        pin_mut!(events);
        let mut listed = Pods::default();
        let mut quiet = true;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    self.apply(event, &mut listed);
                    quiet = true;
                }
                // Once per outage; the watch tries again by itself, less and less often.
                Some(Err(error)) if quiet => {
                    quiet = false;
                    tracing::warn!(reason = %process::chain(&error), "the pods of the cluster cannot be followed at the moment; what was known of them goes on");
                }
                Some(Err(_)) => {}
                None => return,
            }
        }
    }

    fn apply(&self, event: Event<Pod>, listed: &mut Pods) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let put = |pods: &mut Pods, object: &Pod| {
            if let Some((name, pod)) = read(object) {
                pods.put(name, pod);
            }
        };
        match event {
            Event::Init => *listed = Pods::default(),
            Event::InitApply(object) => put(listed, &object),
            Event::InitDone => {
                *pods = std::mem::take(listed);
                tracing::info!(pods = pods.len(), "the pods of the cluster are known");
                drop(pods);
                self.known.store(true, Ordering::Release);
            }
            Event::Apply(object) => put(&mut pods, &object),
            Event::Delete(object) => {
                if let Some((name, _)) = read(&object) {
                    pods.remove(&name);
                }
            }
        }
    }
}
