use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

/// The right to have the machine, as long as it is held.
#[must_use]
pub struct Turn(#[allow(dead_code, reason = "held, never read")] MutexGuard<'static, ()>);

/// Waits until no other scenario of this program has the machine: one that promises a time, or that nothing fails under load,
/// would else be measured by its neighbour.
pub fn turn() -> Turn {
    // A scenario that failed had its turn.
    Turn(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}
