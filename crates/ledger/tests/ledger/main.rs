//! The log on a disk that is honest, full, failing or damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

mod a_failing_disk_is_told;
mod a_full_disk_is_told;
mod a_log_answers_as_its_entries_say;
mod damage_is_told;
mod killed_at_any_point;
mod sealing_makes_nobody_wait;
