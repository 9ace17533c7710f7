//! Who is at the other end of a socket, and what it may see: asked once for each RPC, of whichever service.

mod brake;
mod follow;

use std::future::Future;
use std::sync::Arc;

use alcazar_identity::SocketName;
use alcazar_mtls::Clock;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Status};

pub(crate) use follow::Follow;

use crate::caller::{Caller, Needs};
use crate::connection::PeerInfo;
use crate::crls::Crls;
use crate::kubernetes::Pods;
use crate::peer::{Lookout, Peer, User};
use crate::registry::{NotAdmitted, Registry, Served};
use crate::seats::{GivenUp, Holder, Limits, Seat, Seats, StreamSeat};
use brake::Brake;

/// What all sockets of an agent need to know their callers.
#[derive(Clone)]
pub(crate) struct Doors {
    registry: watch::Receiver<Arc<Registry>>,
    crls: watch::Receiver<Arc<Crls>>,
    lookout: Lookout,
    brake: Arc<Brake>,
    seats: Seats,
}

impl Doors {
    pub(crate) fn new(
        registry: watch::Receiver<Arc<Registry>>,
        crls: watch::Receiver<Arc<Crls>>,
        clock: Clock,
        pods: Option<Pods>,
    ) -> Self {
        Self {
            registry,
            crls,
            lookout: Lookout::new(clock, pods),
            brake: Arc::default(),
            seats: Seats::new(Limits::of_this_process()),
        }
    }

    fn too_many(&self, user: &User, what: &str) -> Status {
        if let Some(not_logged_before) = self.brake.line(user, Instant::now()) {
            tracing::warn!(target: "alcazar::refused", %user, what, not_logged_before, "a user has as much open as one may have");
        }
        Status::resource_exhausted(format!("this user has too many {what} open to the agent"))
    }

    /// The callers of one socket: a workload's own, or the shared one.
    pub(crate) fn callers(&self, socket: Option<SocketName>) -> Callers {
        Callers { socket, doors: self.clone() }
    }
}

/// The callers of one Unix socket.
#[derive(Clone)]
pub(crate) struct Callers {
    /// The workload's own socket that this is; `None`: the shared one.
    socket: Option<SocketName>,
    doors: Doors,
}

impl Callers {
    /// The process of a connection, with the share that it has here.
    pub(crate) fn place(&self, peer: Peer) -> Peer {
        self.doors.lookout.place(peer)
    }

    /// A seat for a connection that somebody makes; nothing where there is no room.
    pub(crate) fn seat(&self, peer: &Peer) -> Option<(Seat, GivenUp)> {
        let holder = Holder { socket: self.socket.clone(), user: peer.user().clone() };
        let taken = self.doors.seats.take(holder);
        if taken.is_none() {
            self.doors.too_many(peer.user(), "connections");
        }
        taken
    }

    /// Whether the log may have a line that a user causes: with how many it does not have since the last one.
    pub(crate) fn line(&self, user: &User) -> Option<u64> {
        self.doors.brake.line(user, Instant::now())
    }

    /// Who calls, and what it may see, live.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` where no registration matches, `RESOURCE_EXHAUSTED` where its user has all streams that one may have.
    pub(crate) fn follow<T>(
        &self,
        request: &Request<T>,
    ) -> impl Future<Output = Result<(Caller, Follow), Status>> + Send + use<T> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let callers = self.clone();
        async move {
            // A connection that is not one of ours: nothing is known of it.
            let PeerInfo { peer, seat } = info.ok_or_else(|| Status::permission_denied("the caller is not known"))?;
            let seat = seat.stream().ok_or_else(|| callers.doors.too_many(peer.user(), "streams"))?;
            let (registry, crls) = (callers.doors.registry.clone(), callers.doors.crls.clone());
            let asking = Asking { peer, callers, _seat: seat };
            match Follow::start(asking, registry, crls).await {
                Ok(follow) => Ok((follow.caller().clone(), follow)),
                Err(refused) => Err(denied(refused.caller(), &refused)),
            }
        }
    }
}

#[cfg(test)]
impl Callers {
    /// As if this very process had connected.
    pub(crate) async fn follow_this_process(self) -> Follow {
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let peer = Arc::new(Peer::of(&ours).unwrap());
        let (seat, _) = self.seat(&peer).unwrap();
        let seat = Arc::new(seat).stream().unwrap();
        let (registry, crls) = (self.doors.registry.clone(), self.doors.crls.clone());
        Follow::start(Asking { peer, callers: self, _seat: seat }, registry, crls).await.unwrap()
    }
}

/// One caller, who is looked at anew whenever it matters.
pub(crate) struct Asking {
    peer: Arc<Peer>,
    callers: Callers,
    _seat: StreamSeat,
}

impl Asking {
    /// The registrations that the caller is the workload of now.
    async fn admitted(&self, registry: &Registry) -> Result<(Caller, Vec<Arc<Served>>), NotAdmitted> {
        let needs = self.needs(registry, &self.seen(Needs::default()).await);
        let caller = self.seen(needs).await;
        let refused = match registry.admit(&caller) {
            Ok(served) => return Ok((caller, served)),
            Err(refused) => refused,
        };
        let doors = &self.callers.doors;
        let Some(silent) = doors.brake.line(self.peer.user(), Instant::now()) else { return Err(refused.untold()) };
        // For the log: all that the closest one asks for, although something else was missing already.
        let more = needs.or(refused.needs());
        let refused = match more == needs {
            true => refused,
            false => match registry.admit(&self.seen(more).await) {
                // It may have changed in between; by its own word it was nobody a moment ago.
                Ok(_) => refused,
                Err(refused) => refused,
            },
        };
        Err(refused.after(silent))
    }

    /// What must be looked at of a caller to know whose workload it is.
    fn needs(&self, registry: &Registry, caller: &Caller) -> Needs {
        registry.needs(caller).or(self.callers.doors.lookout.needs())
    }

    async fn seen(&self, needs: Needs) -> Caller {
        Caller {
            socket: self.callers.socket.clone(),
            uid: self.peer.uid(),
            gid: self.peer.gid(),
            pid: self.peer.pid(),
            seen: self.callers.doors.lookout.look(&self.peer, needs).await,
        }
    }
}

/// Nobody's workload, or nobody's any more.
pub(crate) fn denied(caller: &Caller, refused: &NotAdmitted) -> Status {
    if let Some(not_logged_before) = refused.is_told() {
        let closest = refused.closest().unwrap_or("none");
        tracing::warn!(target: "alcazar::refused", %caller, closest, not_logged_before, "no registration matches a caller");
    }
    // The caller learns nothing of other workloads; the operator's log has it.
    Status::permission_denied("no registration matches the caller; the agent's log says what was seen")
}
