//! What the last verification saw, in a file: the next one goes on from there.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use alcazar_ca::ledger::{SignedHead, moment};
use alcazar_identity::{TrustBundle, rfc3339};
use alcazar_ledger::merkle::Hash;
use alcazar_service::files::write_atomic;
use serde::{Deserialize, Serialize};

use super::error::LedgerCommandError;

/// The last head that was verified, and the roots that it was verified with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct State {
    pub(super) trust_domain: String,
    pub(super) cluster: String,
    pub(super) ledger: String,
    pub(super) size: u64,
    root_hash: [u8; 32],
    /// By the CA's clock, in seconds since 1970.
    pub(super) time: u64,
    /// PEM.
    pub(super) roots: String,
}

impl State {
    pub(super) fn of(signed: &SignedHead, bundle: &TrustBundle) -> Self {
        let head = &signed.head;
        Self {
            trust_domain: head.trust_domain.to_string(),
            cluster: head.cluster.clone(),
            ledger: head.ledger.clone(),
            size: head.size,
            root_hash: *head.root.as_bytes(),
            time: head.at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            roots: bundle.to_pem(),
        }
    }

    /// The state in a file; `None` where there is none yet.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, LedgerCommandError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LedgerCommandError::Read { path: path.to_owned(), source }),
        };
        let state = serde_json::from_slice(&text);
        state.map(Some).map_err(|source| LedgerCommandError::State { path: path.to_owned(), source })
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), LedgerCommandError> {
        let failed = |source| LedgerCommandError::Write { path: path.to_owned(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        write_atomic(path, &text, 0o644).map_err(failed)
    }

    pub(super) fn root(&self) -> Hash {
        self.root_hash.into()
    }

    pub(super) fn seen(&self) -> String {
        moment(self.time).map_or_else(|| self.time.to_string(), rfc3339)
    }
}
