use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Holds back lines of the log that a local user can cause at will.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    by_uid: Mutex<HashMap<u32, Window>>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    /// Held back since the last line.
    silent: u64,
}

impl Brake {
    /// Whether a line about this user may be written: with how many were not since the last one.
    pub(crate) fn line(&self, uid: u32, now: Instant) -> Option<u64> {
        let mut by_uid = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        if by_uid.len() >= MOST_USERS && !by_uid.contains_key(&uid) {
            by_uid.retain(|_, window| now.duration_since(window.since) < WINDOW);
        }
        let window = by_uid.entry(uid).or_insert(Window { since: now, lines: 0, silent: 0 });
        if now.duration_since(window.since) >= WINDOW {
            (window.since, window.lines) = (now, 0);
        }
        if window.lines == MOST_LINES {
            window.silent += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.silent))
    }
}

const WINDOW: Duration = Duration::from_secs(60);
/// Lines about one user within a window.
const MOST_LINES: u32 = 10;
/// Users that are remembered; more of them are forgotten as their windows end.
const MOST_USERS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_has_ten_lines_a_minute_and_the_next_one_says_how_many_were_not_written() {
        let (brake, start) = (Brake::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            assert_eq!(brake.line(7, at(second)), Some(0));
        }
        for second in 10..60 {
            assert_eq!(brake.line(7, at(second)), None);
        }
        assert_eq!(brake.line(8, at(30)), Some(0), "another user's lines are its own");
        assert_eq!(brake.line(7, at(60)), Some(50));
        assert_eq!(brake.line(7, at(61)), Some(0));
    }
}
