//! How long a connection lives: never longer than what proved it.

use std::time::{Duration, SystemTime};

use alcazar_mtls::LiveCredentials;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// When a connection is to take no more requests, and when it ends whatever is going on.
pub(crate) struct Life {
    shutdown: CancellationToken,
    /// Our own, for connections that are to move on when they change.
    credentials: Option<LiveCredentials>,
    drain_at: Option<Instant>,
    end_at: Option<Instant>,
}

impl Life {
    /// As long as somebody needs it.
    pub(crate) fn unbounded() -> Self {
        Self::until(CancellationToken::new())
    }

    /// Until the shutdown.
    pub(crate) fn until(shutdown: CancellationToken) -> Self {
        Self { shutdown, credentials: None, drain_at: None, end_at: None }
    }

    /// Drained when our credentials change from now on.
    pub(crate) fn on(mut self, mut credentials: LiveCredentials) -> Self {
        credentials.mark_unchanged();
        self.credentials = Some(credentials);
        self
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

async fn rotated(credentials: &mut Option<LiveCredentials>) {
    match credentials {
        // Without a sender there will be no other credentials.
        Some(credentials) => match credentials.changed().await {
            Ok(()) => {}
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
