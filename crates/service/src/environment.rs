//! What other programs tell us by the environment, where a convention says so: `PORT`, `http_proxy`.
//!
//! Our own configuration comes from files and flags.

/// The value of a variable; `None` when it is not set, empty, or not text.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads conventional variables")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
