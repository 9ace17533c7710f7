//! CA material that a person plugs in: a folder of PEM files, such as a mounted Secret named `cacerts`.
//!
//! ```text
//! ca-cert.pem     the CA's own certificate                                  tls.crt   the CA's own certificate, and those above it
//! ca-key.pem      its key; absent where the CA made the key (`ca request`)  tls.key
//! cert-chain.pem  from ca-cert.pem up, the root included or not
//! root-cert.pem   the roots to trust                                        ca.crt
//! ca-crl.pem      revocations by the issuers above; optional
//! ```
//!
//! `check` is a pure function of the files: it says which file is wrong, in what, and how to mend it, or what the set amounts to.

mod check;
mod error;
mod read;

pub(crate) use self::{
    check::weakness,
    read::{GENERATION, NAMES, Stamp},
};
pub use self::{
    check::{PluggedIn, check},
    error::CacertsError,
    read::CacertsFiles,
};

use std::path::PathBuf;

use alcazar_identity::Fingerprint;
use serde::{Deserialize, Deserializer};

/// The root or intermediate is brought by a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CacertsConfig {
    /// The folder with the files; it is watched, and a good change is taken over at once. Default: `cacerts` in the data folder, where
    /// `alcazar ca install` puts a set, if it is there.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// The fingerprint of a new root that signs at once, whoever has not heard of it: everybody who runs is cut off, and every node
    /// joins again.
    #[serde(default, deserialize_with = "fingerprint")]
    pub cut_over_to: Option<Fingerprint>,
}

fn fingerprint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Fingerprint>, D::Error> {
    crate::records::text::deserialize(deserializer).map(Some)
}
