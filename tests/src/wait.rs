use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for a loaded machine; a scenario that needs it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often an observation is made.
const PERIOD: Duration = Duration::from_millis(20);

/// Looks until there is something to see, and returns it.
///
/// # Errors
/// When the deadline passes; the error says what was waited for.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if start.elapsed() > deadline {
            bail!("not within {deadline:?}: {what}");
        }
        std::thread::sleep(PERIOD);
    }
}
