//! The shell of a process: shutdown, readiness, metrics, telemetry, configuration, files and the clock.
//!
//! ```text
//!   main.rs ─▶ process::run─┬─ telemetry::init
//!                         ├─ config::load        (file, line, caret, suggestion)
//!                         ├─ Shutdown::on_signals ─▶ component.run(shutdown, readiness)
//!                         └─ Admin::serve         (/healthz, /readyz, /metrics, pages of the component's own)
//! ```
//!
//! Invariants:
//! - Every task is spawned on a [`Shutdown`], so that every task ends, and one that panics ends the process.
//! - [`clock::now`] is the one place that reads the time of day; all else takes it as an argument.
//! - The environment is read in [`environment`], [`systemd`] and [`telemetry`] alone.

pub mod admin;
pub mod audit;
pub mod clock;
pub mod config;
pub mod duration;
pub mod environment;
pub mod files;
mod lane;
pub mod local;
pub mod metrics;
pub mod process;
mod readiness;
mod shutdown;
pub mod systemd;
pub mod telemetry;

pub use admin::Admin;
pub use lane::Lane;
pub use metrics::Metrics;
pub use readiness::{Health, Part, Readiness, ReadyGuard};
pub use shutdown::{Shutdown, Unfinished};
