//! The workloads of the mesh: follows the control plane's world, registers each at the CA, and runs it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alcazar_control::{Workload, World};
use alcazar_service::Shutdown;
use alcazar_service::process::chain;
use futures::future::join_all;
use tokio::sync::{oneshot, watch};

use super::authority::{Authority, RegisterError};
use super::workload::{self, StartError, Surroundings};

/// The workloads that run.
pub(crate) struct Fleet {
    surroundings: Surroundings,
    authority: Authority,
    members: BTreeMap<String, Member>,
    processes: Processes,
    /// Every workload's task runs on it.
    shutdown: Shutdown,
}

/// The processes of the workloads' commands, for the status.
#[derive(Clone, Default)]
pub(crate) struct Processes(Arc<Mutex<BTreeMap<String, watch::Receiver<Option<u32>>>>>);

impl Processes {
    /// The process that runs for a workload at the moment.
    pub(crate) fn of(&self, workload: &str) -> Option<u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(workload).and_then(|pid| *pid.borrow())
    }

    fn replace(&self, all: BTreeMap<String, watch::Receiver<Option<u32>>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

struct Member {
    desired: watch::Sender<Arc<Workload>>,
    pid: watch::Receiver<Option<u32>>,
    ttl: Option<Duration>,
}

/// Why a workload cannot join the mesh.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// All that could not join, a line for each.
#[derive(Debug)]
pub(crate) struct JoinErrors(Vec<JoinError>);

impl fmt::Display for JoinErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(|error| chain(error)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Error for JoinErrors {}

impl Fleet {
    pub(crate) fn new(surroundings: Surroundings, authority: Authority) -> Self {
        let processes = Processes::default();
        Self { surroundings, authority, members: BTreeMap::new(), processes, shutdown: Shutdown::new() }
    }

    pub(crate) fn processes(&self) -> Processes {
        self.processes.clone()
    }

    /// Makes the running workloads those of `world`: what is new is started, what is gone is ended, what has changed
    /// is told.
    ///
    /// # Errors
    /// Why workloads could not join; the others have.
    pub(crate) async fn follow(&mut self, world: &World) -> Result<(), JoinErrors> {
        let wanted: BTreeMap<String, &Arc<Workload>> = world.workloads.iter().map(|w| (w.key(), w)).collect();
        let gone: Vec<String> = self.members.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            self.leave(&key).await;
        }
        let joining = wanted.iter().map(|(key, workload)| {
            let known = self.members.get(key).map(|member| (member.desired.borrow().clone(), member.ttl));
            self.join(known, workload, world.ttl)
        });
        let mut errors = Vec::new();
        for (outcome, (key, workload)) in join_all(joining).await.into_iter().zip(&wanted) {
            match outcome {
                Ok(Some(member)) => drop(self.members.insert(key.clone(), member)),
                Ok(None) => {
                    if let Some(member) = self.members.get_mut(key) {
                        member.ttl = world.ttl;
                        member.desired.send_if_modified(|now| {
                            let changed = now != *workload;
                            *now = Arc::clone(workload);
                            changed
                        });
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        self.processes.replace(self.members.iter().map(|(key, member)| (key.clone(), member.pid.clone())).collect());
        if errors.is_empty() { Ok(()) } else { Err(JoinErrors(errors)) }
    }

    /// Registers a workload where that has changed, and starts it where it is not known.
    async fn join(
        &self,
        known: Option<(Arc<Workload>, Option<Duration>)>,
        workload: &Arc<Workload>,
        ttl: Option<Duration>,
    ) -> Result<Option<Member>, JoinError> {
        let is_registered = known
            .as_ref()
            .is_some_and(|(before, before_ttl)| before.spiffe_id == workload.spiffe_id && *before_ttl == ttl);
        if !is_registered {
            self.authority.register(&workload.socket_name(), &workload.spiffe_id, ttl).await?;
        }
        if known.is_some() {
            return Ok(None);
        }
        let (desired, wanted) = watch::channel(workload.clone());
        let (running, pid) = watch::channel(None);
        let (started, outcome) = oneshot::channel();
        let shutdown = self.shutdown.clone();
        let run = workload::run(self.surroundings.clone(), wanted, running, started, shutdown);
        self.shutdown.spawn("workload", run);
        // Nobody answers when the mesh is ending already.
        outcome.await.unwrap_or(Ok(()))?;
        Ok(Some(Member { desired, pid, ttl }))
    }

    async fn leave(&mut self, key: &str) {
        let Some(member) = self.members.remove(key) else { return };
        let registration = member.desired.borrow().socket_name();
        // The task ends with the sender.
        drop(member);
        if let Err(error) = self.authority.unregister(&registration).await {
            tracing::warn!("{}", chain(&error));
        }
    }

    /// Ends every workload.
    pub(crate) async fn end(self, deadline: Duration) {
        self.shutdown.trigger("the mesh ends");
        if let Err(unfinished) = self.shutdown.finished(deadline).await {
            tracing::warn!("{unfinished}");
        }
    }

    /// Waits for a task of a workload that panicked.
    pub(crate) fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }
}
