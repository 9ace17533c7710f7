//! The time of day, read in one place.

use std::sync::Arc;
use std::time::SystemTime;

/// Tells the time; what a loop holds, and what a test replaces.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The system's clock.
pub fn system() -> Clock {
    Arc::new(now)
}

/// The system's time of day.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the time of day")]
pub fn now() -> SystemTime {
    SystemTime::now()
}
