//! How the ledger is: for readiness, for metrics, and for whoever starts the process anew.

use std::{path::Path, sync::Arc, time::Duration};

use alcazar_ledger::Health;
use alcazar_service::{Metrics, Part, Shutdown, process};
use alcazar_store::SledStore;

use crate::{ca::Ca, reserve::room, run::RunError};

impl Ca {
    /// Tells how the ledger is until the end. Where it, or the store on this disk, stopped, only a start helps: says why, once
    /// everything else has been told to end.
    pub(crate) async fn watch_disk(self, part: Part, shutdown: Shutdown) -> Result<(), RunError> {
        let (ledger, shared) = (&self.0.ledger, self.0.config.store.is_shared());
        let mut fork = ledger.fork.subscribe();
        let mut store_stopped = self.0.store.stopped();
        let mut said = None;
        loop {
            let health = ledger.health();
            let forked = fork.borrow_and_update().clone();
            match (&health, forked) {
                (Health::Running, None) => match room(ledger.log.dir()) {
                    Some(room) if room < if shared { FULL } else { SledStore::ROOM } => {
                        part.not_ready(low(ledger.log.dir(), room))
                    }
                    Some(room) if room < LOW => part.degraded(low(ledger.log.dir(), room)),
                    _ => part.ready(),
                },
                (Health::Running, Some(reason)) => part.not_ready(reason),
                (Health::Refused(reason), _) => {
                    if said.as_ref() != Some(reason) {
                        tracing::error!(
                            reason,
                            "nothing can be put on record, so nothing is issued; it is tried again by itself"
                        );
                        said = Some(reason.clone());
                    }
                    part.not_ready(format!("nothing can be put on record, so nothing is issued: {reason}"));
                }
                (Health::Stopped(reason), _) => {
                    tracing::error!(reason, "the ledger stopped; this process ends, and a start looks at the disk");
                    part.not_ready(format!("the ledger stopped: {reason}"));
                    shutdown.trigger("the ledger stopped");
                    return Err(RunError::Ledger { reason: reason.clone() });
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                error = &mut store_stopped => {
                    let reason = process::chain(&error);
                    tracing::error!(reason, "the store stopped; this process ends, and a start looks at the disk");
                    part.not_ready(format!("the store stopped: {reason}"));
                    shutdown.trigger("the store stopped");
                    return Err(RunError::Store(error));
                }
                _ = ledger.log.health_other_than(&health) => {}
                Ok(()) = fork.changed() => {}
                () = tokio::time::sleep(LOOK) => self.keep_reserve().await,
            }
        }
    }
}

/// What is to be said where little room is left.
fn low(dir: &Path, room: u64) -> String {
    let (mib, dir) = (room >> 20, dir.display());
    format!("{mib} MiB are left on the disk of {dir}; when there is no room, nothing is issued: free some space")
}

/// 1.5 million certificates, at 700 bytes each.
const LOW: u64 = 1 << 30;
/// Nothing more is put on record.
const FULL: u64 = 1 << 20;
const LOOK: Duration = Duration::from_secs(5);

/// Counts what there is, and tells whether more can be.
pub(super) fn measure(metrics: &Metrics, log: &Arc<alcazar_ledger::Ledger>) {
    let entries = metrics.gauge("alcazar_ca_ledger_entries", "Entries in this replica's ledger");
    let refusing = metrics.gauge("alcazar_ca_ledger_refusing", "1 while nothing can be put on record");
    let bytes = metrics.gauge("alcazar_ca_ledger_bytes", "Bytes in the files of this replica's ledger");
    let free = metrics.gauge("alcazar_ca_ledger_free_bytes", "Bytes that are left on the disk of the ledger");
    let stopped = metrics.gauge("alcazar_ca_ledger_stopped", "1 when the ledger stopped until the next start");
    let weak = Arc::downgrade(log);
    metrics.on_scrape(move || {
        if let Some(log) = weak.upgrade() {
            entries.set(i64::try_from(log.head().size).unwrap_or(i64::MAX));
            bytes.set(i64::try_from(log.bytes()).unwrap_or(i64::MAX));
            if let Some(room) = room(log.dir()) {
                free.set(i64::try_from(room).unwrap_or(i64::MAX));
            }
            let health = log.health();
            refusing.set((health != Health::Running).into());
            stopped.set(matches!(health, Health::Stopped(_)).into());
        }
    });
}
