use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// What keeps a client that rejects whatever it gets, and asks again, from turning the agent and its log in a circle.
///
/// [`FREE`] rejections in a row, each [`AT_ONCE`] after the one before, cost nothing. Each further one makes the next response wait: a
/// second first, then twice as long as before, up to [`LONGEST`]. Each reason is logged once, and no more than [`REASONS`] of them.
#[derive(Debug, Default)]
pub(super) struct Brake {
    in_a_row: u32,
    last: Option<Instant>,
    pause: Duration,
    logged: BTreeSet<String>,
}

impl Brake {
    /// The client has rejected a response. Returns whether that is to be logged.
    pub(super) fn refused(&mut self, reason: &str, now: Instant) -> bool {
        let at_once = self.last.is_some_and(|last| now.duration_since(last + self.pause) < AT_ONCE);
        self.in_a_row = if at_once { self.in_a_row.saturating_add(1) } else { 1 };
        self.pause = match self.in_a_row {
            ..=FREE => Duration::ZERO,
            _ => (self.pause * 2).clamp(SHORTEST, LONGEST),
        };
        self.last = Some(now);
        self.logged.len() < REASONS && self.logged.insert(reason.to_owned())
    }

    /// Until when the client has to wait, where it has to.
    pub(super) fn pause(&self, now: Instant) -> Option<Instant> {
        self.last.map(|last| last + self.pause).filter(|until| now < *until)
    }
}

const FREE: u32 = 5;
const AT_ONCE: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
const REASONS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_rejects_for_ever_gets_slower_and_slower_answers() {
        let (start, mut brake) = (Instant::now(), Brake::default());
        let mut now = start;
        // It rejects each answer as soon as it comes.
        let mut waits = Vec::new();
        for _ in 0..15 {
            brake.refused("no", now);
            let until = brake.pause(now).unwrap_or(now);
            waits.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]);
        // It has mended itself.
        now += Duration::from_secs(120);
        brake.refused("no", now);
        assert_eq!(brake.pause(now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rejection_now_and_then_costs_nothing_and_each_reason_is_logged_once() {
        let (start, mut brake) = (Instant::now(), Brake::default());
        let logged = |brake: &mut Brake, reason: &str, at: u64| brake.refused(reason, start + Duration::from_secs(at));
        let told: Vec<_> = (0..40).map(|n| logged(&mut brake, ["a", "b"][n % 2], n as u64 * 3)).collect();
        assert_eq!(
            (told.iter().filter(|told| **told).count(), brake.pause(start + Duration::from_secs(117))),
            (2, None)
        );
        let told = (0..100).filter(|n| logged(&mut brake, &format!("reason {n}"), 1000)).count();
        assert_eq!(told, REASONS - 2);
    }
}
