//! SPIFFE identities, SVIDs and trust bundles as values that are right once they exist.
//!
//! ```text
//!   "spiffe://td/ns/shop/sa/reviews" ──parse──▶ SpiffeId ─┐
//!   leaf DER, chain, key             ──parse──▶ X509Svid ─┼─▶ Credentials ─▶ every TLS endpoint
//!   roots, JWT keys                  ──parse──▶ TrustBundle(s) ┤
//!   signed statements                ──verify─▶ Revocations ───┘
//!   "uid:1000", "unit:web.service"   ──parse──▶ Selector: how a workload is known on its node
//! ```
//!
//! Invariants:
//! - A value of a type here has passed every rule of the SPIFFE ID and X509-SVID standards that can be
//!   checked without a clock: parsing is the only entrance.
//! - A private key is zeroized when dropped and never printed.
//! - Nothing here reads a clock, a file or a socket; `now` is an argument.

mod bundle;
mod credentials;
mod crl;
mod fingerprint;
mod jwt_authority;
mod key;
mod leaf;
mod pem;
mod revocations;
mod selector;
mod spiffe_id;
mod svid;
mod trust_domain;
mod validity;

pub use bundle::{BundleError, TrustBundle, TrustBundles};
pub use credentials::Credentials;
pub use crl::{Crl, CrlError, verify_crl};
pub use fingerprint::{Fingerprint, ParseFingerprintError};
pub use jwt_authority::{JwtAuthority, JwtAuthorityError};
pub use key::{KeyError, SvidKey};
pub use leaf::{ParseSvidError, SvidLeaf};
pub use pem::pem_block;
pub use revocations::{
    ListIssuer, Merged, ParseListIssuerError, ParseRevocationReasonError, Proven, Revocation, RevocationList,
    RevocationReason, Revocations, Revoked, RevokedBy, RevokedIdentity, RevokedSerial, Signatory, StatementError,
    is_of_cluster, stated_cluster, verify_statement,
};
pub use selector::{
    ExecutableDigest, ExecutablePath, ParseSelectorError, PodAccount, PodNamespace, SHARED_SOCKET, Selector,
    SocketName, UnitName,
};
pub use spiffe_id::{ParseSpiffeIdError, SpiffeId, SpiffeIdKind};
pub use svid::X509Svid;
pub use trust_domain::{ParseTrustDomainError, TrustDomain};
pub use validity::{Validity, rfc3339};

/// A DER certificate, as every crate here and rustls pass it around.
pub use rustls_pki_types::CertificateDer;
