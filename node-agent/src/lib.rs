//! The node agent: attests its node once, renews for ever, and serves identities to workloads, over SDS and the
//! SPIFFE Workload API.
//!
//! ```text
//!   tokens, certificates ┐
//!   saved identity ──────┤                    ┌──────────────── CA ────────────────┐
//!                        ▼                    ▼                 │                  │
//!                      Node ──identity──▶ Link ──registrations──┴▶ Renewal ◀─issue─┘
//!                 (attest, renew)     (follows the CA)         (schedule, batches)
//!                        └──────────bundles──────────────────────▶ │
//!                                                                  ▼
//!   Envoy, proxy, app ◀── SDS, Workload API ◀── sockets ◀── Registry: for each registration a watch of what is held
//! ```
//!
//! Decisions are plain functions: when to renew ([`schedule`]), how to prove the node ([`proof`]), who a caller is
//! ([`registry`]), what an SDS stream says next ([`sds`]), what is in a message of the
//! Workload API. The loops around them hold the clock and the sockets.
//!
//! Invariants:
//! - A private key is made here, is sent to nobody but the workload that owns it, and is on disk only where it is the
//!   node's own, mode 0600, or sealed, where that was asked for.
//! - A key is on disk before the CA is asked for its certificate, so that no lost reply and no crash breaks the
//!   lineage by which the CA knows this node.
//! - What the CA answers is verified before it is used: key, identity, chain and life.
//! - A failed renewal keeps the valid certificate; nothing expired is ever served.
//! - A caller is known by what the kernel says of it and by the socket it came by; whoever matches nothing gets
//!   nothing. A connection ends with the process that made it, so nobody inherits who somebody was.

mod adoption;
mod agent;
mod authority;
mod caller;
mod callers;
mod chance;
mod clocks;
mod config;
mod connection;
mod crls;
mod evidence;
mod files;
mod hardening;
mod issued;
mod issuers;
mod keys;
mod kubernetes;
mod link;
mod metrics;
mod narrowing;
mod node;
mod peer;
pub mod proof;
mod queue;
mod registered;
mod registration;
/// Who a caller is, and what is held for it.
pub mod registry;
mod renewal;
mod revocations;
mod saved;
pub mod schedule;
pub mod sds;
mod sealed;
mod seats;
mod services;
mod shared;
mod sockets;
mod status;
#[cfg(test)]
mod testing;
mod token;
mod workload_api;
mod workloads;

pub use agent::{Agent, OpenError, RunError};
pub use authority::CallError;
pub use caller::{Caller, Fact, Needs, Pod, Seen};
pub use config::{AttestConfig, Config, ConfigError, MachineConfig, SealConfig};
pub use crls::{Crls, CrlsConfig};
pub use files::{Account, After, FilesConfig, FilesConfigError, OwnerError, Pkcs12Config, Roots};
pub use hardening::harden;
pub use issued::{Issued, ReplyError, Trust};
pub use keys::MakeKeyError;
pub use kubernetes::{KubernetesConfig, KubernetesConfigError, ParsePodListError, PodList};
pub use narrowing::Narrowing;
pub use peer::{CgroupRoot, NoPod, ParseCgroupRootError, ParsePodUidError, PodUid, pod_of, unit_of};
pub use registration::{Registration, RegistrationError};
pub use saved::{LoadError, SavedError, SavedNode};
pub use sealed::SealKeyError;
pub use seats::use_all_descriptors;
pub use sockets::{BindError, SocketsDirError};
pub use status::{
    CertificateReport, CertificateStatus, ClientReport, NarrowingReport, NarrowingStatus, NodeReport, NodeStatus,
    OutboundReport, RegistrationReport, RegistrationStatus, Status, StatusReport,
};
pub use token::{JoinToken, ParseJoinTokenError, ReadTokenError};
