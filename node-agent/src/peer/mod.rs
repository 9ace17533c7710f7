//! The process at the other end of a socket, without a race: it is held by a descriptor from the moment on at which its connection
//! is accepted, and what is read of it counts when it is still alive afterwards.

mod cgroup;
mod exe;
mod pidfd;
mod pod;
mod proc;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use alcazar_mtls::Clock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

pub use cgroup::unit_of;
pub use pod::{CgroupRoot, NoPod, ParseCgroupRootError, ParsePodUidError, PodUid, pod_of};

use crate::caller::{Fact, Needs, Seen};
use crate::kubernetes::Pods;
use exe::{Believed, Digests};
pub(crate) use pidfd::PidfdError;

/// Who has a share of what all have of the agent. Pods are nearly all of one user and not of one mind, and a pod has as many users
/// as it likes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum User {
    /// A user in no pod, or in none that is known.
    Outside(u32),
    /// All that is in a pod.
    Pod(PodUid),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(uid) => write!(f, "uid {uid}"),
            Self::Pod(uid) => write!(f, "pod {uid}"),
        }
    }
}

/// The process that made a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    uid: u32,
    user: User,
    gid: u32,
    pid: Option<i32>,
    process: AsyncFd<OwnedFd>,
    believed: Mutex<Option<Believed>>,
}

impl Peer {
    /// Takes hold of the process that made a connection.
    ///
    /// # Errors
    /// When it has ended, or the kernel does not show it.
    pub(crate) fn of(stream: &UnixStream) -> Result<Self, PidfdError> {
        let credentials = stream.peer_cred().map_err(PidfdError::Kernel)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let user = User::Outside(uid);
        let process = pidfd::of(stream, uid, credentials.pid())?;
        let pid = pidfd::number(&process).map_err(PidfdError::Kernel)?;
        // After its number was read: what has ended in between has none.
        if pidfd::has_ended(&process) {
            return Err(PidfdError::Gone);
        }
        let process = watched(process).map_err(PidfdError::Kernel)?;
        Ok(Self { uid, user, gid, pid, process, believed: Mutex::default() })
    }

    /// The user of the process when it connected.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Whose share it has.
    pub(crate) fn user(&self) -> &User {
        &self.user
    }

    /// The group of the process when it connected.
    pub(crate) fn gid(&self) -> u32 {
        self.gid
    }

    /// Its number, for the log; `None` where it is in another namespace of processes.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Ready when the process has ended. One task can wait for it.
    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.process.poll_read_ready(cx).map(drop)
    }

    fn read(&self, needs: Needs, digests: &Digests, clock: &Clock, pods: Option<&Pods>) -> (Seen, Option<PodUid>) {
        let Some(pid) = self.pid else {
            let why = "it is in another namespace of processes: run the agent in the host's (hostPID in Kubernetes)";
            return (nothing(needs, why), None);
        };
        let mut seen = Seen::default();
        if needs.groups {
            let status = proc::read(pid, "status").map_err(|error| format!("its groups cannot be read: {error}"));
            let groups = status.and_then(|status| proc::groups(&status).ok_or("its groups cannot be read".to_owned()));
            seen.groups = groups.into();
        }
        let cgroups =
            || proc::read(pid, "cgroup").map_err(|error| format!("its control group cannot be read: {error}"));
        if needs.unit {
            seen.unit = cgroups().and_then(|cgroups| unit_of(&cgroups)).into();
        }
        let exe = PathBuf::from(format!("/proc/{pid}/exe"));
        if needs.path {
            seen.path = exe::path(&exe, &mut self.believed.lock().unwrap_or_else(PoisonError::into_inner)).into();
        }
        if needs.digest {
            seen.digest = digests.of(&exe, clock()).into();
        }
        let mut uid = None;
        if let (true, Some(pods)) = (needs.pod, pods) {
            match cgroups().map_err(NoPod::Unclear).and_then(|cgroups| pods.of(&cgroups)) {
                Ok(pod) => uid = Some(pod),
                Err(NoPod::Elsewhere(why)) => seen.pod = Fact::Absent(why),
                Err(NoPod::Unclear(why)) => seen.pod = Fact::Unknown(why),
            }
        }
        // The second look: while the process lives its number is nobody else's, so all of this was its own.
        if pidfd::has_ended(&self.process) {
            return (nothing(needs, ENDED), None);
        }
        (seen, uid)
    }
}

#[allow(
    deprecated,
    reason = "its successor is unsafe for the sake of types that do not own their descriptor; this one does"
)]
fn watched(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(process, Interest::READABLE)
}

