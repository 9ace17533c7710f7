//! What the service manager is told, and what it gives: `sd_notify(3)`, `sd_watchdog_enabled(3)`, `sd_listen_fds(3)`.
//!
//! Where a process was not started by systemd, all of it does nothing.

use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::Shutdown;

/// The process does its work: units that come after it may start.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Shows that tasks are run, as often as the unit's `WatchdogSec=` wants it: a process that hangs is started anew.
pub(crate) async fn beat(shutdown: Shutdown) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let every = (limit / 3).max(Duration::from_millis(1));
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// The Unix socket that systemd listens on for this process, so that whoever connects while it starts anew waits and is
/// served. The first call has it.
///
/// # Errors
/// When what was given is no Unix socket that listens.
pub fn unix_listener() -> io::Result<Option<UnixListener>> {
    listenfd::ListenFd::from_env().take_unix_listener(0)
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd does not hear how this process is");
    }
}
