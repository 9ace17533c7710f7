//! Shared state: get, compare-and-swap, watch and lease, durable once acknowledged.
//!
//! What the CA must remember (join tokens, node lineages, registrations, what was issued) goes through
//! one object-safe trait, [`Store`]: on sled for one process, and for replicas in an etcd cluster (feature `etcd`) or in
//! the objects of a Kubernetes cluster (feature `kubernetes`). [`conformance`] says when a back end does it rightly. Below,
//! the one on sled. `Sentinel` stands before a store on servers: while that is away, nobody waits for it.
//!
//! ```text
//!  caller ── put_if ──┐
//!  caller ── put_if ──┤  queue   ┌── committer thread ───────────────────────────────────┐
//!  caller ── get ─────┼────────▶ │ take all that wait │ decide each │ apply as one batch │
//!  caller ── watch ───┘          │ flush │ fdatasync db │ fdatasync mark │ events, replies │
//!                                └──────────────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//! - **An acknowledged write is on the disk.** The reply goes out after `fdatasync`; writers that wait
//!   together share one (group commit). Nobody reads a value that is not yet durable.
//! - **What was lost or altered is noticed.** Every record is versioned and checksummed, the set of
//!   records has a running digest, and the highest acknowledged revision stands in a second file. A
//!   store that does not add up is a [`Damage`], never a panic and never an empty store.
//! - **Revisions only rise**, over the whole store, and each write has its own.
//! - **A watcher never misses an event silently**: one that cannot keep up is told to list again.
//! - **Time is an argument**: a lease expires by the `now` that its caller gives.

pub mod conformance;
mod damage;
mod error;
#[cfg(feature = "etcd")]
pub mod etcd;
mod key;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod lease;
pub mod record;
#[cfg(any(feature = "etcd", feature = "kubernetes"))]
mod sentinel;
mod sled_store;
mod store;
#[cfg(any(feature = "etcd", feature = "kubernetes"))]
mod tasks;
mod watch;

pub use damage::Damage;
pub use error::{RemoteError, StoreError, WriteError};
#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
pub use key::{Key, ParseKeyError, Prefix};
#[cfg(feature = "kubernetes")]
pub use kubernetes::KubernetesStore;
pub use lease::{Lease, LeaseError};
#[cfg(any(feature = "etcd", feature = "kubernetes"))]
pub use sentinel::Sentinel;
pub use sled_store::SledStore;
pub use store::{Answer, Entry, Expected, Listing, MAX_VALUE, Revision, Store};
pub use watch::{Event, Feed, Watch, WatchError};