/// Looks at processes; one for all sockets.
#[derive(Clone)]
pub(crate) struct Lookout(Arc<Inner>);

struct Inner {
    clock: Clock,
    digests: Digests,
    pods: Option<Pods>,
    /// Turns of each user's processes.
    turns: Mutex<BTreeMap<User, Weak<Semaphore>>>,
}

impl Lookout {
    pub(crate) fn new(clock: Clock, pods: Option<Pods>) -> Self {
        Self(Arc::new(Inner { clock, digests: Digests::default(), pods, turns: Mutex::default() }))
    }

    /// The process with the share of its pod, where it is in one. It is looked at once: a process goes into no other pod.
    pub(crate) fn place(&self, mut peer: Peer) -> Peer {
        let cgroups = self.0.pods.as_ref().zip(peer.pid).map(|(pods, pid)| (pods, proc::read(pid, "cgroup")));
        if let Some((pods, Ok(cgroups))) = cgroups
            && !pidfd::has_ended(&peer.process)
            && let Ok(pod) = pods.of(&cgroups)
        {
            peer.user = User::Pod(pod);
        }
        peer
    }

    /// What must be looked at of everybody: on a node of Kubernetes, whether it is in a pod. Users and groups there are whatever a pod
    /// says that they are.
    pub(crate) fn needs(&self) -> Needs {
        Needs { pod: self.0.pods.is_some(), ..Needs::default() }
    }

    /// What a process looks like now; what cannot be known in time is not known.
    pub(crate) async fn look(&self, peer: &Arc<Peer>, needs: Needs) -> Seen {
        if needs.pod && self.0.pods.is_none() {
            let rest = self.look_now(peer, Needs { pod: false, ..needs }).await;
            return Seen { pod: Fact::Absent(NO_PODS.to_owned()), ..rest };
        }
        self.look_now(peer, needs).await
    }

    async fn look_now(&self, peer: &Arc<Peer>, needs: Needs) -> Seen {
        if needs.is_none() {
            return Seen::default();
        }
        // A file system can be as slow as whoever made it likes: nobody waits for another user's.
        let turns = self.turns(&peer.user);
        let looking = async {
            let turn = turns.acquire_owned().await;
            let (lookout, peer) = (self.clone(), peer.clone());
            let read = move || {
                let _turn = turn;
                peer.read(needs, &lookout.0.digests, &lookout.0.clock, lookout.0.pods.as_ref())
            };
            tokio::task::spawn_blocking(read).await
        };
        let (seen, uid) = match tokio::time::timeout(PATIENCE, looking).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => return nothing(needs, "the agent could not look at it"),
            Err(_) => return nothing(needs, "it could not be looked at in time"),
        };
        match (uid, &self.0.pods) {
            (Some(uid), Some(pods)) => in_its_pod(peer, needs, seen, &uid, pods).await,
            _ => seen,
        }
    }

    fn turns(&self, user: &User) -> Arc<Semaphore> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = turns.get(user).and_then(Weak::upgrade) {
            return known;
        }
        turns.retain(|_, turns| turns.strong_count() > 0);
        let new = Arc::new(Semaphore::new(TURNS));
        turns.insert(user.clone(), Arc::downgrade(&new));
        new
    }
}

/// Asks whose its pod is. That can take a while, and holds nobody's turn meanwhile.
async fn in_its_pod(peer: &Peer, needs: Needs, mut seen: Seen, uid: &PodUid, pods: &Pods) -> Seen {
    seen.pod = pods.whose(uid).await;
    match pidfd::has_ended(&peer.process) {
        true => nothing(needs, ENDED),
        false => seen,
    }
}

/// Nothing is known of what was needed.
fn nothing(needs: Needs, why: &str) -> Seen {
    fn unless<T>(needed: bool, why: &str) -> Fact<T> {
        if needed { Fact::Unknown(why.to_owned()) } else { Fact::NotAsked }
    }
    Seen {
        groups: unless(needs.groups, why),
        unit: unless(needs.unit, why),
        path: unless(needs.path, why),
        digest: unless(needs.digest, why),
        pod: unless(needs.pod, why),
    }
}

const ENDED: &str = "its process has ended";
const NO_PODS: &str = "this agent is not told who lists the pods of its node: `kubernetes` in its configuration";
/// How long a process is looked at.
const PATIENCE: Duration = Duration::from_secs(5);
/// Processes of one user that are looked at at a time.
const TURNS: usize = 4;

#[cfg(test)]
mod tests;
