//! What CAs share by a real etcd and a real Kubernetes API.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod a_real_api_server_vouches_for_callers;
mod a_store_that_is_away_refuses_clearly;
mod nodes_renew_while_the_store_is_away;
mod pods_are_known_by_their_kubelet;
mod pods_are_registered_for_their_node;
mod replicas_rotate_a_root_that_one_of_them_made;
mod replicas_rotate_intermediates;
mod replicas_share_an_etcd;
mod replicas_share_the_secrets_of_a_cluster;
mod service_accounts_have_secrets;
mod store_conforms_on_etcd;
mod store_conforms_on_kubernetes;
mod workloads_and_pods_go_on_while_the_store_is_away;
