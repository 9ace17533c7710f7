//! How long a connection lives: never longer than what proved it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_identity::{Credentials, Revoked};
use alcazar_mtls::{LiveCredentials, PeerIdentity, until_revoked};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// When a connection is to take no more requests, and when it ends whatever is going on.
pub(crate) struct Life {
    shutdown: CancellationToken,
    /// Our own, for connections that are to move on when they change.
    credentials: Option<Ours>,
    /// Who is at the other end, for connections that are to end when it is revoked.
    peer: Option<(PeerIdentity, LiveCredentials)>,
    drain_at: Option<Instant>,
    end_at: Option<Instant>,
}

/// Our credentials, and what they were when the connection was made.
struct Ours {
    live: LiveCredentials,
    proved: Arc<Credentials>,
}

impl Life {
    /// As long as somebody needs it.
    pub(crate) fn unbounded() -> Self {
        Self::until(CancellationToken::new())
    }

    /// Until the shutdown.
    pub(crate) fn until(shutdown: CancellationToken) -> Self {
        Self { shutdown, credentials: None, peer: None, drain_at: None, end_at: None }
    }

    /// Drained when our certificate or the roots that we believe change from now on.
    pub(crate) fn on(mut self, mut live: LiveCredentials) -> Self {
        let proved = live.borrow_and_update().clone();
        self.credentials = Some(Ours { live, proved });
        self
    }

    /// Cut when the peer is revoked.
    pub(crate) fn while_believed(mut self, peer: PeerIdentity, credentials: LiveCredentials) -> Self {
        self.peer = Some((peer, credentials));
        self
    }

    /// Completes when the peer is revoked. To be asked for once.
    pub(crate) fn cut(&mut self) -> impl Future<Output = Revoked> + Send + 'static {
        let peer = self.peer.take();
        async move {
            let Some((peer, credentials)) = peer else { return std::future::pending().await };
            let revoked = until_revoked(peer.clone(), credentials).await;
            tracing::warn!(target: "alcazar::revoked", %peer, serial = peer.serial(), reason = %revoked, "a connection was cut");
            revoked
        }
    }

    /// Ended at `not_after`, and drained a little before.
    pub(crate) fn not_after(mut self, not_after: SystemTime, now: SystemTime) -> Self {
        let left = not_after.duration_since(now).unwrap_or_default();
        // Far deadlines overflow a clock; they do not matter either.
        let left = left.min(FAR);
        let start = Instant::now();
        self.drain_at = Some(start + left.saturating_sub(grace(left)));
        self.end_at = Some(start + left);
        self
    }

    /// Completes when no more requests are to be taken; says why.
    pub(crate) async fn drain(&mut self) -> Drain {
        let Self { shutdown, credentials, drain_at, .. } = self;
        tokio::select! {
            () = shutdown.cancelled() => Drain::Shutdown,
            () = rotated(credentials) => Drain::Rotated,
            () = at(*drain_at) => Drain::Expiring,
        }
    }

    /// Completes when the connection must end.
    pub(crate) async fn end(end_at: Option<Instant>) {
        at(end_at).await;
    }

    pub(crate) fn end_at(&self) -> Option<Instant> {
        self.end_at
    }
}

/// Why a connection takes no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    Shutdown,
    Rotated,
    Expiring,
}

/// How long before the end a connection is drained: a tenth of what is left, at most half a minute.
fn grace(left: Duration) -> Duration {
    (left / 10).min(Duration::from_secs(30))
}

async fn rotated(ours: &mut Option<Ours>) {
    let Some(Ours { live, proved }) = ours else { return std::future::pending().await };
    // Without a sender there will be no other credentials.
    while live.changed().await.is_ok() {
        // A revocation of somebody is no reason to move on.
        if !live.borrow_and_update().prove_the_same_as(proved) {
            return;
        }
    }
    std::future::pending().await
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
