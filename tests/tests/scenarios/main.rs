//! Whole meshes of real processes, one at a time: most of them are under load, and a few promise a time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod a_damaged_store_is_never_replaced;
mod a_full_disk_refuses_and_goes_on;
mod a_machine_joins_and_needs_nobody_again;
mod a_node_comes_back_by_itself;
mod a_policy_edit_takes_effect_within_a_second;
mod a_proxy_starts_before_what_it_needs;
mod a_revoked_identity_is_cut_off_everywhere;
mod a_wrong_clock_is_lived_with_or_said;
mod an_offline_root_is_exchanged_without_a_failed_request;
mod an_offline_root_signs_two_clusters;
mod an_offline_root_takes_back_an_intermediate;
mod bad_mesh_starts_nothing;
mod certificates_rotate_under_load_without_a_failed_request;
mod clients_of_others_follow_the_workload_api;
mod commands_are_supervised;
mod components_run_as_separate_processes;
mod explain_speaks_like_the_proxy;
mod hosts;
mod kill_nine_and_restart_keep_the_root;
mod machines_call_each_other_by_name;
mod own_services_join_the_mesh;
mod packages_are_installed_and_removed;
mod replicas_come_and_go_without_a_failed_request;
mod root_and_intermediate_rotate_under_load_without_a_failed_request;
mod second_instance_is_refused;
mod stock_envoy_goes_by_crls;
mod strangers_are_refused;
mod the_envoy_page_is_followed;
mod two_clusters_exchange_their_root_together;
mod two_envoys_rotate_under_load_without_a_failed_request;
mod two_federated_meshes_call_each_other;
mod units_run_where_systemd_boots;
mod up_runs_the_sample;
