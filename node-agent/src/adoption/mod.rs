//! What this node and its clients enforce, told to the CA: a rotation waits for it.
//!
//! ```text
//!   SDS streams ──what each client has acknowledged──▶ Clients ─┐
//!   Workload API ──what each client has taken a while ago──▶ ───┤
//!   node identity, registry (what the agent holds) ─────────────┼─▶ Report ──▶ CA, when what it counts changes, and every minute
//!   reissue (heard by the node and by the renewal) ─────────────┘
//! ```

mod clients;
mod pace;
mod report;
mod timed;

pub(crate) use self::{
    clients::{Client, ClientStream, Clients, Named, Through},
    report::Reporter,
    timed::TimedStream,
};

use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_identity::{Fingerprint, X509Svid};

/// Leaves of other issuers than these are to be replaced before their time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reissue {
    /// Which time this is; zero: nothing is to be replaced.
    pub(crate) round: u64,
    issuers: Vec<Fingerprint>,
    /// Over how long the requests are to be spread.
    pub(crate) spread: Duration,
}

impl Reissue {
    /// Reads what the CA sent. What is no fingerprint names no issuer.
    pub(crate) fn read(wire: &v1::Reissue) -> Self {
        let hex = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let issuers = wire.issuers.iter().filter_map(|bytes| hex(bytes).parse().ok()).collect();
        let spread = Duration::from_millis(wire.spread_milliseconds.into()).min(LONGEST_SPREAD);
        Self { round: wire.round, issuers, spread }
    }

    /// Whether a certificate is to be replaced.
    pub(crate) fn concerns(&self, svid: &X509Svid) -> bool {
        let kept = issuer(svid).is_some_and(|issuer| self.issuers.contains(&issuer));
        self.round > 0 && !self.issuers.is_empty() && !kept
    }
}

/// The fingerprint of the certificate above a leaf.
pub(crate) fn issuer(svid: &X509Svid) -> Option<Fingerprint> {
    svid.chain().get(1).map(|issuer| Fingerprint::of(issuer))
}

/// Whatever the CA says, nobody waits longer.
const LONGEST_SPREAD: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
