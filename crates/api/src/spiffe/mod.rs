//! What SPIFFE has standardised: its documents and tokens, which are JSON, and the Workload API.
//!
//! ```text
//!   bundle document (JWK set) ──read_bundle──▶ TrustBundle ──write_bundle──▶ bundle document
//!   JWT-SVID ──validate_jwt_svid(audience, bundles, now)──▶ JwtSvid | JwtSvidError
//! ```

mod document;
mod jwt_svid;

pub use document::{BundleDocumentError, Ignored, ReadBundle, read_bundle, write_bundle, write_jwt_bundle};
pub use jwt_svid::{JwtSvid, JwtSvidError, LEEWAY, validate_jwt_svid};

/// The SPIFFE Workload API.
#[allow(missing_docs, clippy::all, clippy::allow_attributes_without_reason, reason = "generated from the .proto files")]
#[allow(unreachable_pub, reason = "generated")]
pub mod workload {
    // The standard's file has no package.
    tonic::include_proto!("_");
}
