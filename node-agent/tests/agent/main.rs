//! The agent as workloads and the CA see it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

mod bad_clients_cost_nobody_else;
mod callers_are_known_by_their_process;
mod envoy_reads_its_certificate;
mod it_ends_whatever_its_clients_do;
mod it_is_killed_while_the_ca_is_away;
mod the_workload_api_is_served;
mod workloads_are_served_over_sds;
