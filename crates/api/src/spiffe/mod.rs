//! The documents and tokens of SPIFFE, which are JSON and not protobuf.
//!
//! ```text
//!   bundle document (JWK set) ──read_bundle──▶ TrustBundle ──write_bundle──▶ bundle document
//!   JWT-SVID ──validate_jwt_svid(audience, bundles, now)──▶ JwtSvid | JwtSvidError
//! ```

mod document;
mod jwt_svid;

pub use document::{BundleDocumentError, Ignored, ReadBundle, read_bundle, write_bundle, write_jwt_bundle};
pub use jwt_svid::{JwtSvid, JwtSvidError, LEEWAY, validate_jwt_svid};
