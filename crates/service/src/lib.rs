//! The shell of a process: shutdown, readiness, telemetry, configuration and the clock.
