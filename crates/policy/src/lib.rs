//! Istio RBAC: documents to a compiled policy to an explained decision.
//!
//! ```text
//! YAML ──> Documents ──> Policy ──────────> WorkloadPolicy ──────────> Compiled ──> Decision ──> Explanation
//!          (as written)  (validated,        (bound to one workload:    (indexed)    (Copy)       (words, or a
//!                         whole mesh)        crosses the wire)                                   DecisionRecord)
//! ```
//!
//! The control plane goes as far as [`WorkloadPolicy`]; a proxy takes it from there. A command line or a test goes
//! the whole way with the same code, so an explanation is never a guess.
//!
//! # Invariants
//! - Pure: nothing here reads a clock, a file, a socket or a global.
//! - Deny by construction: a [`Decision`] allows only by a [`Permit`], which only [`Compiled::decide`] makes.
//! - What is not understood never widens: it is refused with a caret ([`Policy::from_files`]), and if it reaches
//!   [`Compiled::new`] all the same, its role never matches.
//! - "Anything" is always spelled ([`Matcher::Present`], no clause): an empty list of values matches nothing.
//! - A raw path or host cannot reach a rule: a [`Request`] holds a [`NormalizedPath`] and a [`Host`].
//! - Deciding allocates nothing; words are made when somebody asks.

mod activation;
mod bindings;
mod compiled;
mod decision;
mod documents;
mod eval;
mod explain;
mod hash;
mod host;
mod index;
mod log;
mod miss;
mod model;
mod path;
mod patterns;
mod policy;
mod record;
mod request;
mod roles;
mod values;

pub use compiled::Compiled;
pub use decision::{Because, Decision, Denial, Grant, GrantNames, Permit, Reason, Shadow};
pub use explain::Explanation;
pub use host::{Host, RefusedHost};
pub use ipnet::IpNet;
pub use log::LogContext;
pub use model::{Activation, Attribute, Binding, Clause, Matcher, Role, Rule, Subject, WorkloadPolicy};
pub use path::{EncodedSlash, NormalizedPath, RefusedPath};
pub use policy::{Policy, Settings, Workload};
pub use record::{
    DECISION_SCHEMA, DecisionRecord, DestinationRecord, FailedRecord, GrantRecord, MissRecord, ProtocolRecord,
    REDACTED, ReasonRecord, RequestRecord, Schema, ShadowRecord, SourceRecord, Verdict,
};
pub use request::{Headers, Http, NoHeaders, Protocol, Request};
