use std::time::Duration;

use tokio::time::Instant;

/// How often the CA may be asked for tokens of one identity: each is an entry in the CA's ledger for ever, and takes a part of what
/// the CA has for this node. [`BURST`] at once, and one more each [`PERIOD`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// When all of it is there again.
    whole: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { whole: now }
    }

    /// Whether the CA may be asked once more; if so, that counts.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let whole = self.whole.max(now) + PERIOD;
        let has = whole.duration_since(now) <= PERIOD * BURST;
        if has {
            self.whole = whole;
        }
        has
    }
}

pub(super) const BURST: u32 = 64;
pub(super) const PERIOD: Duration = Duration::from_secs(1);
