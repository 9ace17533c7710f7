//! The ceremony: a root that is kept away from every CA signs a cluster's intermediate. No network, no running CA.
//!
//! ```text
//!  where the root is kept                          where the CA runs
//!  RootFolder::init                                request(&config)         key in the KeyStore, CSR in <data>/hierarchy
//!        │                       ◀── .csr ──
//!  RootFolder::read_request ─▶ Proposal, in words ─▶ a person says yes
//!  RootFolder::sign          ── cacerts set ──▶    install(&config, folder)
//!        │
//!  RootFolder::revoke        ── revocations.pb ─▶  `alcazar revocations import`, at each CA
//!        │
//!  transcript/0001.json, 0001.json.sig             each entry names the hash of the one before it
//! ```

mod error;
mod install;
mod request;
mod revoke;
mod root;
mod transcript;

pub(crate) use self::request::certificate_request;
pub use self::{
    error::CeremonyError,
    install::install,
    request::{IntermediateRequest, Requested, request},
    revoke::{REVOCATIONS, Revoked, TakingBack},
    root::{Proposal, RootFolder, RootKey, Signed},
    transcript::{Entry, verify as verify_transcript},
};
