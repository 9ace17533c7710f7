//! Which refusals are worth a line of the log: so many a minute of each caller, and now and then how many were not.

use std::time::Duration;

use super::bucket::{Buckets, Rate};

/// The lines of refusals. Moments are counted from any one beginning.
pub(super) struct Lines {
    buckets: Option<Buckets>,
    /// Those without a line since that was last told.
    unsaid: u64,
    told_at: Duration,
}

/// What is to be said of one refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) is_worth_it: bool,
    /// How many had no line, where that is due to be told.
    pub(crate) unsaid: Option<u64>,
}

impl Lines {
    pub(super) fn new() -> Self {
        let buckets = Rate::per_minute(A_MINUTE, AT_ONCE).map(Buckets::new);
        Self { buckets, unsaid: 0, told_at: Duration::ZERO }
    }

    /// A request of this caller was refused.
    pub(super) fn refused(&mut self, who: &str, now: Duration) -> Line {
        let is_worth_it = self.buckets.as_mut().is_none_or(|buckets| buckets.take(who, 1, now).is_ok());
        self.unsaid += u64::from(!is_worth_it);
        let due = self.unsaid > 0 && now.saturating_sub(self.told_at) >= TOLD_EVERY;
        let unsaid = due.then(|| {
            self.told_at = now;
            std::mem::take(&mut self.unsaid)
        });
        Line { is_worth_it, unsaid }
    }
}

const A_MINUTE: u32 = 30;
const AT_ONCE: u32 = 30;
const TOLD_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_so_many_lines_and_the_rest_is_counted() {
        let (mut lines, at) = (Lines::new(), Duration::from_secs);
        let said = |lines: &mut Lines, who, refusals: u32, now| {
            let told: Vec<_> = (0..refusals).map(|_| lines.refused(who, at(now))).collect();
            let unsaid: Vec<_> = told.iter().filter_map(|line| line.unsaid).collect();
            (told.iter().filter(|line| line.is_worth_it).count(), unsaid)
        };
        assert_eq!(said(&mut lines, "a", 1000, 0), (30, vec![]));
        // Another one has lines of its own.
        assert_eq!(said(&mut lines, "b", 1, 0), (1, vec![]));
        assert_eq!(said(&mut lines, "a", 10, 20), (10, vec![]));
        // Every minute it is said how many there were, by whatever refusal comes then.
        assert_eq!(said(&mut lines, "b", 1, 60), (1, vec![970]));
        assert_eq!(said(&mut lines, "a", 100, 61), (20, vec![]));
        assert_eq!(said(&mut lines, "a", 1, 200), (1, vec![80]));
        assert_eq!(said(&mut lines, "a", 1, 300), (1, vec![]));
    }
}
