//! Wire types: `alcazar.ca.v1`, `alcazar.mesh.v1`, Istio's CSR API, Envoy's SDS and ADS, SPIFFE's Workload API, bundle
//! documents and JWT-SVIDs, and their conversions.
//!
//! ```text
//!   proto/*.proto ──build.rs──▶ ca::v1, mesh::v1, istio::v1::auth, spiffe::workload   (messages, clients, servers)
//!   envoy-types   ──re-export─▶ envoy                               (SDS, ADS, Secret)
//!   identity, policy  ◀──TryFrom──  messages  ◀──From──  identity, policy
//!   bundle documents, JWT-SVIDs ◀──spiffe──▶ identity
//!   agent's socket ──sds::connect──▶ watch of Arc<Credentials>
//!   signed lists   ──revocations::Keeper──▶ Arc<Revocations>       (checked against the bundles, never an older one)
//! ```
//!
//! Invariants:
//! - A message becomes a domain type by `TryFrom` alone; what does not convert is refused, never patched up.
//! - This is the only home of envoy-types, and of generated code.

pub mod attestation;
mod bundles;
pub mod envoy;
mod policy;
pub mod revocations;
pub mod sds;
pub mod spiffe;

/// `alcazar.ca`: what nodes ask of the certificate authority.
pub mod ca {
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated from the .proto files"
    )]
    #[allow(unreachable_pub, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("alcazar.ca.v1");
    }
}

/// `alcazar.mesh`: what the control plane pushes to a proxy.
pub mod mesh {
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated from the .proto files"
    )]
    #[allow(unreachable_pub, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("alcazar.mesh.v1");
    }

    /// The type URL of [`v1::Workload`].
    pub const WORKLOAD_URL: &str = "type.googleapis.com/alcazar.mesh.v1.Workload";
    /// The type URL of [`v1::Service`].
    pub const SERVICE_URL: &str = "type.googleapis.com/alcazar.mesh.v1.Service";
    /// The type URL of [`v1::Policy`].
    pub const POLICY_URL: &str = "type.googleapis.com/alcazar.mesh.v1.Policy";
}

/// Istio's CSR API.
pub mod istio {
    /// `istio.v1`.
    pub mod v1 {
        #[allow(
            missing_docs,
            clippy::all,
            clippy::allow_attributes_without_reason,
            reason = "generated from the .proto files"
        )]
        #[allow(unreachable_pub, reason = "generated")]
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}

/// The longest message that one of ours takes from another, in bytes, where lists of revocations or bundles may travel: every
/// client and server of these says so, and whoever writes lists bounds them far below ([`revocations::MAX_LIST`]).
pub const MAX_MESSAGE: usize = 32 * 1024 * 1024;
