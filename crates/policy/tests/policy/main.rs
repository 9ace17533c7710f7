//! Policy documents: what they mean, and what is told of mistakes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod naive;
mod support;

mod decision_log;
mod decision_table;
mod engine_agrees_with_a_naive_reading;
mod istio_documents;
mod mistakes;
mod safer_than_istio;
