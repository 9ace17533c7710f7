//! The control plane: mesh and policy files to compiled snapshots, pushed by delta ADS.
//!
//! ```text
//!   mesh.yaml ─┐                                                    ┌▶ Session ─▶ proxy
//!              ├─ Loader ─▶ World ─▶ Snapshot (encoded once) ─watch─┼▶ Session ─▶ proxy
//!   policies/ ─┘     ▲        │                                     └▶ Session ─▶ proxy
//!        Watch ──────┘        └─watch─▶ whoever starts the workloads        │
//!                                                      Status ◀─────────────┘
//! ```
//!
//! Invariants:
//! - A [`World`] comes from files that are right in every part. A bad edit is shown with its place, and what was in
//!   force stays.
//! - A proxy gets the workload and the policy of its own identity, which its certificate proves; no other's.
//! - A resource is encoded once, and sent to a client only when the client does not have it.
//! - A trust domain does not change while the mesh runs.
//! - An address that was chosen is on disk before anybody is told.

mod addresses;
mod config;
mod control;
mod delta;
mod mesh;
mod reload;
mod resource;
mod server;
mod session;
mod snapshot;
mod sources;
mod status;
mod watch;
mod world;

pub use addresses::{AddressBook, AddressBookError};
pub use config::Config;
pub use control::{Control, DRAIN, RunError};
pub use reload::LoadError;
pub use resource::{Kind, NotOurVersion, Version};
pub use sources::{ReadError, read, read_policies};
pub use status::{ProxyStatus, RefusedResource, Status, StreamId};
pub use world::{
    Addresses, Changed, Changes, Endpoint, Forward, Port, Protocol, Service, ServicePort, Workload, World,
};
