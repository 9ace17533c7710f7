//! Scenarios over real processes and real clients, and the kit they are written with.
//!
//! ```text
//!   tests/scenarios/<a sentence>.rs ─▶ Mesh (a real `alcazar up`) ─▶ curl, openssl, gRPC clients
//!                                    └▶ Process (any of the binaries) ─▶ its log, its exit status
//! ```
//!
//! Invariants:
//! - Nothing is mocked: the binaries are those that `cargo build --workspace --bins` has made, the clients are other
//!   people's.
//! - Nothing waits for a time to pass: [`until`] looks for something that can be observed, with a deadline.
//! - A real component that is missing fails a scenario in CI; elsewhere the scenario says what it needs and passes over.
//! - What a scenario starts ends with it, also when it fails.

mod agent;
mod authority;
mod binaries;
mod ca;
mod clients;
mod cluster;
mod components;
mod disk;
mod envoy;
mod etcd;
mod etcd_cluster;
mod groups;
mod grpc;
mod host;
mod image;
mod kubernetes;
mod load;
mod machine;
mod mesh;
mod node;
mod origin;
mod process;
mod spiffe_client;
mod tunnel;
mod turn;
mod wait;

pub use agent::AgentProcess;
pub use binaries::binary;
pub use ca::CaProcess;
pub use clients::{Answer, Curl, curl, openssl_s_client};
pub use cluster::{Cluster, Vault};
pub use components::{faketime, free_port, passed_over, tool, wrong_clock};
pub use disk::SmallDisk;
pub use envoy::{Envoy, agent_cluster, sds};
pub use etcd::Etcd;
pub use etcd_cluster::EtcdCluster;
pub use groups::ControlGroups;
pub use grpc::{Greeter, greet_by_connect, greet_by_prior_knowledge};
pub use host::{Host, Switch};
pub use kubernetes::Kubernetes;
pub use load::Load;
pub use machine::Machine;
pub use mesh::{Mesh, Workload};
pub use node::Node;
pub use origin::{EchoServer, HttpOrigin};
pub use process::Process;
pub use spiffe_client::SpiffeClient;
pub use tunnel::Tunnel;
pub use turn::{Turn, turn};
pub use wait::{DEADLINE, eventually, until, until_ok};
