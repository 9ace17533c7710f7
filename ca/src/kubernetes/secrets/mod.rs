//! Citadel's contract: every service account of a namespace that asks for it has a Secret with a certificate and its key.
//!
//! ```text
//! namespaces ─┐                        ┌─ Keep until half of its life
//! accounts ───┼─▶ World ──▶ reconcile ─┼─ Write ─▶ Pace ─▶ admission ─▶ key, certificate, on record, PUT
//! Secrets ────┘   (watches)  (pure)    └─ Remove    (pure)
//! ```
//!
//! # Invariants
//! - One replica at a time does it, under a lease; every call to the API has a deadline, and nothing is begun that could end
//!   after the lease.
//! - A Secret without our label, or of another CA, is never written and never removed; it is reported.
//! - A certificate is on record before its Secret is written, as anybody's; a private key is wiped once it is written.
//! - Whoever edits Secrets does not decide how much is issued.

mod acts;
mod keeper;
mod object;
mod pace;
mod reconcile;
mod world;

use std::time::Duration;

use alcazar_service::{Part, Shutdown, process};
use serde::Deserialize;

use self::keeper::Keeper;
use crate::{ca::Ca, duration, serial::random_bytes};

/// Secrets for service accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SecretsConfig {
    /// The life of their certificates. Default: the longest that the default profile gives, for applications that read their
    /// files once in a while.
    #[serde(deserialize_with = "duration::deserialize_option")]
    pub ttl: Option<Duration>,
}

/// Keeps the Secrets until the end. A cluster that cannot be reached, or a configuration that cannot be used yet, is tried again.
pub(crate) async fn run(ca: Ca, config: SecretsConfig, part: Part, shutdown: Shutdown) {
    let mut said = None;
    loop {
        let problem = match begin(&ca, &config).await {
            Ok(keeper) => return keeper.run(part, &shutdown).await,
            Err(problem) => problem,
        };
        if said.as_ref() != Some(&problem) {
            tracing::error!(reason = problem, "no Secrets are kept for service accounts; it is tried again");
        }
        part.degraded(format!("no Secrets are kept for service accounts: {problem}"));
        said = Some(problem);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(BEGIN_AGAIN) => {}
        }
    }
}

async fn begin(ca: &Ca, config: &SecretsConfig) -> Result<Keeper, String> {
    let client = super::client(&ca.config().kubernetes).await.map_err(|error| process::chain(&error))?;
    let holder = random_bytes::<8>().map_err(|error| error.to_string())?;
    let ttl = config.ttl.unwrap_or(ca.0.profiles.default().max_ttl());
    Ok(Keeper::new(ca.clone(), client, ttl, format!("{:016x}", u64::from_be_bytes(holder))))
}

const BEGIN_AGAIN: Duration = Duration::from_secs(10);
