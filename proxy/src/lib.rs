//! The data plane: mutual TLS, decisions, and forwarding. One binary, inbound and outbound.
//!
//! ```text
//!                  agent ──SDS──▶ watch of Arc<Credentials> ─┐   (the caller's runtime)
//!          control plane ──ADS──▶ watch of Arc<Snapshot>  ───┤
//!                                                            ▼
//!   app ──HTTP, CONNECT, TCP──▶ outbound ──mTLS, HTTP/2──▶ inbound ──▶ decide ──▶ app
//!                               resolve, choose,           identity, policy,
//!                               secure naming              x-forwarded-client-cert
//!                               └──────── worker threads: one runtime, listeners and pools each ───────┘
//! ```
//!
//! Invariants:
//! - Nothing passes undecided: an inbound request or connection is decided by the snapshot of its moment, and before
//!   there is a snapshot nothing is accepted.
//! - What was decided is what is forwarded: the normalised path, the one authority, the headers without what was
//!   hop-by-hop.
//! - The mesh is closed: outbound leads to services of the mesh, over mutual TLS, to the identity that the endpoint
//!   must prove; never to anything in plaintext.
//! - No connection outlives the certificates that proved it; none is dropped for a change that still allows it.
//! - Bodies and tunnels are streamed with backpressure; nothing gathers one whole.
//! - Workers share immutable snapshots and nothing else.

mod ads;
mod authority;
mod balance;
mod body;
mod config;
mod dataplane;
mod decision;
mod h1;
mod h2;
mod head;
mod hop;
mod inbound;
mod io;
mod life;
mod listen;
mod mesh;
mod message;
mod method;
mod outbound;
mod plane;
mod pool;
mod proxy;
mod relay;
mod reply;
mod serve;
mod tasks;
mod worker;
mod xfcc;

pub use ads::{Refused, State as AdsState, Status};
pub use authority::{Authority, RefusedAuthority};
pub use config::{
    Config, ControlPlane, DEFAULT_DRAIN, Forward, ParseDurationError, ParseWorkloadNameError, WorkloadName,
    parse_duration,
};
pub use dataplane::{DataPlane, DataPlaneError};
pub use decision::OpenLogError;
pub use head::{RefusedHead, Scan, Scanner};
pub use listen::{Addresses, ListenError};
pub use mesh::{
    Directory, Endpoint, InvalidService, InvalidWorkload, Misdirected, Port, Protocol, Route, Service, ServicePort,
    Snapshot, Unknown, Workload,
};
pub use outbound::{AnswerError, OwnerError};
pub use plane::Sources;
pub use proxy::{BindError, Proxy, RunError};
