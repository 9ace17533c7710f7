use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// How patient a stream is with a client that rejects what it is sent, again and again.
#[derive(Debug, Default)]
pub(super) struct Patience {
    rejections: VecDeque<Instant>,
    pause: Option<Duration>,
    told: BTreeSet<String>,
}

impl Patience {
    /// A rejection came. Returns until when nothing more is said or heard, if it was one too many.
    pub(super) fn rejected(&mut self, now: Instant) -> Option<Instant> {
        while self.rejections.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
            self.rejections.pop_front();
        }
        // It has been good for as long as it was asked to wait: it begins anew.
        if self.rejections.is_empty() {
            self.pause = None;
        }
        self.rejections.push_back(now);
        if self.rejections.len() <= MOST {
            return None;
        }
        self.rejections.pop_front();
        let pause = self.pause.map_or(SHORTEST, |pause| (pause * 2).min(LONGEST));
        self.pause = Some(pause);
        // They are of before the pause, however long it is.
        for at in &mut self.rejections {
            *at = now + pause;
        }
        Some(now + pause)
    }

    /// A reason as the log is to have it, the first time that it is given.
    pub(super) fn first<'r>(&mut self, reason: &'r str) -> Option<&'r str> {
        let end = reason.char_indices().nth(MOST_TOLD).map_or(reason.len(), |(at, _)| at);
        let reason = reason.get(..end)?;
        let new = self.told.len() < MOST_REASONS && self.told.insert(reason.to_owned());
        new.then_some(reason)
    }
}

/// As many rejections within as long are answered at once.
const MOST: usize = 5;
const WINDOW: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Reasons of one stream that the log has, and characters of each.
const MOST_REASONS: usize = 16;
const MOST_TOLD: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_rejects_for_ever_waits_longer_each_time() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        for _ in 0..MOST {
            assert_eq!(patience.rejected(start), None);
        }
        let mut now = start;
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let until = patience.rejected(now).unwrap();
            assert_eq!(until - now, Duration::from_secs(expected));
            now = until;
        }
        // It is good for a while.
        now += Duration::from_secs(11);
        for _ in 0..MOST {
            assert_eq!(patience.rejected(now), None);
        }
        assert_eq!(patience.rejected(now), Some(now + SHORTEST));

        let (mut rare, mut now) = (Patience::default(), start);
        for _ in 0..100 {
            now += Duration::from_secs(3);
            assert_eq!(rare.rejected(now), None, "now and then is nothing");
        }
    }

    #[test]
    fn a_reason_is_told_once_and_not_at_any_length() {
        let mut patience = Patience::default();
        assert_eq!(patience.first("bad key"), Some("bad key"));
        assert_eq!(patience.first("bad key"), None);
        assert_eq!(patience.first(&"ä".repeat(10_000)).map(|told| told.chars().count()), Some(MOST_TOLD));
        for number in 0..100 {
            let told = patience.first(&number.to_string()).is_some();
            assert_eq!(told, number + 2 < MOST_REASONS);
        }
    }
}
