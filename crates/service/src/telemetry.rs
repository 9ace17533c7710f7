//! Logs: one subscriber, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::audit::AuditLayer;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people; with colour on a terminal.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Starts logging. `RUST_LOG` replaces `default_filter` where it is set.
///
/// A second call changes nothing: the first subscriber stays.
pub fn init(format: Format, default_filter: &str) {
    start(format, default_filter, None);
}

/// The same, and some of what is logged goes into an audit file too, whatever `RUST_LOG` says.
pub fn init_with_audit(format: Format, default_filter: &str, audit: AuditLayer) {
    start(format, default_filter, Some(audit));
}

fn start(format: Format, default_filter: &str, audit: Option<AuditLayer>) {
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colour_wanted(&std::io::stderr()))
        // Whoever read our standard error may have gone away; that must not end us.
        .log_internal_errors(false);
    let log = match format {
        Format::Plain => log.boxed(),
        Format::Json => log.json().boxed(),
    };
    let audit = audit.map(|audit| audit.clone().with_filter(audit));
    let outcome = tracing_subscriber::registry().with(log.with_filter(filter(default_filter))).with(audit).try_init();
    if outcome.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// Whether to colour what is written to a terminal: it is one, and `NO_COLOR` is not set (<https://no-color.org>).
#[allow(clippy::disallowed_methods, reason = "this module is where the environment is read")]
pub fn colour_wanted(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var("NO_COLOR").map_or(true, |value| value.is_empty())
}

/// What is logged: `RUST_LOG` where it is set, `default_filter` elsewhere.
pub fn filter(default_filter: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_filter))
}
