use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::peer::User;

/// Holds back lines of the log that a local user can cause at will.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    by_user: Mutex<HashMap<User, Window>>,
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
    pub(crate) fn line(&self, user: &User, now: Instant) -> Option<u64> {
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if by_user.len() >= MOST_USERS && !by_user.contains_key(user) {
            by_user.retain(|_, window| now.duration_since(window.since) < WINDOW);
            if by_user.len() >= MOST_USERS {
                return None;
            }
        }
        let window = by_user.entry(user.clone()).or_insert(Window { since: now, lines: 0, silent: 0 });
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
/// Users that are remembered, until their windows end; about more of them at a time nothing is written.
const MOST_USERS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_has_ten_lines_a_minute_and_the_next_one_says_how_many_were_not_written() {
        let [seven, eight] = [7, 8].map(User::Outside);
        let pod = User::Pod("0f6d2c1e-4b3a-4c5d-8e9f-001122334455".parse().unwrap());
        let (brake, start) = (Brake::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            assert_eq!(brake.line(&seven, at(second)), Some(0));
        }
        for second in 10..60 {
            assert_eq!(brake.line(&seven, at(second)), None);
        }
        assert_eq!(brake.line(&eight, at(30)), Some(0), "another user's lines are its own");
        assert_eq!(brake.line(&pod, at(30)), Some(0), "and those of a pod");
        assert_eq!(brake.line(&seven, at(60)), Some(50));
        assert_eq!(brake.line(&seven, at(61)), Some(0));
        // Whoever has users at will fills it, and no more than that.
        let users = u32::try_from(2 * MOST_USERS).unwrap();
        let said = (100..users).filter(|uid| brake.line(&User::Outside(*uid), at(62)).is_some()).count();
        assert!(said <= MOST_USERS && brake.by_user.lock().unwrap().len() <= MOST_USERS, "{said}");
    }
}
