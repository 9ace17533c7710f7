//! The audit file: which lines of the log go there, and how it fares.

use std::time::Duration;

use alcazar_service::{Metrics, Part, Shutdown, audit::Audit};

/// The targets of what was decided: issued, refused, revoked, rotated, done by the operator; and of the spans of requests.
pub const AUDIT_TARGETS: &[&str] = &[
    "alcazar::issued",
    "alcazar::refused",
    "alcazar::revoked",
    "alcazar::rotation",
    "alcazar::audit",
    "alcazar::request",
];

/// Tells how the file fares, until the end: in readiness, in metrics, and in the log when that changes.
pub async fn watch_audit(audit: Audit, part: Part, metrics: Metrics, shutdown: Shutdown) {
    let written = metrics.counter("alcazar_ca_audit_lines", "Lines that were written to the audit file");
    let lost = metrics.counter(
        "alcazar_ca_audit_lost",
        "Lines for which there was no room, as the audit file could not be written for long",
    );
    let mut said = None;
    loop {
        written.inc_by(audit.written().saturating_sub(written.value()));
        let missing = audit.lost().saturating_sub(lost.value());
        lost.inc_by(missing);
        let trouble = audit.trouble();
        match &trouble {
            Some(trouble) => part.degraded(trouble.clone()),
            None => part.ready(),
        }
        if missing > 0 {
            tracing::error!(
                lines = missing,
                "lines are missing in the audit file; the log and the ledger have what was decided"
            );
        }
        match (&trouble, &said) {
            (Some(reason), None) => {
                tracing::error!(
                    reason,
                    "decisions cannot be written to the audit file; they wait, and it is tried again"
                );
            }
            (None, Some(_)) => tracing::info!("decisions are written to the audit file again"),
            _ => {}
        }
        said = trouble;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

const LOOK: Duration = Duration::from_secs(1);
