use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

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

/// Asks until the answer is good, and returns it.
///
/// # Errors
/// When the deadline passes; the error says what was waited for, and what was answered last.
pub async fn until_ok<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => ensure!(start.elapsed() < deadline, "not within {deadline:?}: {what}: {error:?}"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Looks until it is so.
///
/// # Errors
/// When the deadline passes; the error says what was waited for.
pub async fn eventually(what: &str, deadline: Duration, mut is_so: impl AsyncFnMut() -> bool) -> Result<()> {
    until_ok(what, deadline, async || if is_so().await { Ok(()) } else { Err(()) }).await
}
