//! Trust between trust domains: our bundle for others, theirs for us.
//!
//! ```text
//!  others ──GET https──▶ endpoint ──▶ our bundle document (sequence, refresh hint)
//!  their endpoints ◀──poll── client ──▶ foreign: newer? theirs? ──▶ store ca/federation/<trust domain> ──▶ watch
//!  operator: bundle set, delete ─────────────┘                                                             │
//!  nodes: WatchTrustBundles, IssuedSvid ◀── our bundle and theirs, side by side ◀──────────────────────────┘
//! ```
//!
//! # Invariants
//! - A foreign bundle is kept under the name that the configuration, or the operator, gave it. It is never joined with another, and
//!   never ours.
//! - An older version never replaces a newer one; an endpoint that is away takes nothing from what is held, also over a restart.
//! - Our own bundle changes by its owner alone: rotation, the keys of JWT-SVIDs, and the operator. A root that is in use is
//!   removed by rotation, or by force.

mod client;
mod config;
mod endpoint;
mod foreign;
mod own;
mod schedule;

pub use self::{
    client::FederationError,
    config::{BundleEndpointConfig, EndpointProfile, FederationConfig, FederationConfigError, RelationProfile},
    endpoint::EndpointError,
    foreign::{ForeignBundle, ForeignError, Source},
    own::RootChangeError,
};
pub(crate) use self::{
    client::{Federation, read_any},
    config::{Relation, default_refresh_hint, relations},
    endpoint::{Endpoint, web as web_acceptor},
    own::unfit,
};
