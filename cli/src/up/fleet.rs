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
use tokio::time::timeout;

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
    shutdown: Shutdown,
    /// Closed when its task has ended.
    ended: oneshot::Receiver<()>,
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
        // Before others join: they may be given the ports of those that go.
        let gone: Vec<Member> =
            self.members.extract_if(.., |key, _| !wanted.contains_key(key)).map(|(_, gone)| gone).collect();
        join_all(gone.into_iter().map(|member| self.leave(member))).await;
        let mut new = Vec::new();
        let mut errors = Vec::new();
        for (key, workload) in &wanted {
            match self.members.get_mut(key) {
                Some(member) => errors.extend(member.tell(workload, world.ttl, &self.authority).await.err()),
                None => new.push((key, *workload)),
            }
        }
        let joined = join_all(new.iter().map(|(_, workload)| self.join(workload, world.ttl))).await;
        for (outcome, (key, _)) in joined.into_iter().zip(new) {
            match outcome {
                Ok((member, failed)) => {
                    errors.extend(failed.map(JoinError::Start));
                    self.members.insert(key.clone(), member);
                }
                Err(error) => errors.push(error),
            }
        }
        self.processes.replace(self.members.iter().map(|(key, member)| (key.clone(), member.pid.clone())).collect());
        if errors.is_empty() { Ok(()) } else { Err(JoinErrors(errors)) }
    }

    /// Registers a workload and starts it. One that cannot be started is a member too: it tries again by itself.
    async fn join(
        &self,
        workload: &Arc<Workload>,
        ttl: Option<Duration>,
    ) -> Result<(Member, Option<StartError>), JoinError> {
        self.authority.register(&workload.socket_name(), &workload.spiffe_id, ttl).await?;
        let (desired, wanted) = watch::channel(workload.clone());
        let (running, pid) = watch::channel(None);
        let (started, outcome) = oneshot::channel();
        let (shutdown, (ending, ended)) = (self.shutdown.child(), oneshot::channel());
        let run = workload::run(self.surroundings.clone(), wanted, running, started, shutdown.clone());
        // On the tree of all, so that a panic ends the mesh.
        self.shutdown.spawn("workload", async move {
            run.await;
            drop(ending);
        });
        // Nobody answers when the mesh is ending already.
        let failed = outcome.await.unwrap_or(Ok(())).err();
        Ok((Member { shutdown, ended, desired, pid, ttl }, failed))
    }

    async fn leave(&self, member: Member) {
        let registration = member.desired.borrow().socket_name();
        member.shutdown.trigger("the workload has left the mesh");
        if timeout(WORKLOAD_END, member.ended).await.is_err() {
            tracing::warn!("{registration} has not ended within {WORKLOAD_END:?}");
        }
        if let Err(error) = self.authority.unregister(&registration).await {
            tracing::warn!("{}", chain(&error));
        }
    }

    /// Ends every workload.
    pub(crate) async fn end(self) {
        self.shutdown.trigger("the mesh ends");
        if let Err(unfinished) = self.shutdown.finished(WORKLOAD_END).await {
            tracing::warn!("{unfinished}");
        }
    }

    /// Ends when the mesh does, or when a workload's task has panicked.
    pub(crate) fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }
}

impl Member {
    /// Registers the workload anew where that has changed, and tells its task what it is now.
    async fn tell(
        &mut self,
        workload: &Arc<Workload>,
        ttl: Option<Duration>,
        authority: &Authority,
    ) -> Result<(), JoinError> {
        let is_registered = self.desired.borrow().spiffe_id == workload.spiffe_id && self.ttl == ttl;
        if !is_registered {
            authority.register(&workload.socket_name(), &workload.spiffe_id, ttl).await?;
            self.ttl = ttl;
        }
        self.desired.send_if_modified(|now| {
            let changed = now != workload;
            *now = Arc::clone(workload);
            changed
        });
        Ok(())
    }
}

/// How long a workload may take to end; its proxy and its command have shorter deadlines of their own.
const WORKLOAD_END: Duration = Duration::from_secs(15);
