//! The CA, from its parts to the real binary: one program, a module for each sentence.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod callers_support;
mod support;

mod a_failing_disk_ends_the_process;
mod cacerts_are_checked;
mod callers_by_rule_are_known;
mod decisions_are_in_a_file;
mod everything_issued_is_in_the_ledger;
mod fuzzers_begin_deep;
mod hierarchies_change;
mod issuance_is_right;
mod issuers_are_discovered;
mod it_can_be_observed;
mod it_starts_again;
mod jwt_svids_are_issued;
mod keys_are_kept;
mod killed_in_an_issuance;
mod limits_hold;
mod nodes_attest_and_renew;
mod nodes_come_back;
mod plugged_in_certificates_are_exchanged;
mod requests_are_refused;
mod requests_for_intermediates;
mod revocation;
mod stock_clients_of_istio_are_served;
mod strangers_read_what_is_published;
mod the_binary_starts_again;
mod the_clock_is_set;
mod tokens_are_read_strictly;
mod tokens_hold_keys;
mod tokens_of_the_cluster_are_known;
mod trust_domains_federate;
mod workloads_are_registered;
