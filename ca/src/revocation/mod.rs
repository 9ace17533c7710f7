//! What was taken back: on record, in force for issuance, and told to everybody as signed lists.
//!
//! ```text
//! operator ─revoke─▶ Entry ─▶ store   ca/revocations/{serial,identity}/…      one record for each
//!                                     ca/revocation-lists/own                 version and digest of this cluster's list
//!                                     ca/revocation-lists/signed/…, parts/…   lists of roots and of other clusters, as signed; or that one is dropped
//!                                     ca/revocation-lists/crls/…              CRLs of roots that are kept offline
//!                                     ca/revocation-lists/last/…              last CRLs of intermediates that are gone
//!                                     ca/revoked-certificates/…               serial numbers of revoked identities, for CRLs
//!                                     ca/crls/…                               the present CRL of each intermediate, for nodes
//!                               │ refresh: read, forget what has long been over, raise the version, sign, check
//!                               ▼
//!                            Published, in a watch ──▶ permits(id)            before every issuance
//!                                                  ──▶ WatchRevocations       to every node
//!                                                  ──▶ CRLs, WatchCrls        for whoever reads those
//! ```
//!
//! # Invariants
//! - A revocation is durable, in force here and on its way to the nodes when the operator is told that it was made. Where it
//!   is on record and the list cannot be told, issuance obeys the record, and the operator hears what is wrong.
//! - The version of the list rises with every change of its content, whichever replica makes it, and whenever a replica
//!   ends in between: the content's digest is beside the version.
//! - A revoked identity is issued nothing until it is reinstated. What it is issued then is not backdated to before that
//!   moment, so that its not-before alone tells it from the certificates that stay revoked.
//! - Nothing is forgotten because the clock is ahead for a moment: what is over has been so at each look for an hour.
//! - Intermediates are revoked by a root alone.

mod brought;
mod config;
pub(crate) mod crl;
mod current;
mod dropped;
mod entry;
mod error;
mod intermediates;
mod last;
mod lists;
mod numbers;
mod operator;
mod pages;
mod refresh;
mod serials;
mod sign;
mod told;
mod whole;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use alcazar_api::ca::v1;
use alcazar_identity::{Fingerprint, Revocation, RevocationList, Revocations, SpiffeId, rfc3339};
use thiserror::Error;
use tokio::sync::{Mutex, watch};

use self::refresh::Refreshing;
pub(crate) use self::{
    brought::crls_in,
    dropped::DropError,
    entry::{Entry, Named, SKEW},
    intermediates::with_intermediate,
    operator::Subject,
};
pub use self::{
    config::{CrlUrl, ParseCrlUrlError, RevocationConfig},
    error::RevokeError,
    intermediates::UnknownError,
    pages::routes as crl_routes,
    refresh::RefreshError,
};
use crate::{ca::Ca, patience::Patience};

/// The part of the CA that takes back.
pub(crate) struct Revoking {
    published: watch::Sender<Arc<Published>>,
    /// Held by whoever refreshes.
    refreshing: Mutex<Refreshing>,
    /// Entries, and certificates of revoked identities, whose time is over by the clock.
    over: Patience<String>,
    certificates_over: Patience<String>,
    /// Held by whoever changes the list of a root.
    roots: Mutex<()>,
    /// The CRLs as nodes are told them; `None` until they are known.
    crls: watch::Sender<Option<Arc<v1::Crls>>>,
    /// Why what is on record is not in force everywhere.
    trouble: watch::Sender<Option<String>>,
    /// Where the CRLs are served by themselves.
    pages: OnceLock<SocketAddr>,
}

/// What is revoked, as of one moment.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// By every list that is held: this cluster's, the roots', other clusters'.
    pub(crate) revocations: Arc<Revocations>,
    /// The same as it is told to nodes.
    pub(crate) signed: v1::SignedRevocations,
    /// This cluster's entries, as they are on record.
    pub(crate) entries: Arc<Vec<Entry>>,
    /// The list of these, whether or not it could be told.
    own: Option<Arc<RevocationList>>,
    pub(crate) version: u64,
    /// How long the list is when it is told.
    bytes: usize,
}

impl Revoking {
    pub(crate) fn new() -> Self {
        Self {
            published: watch::Sender::default(),
            refreshing: Mutex::default(),
            over: Patience::default(),
            certificates_over: Patience::default(),
            roots: Mutex::default(),
            crls: watch::Sender::default(),
            trouble: watch::Sender::default(),
            pages: OnceLock::new(),
        }
    }
}

/// Leave to issue: from when the certificate may be good, where the identity was revoked and reinstated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    pub(crate) earliest: Option<SystemTime>,
}

impl Permit {
    /// Whether a certificate that was issued then is of after the revocation.
    pub(crate) fn covers(&self, issued_at: SystemTime) -> bool {
        self.earliest.is_none_or(|earliest| issued_at >= earliest)
    }
}

/// An identity that gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the identity {id} is revoked since {} ({}); `alcazar unrevoke --identity {id}` reinstates it",
    rfc3339(revocation.since), revocation.reason
)]
pub struct Barred {
    id: SpiffeId,
    revocation: Revocation,
}

impl Ca {
    /// Whether an identity may be issued anything.
    pub(crate) fn permits(&self, id: &SpiffeId) -> Result<Permit, Barred> {
        let published = self.0.revoking.published.borrow().clone();
        permits(published.revocations.lists().chain(published.own.as_deref()), id)
    }

    /// Since when an intermediate of this trust domain is revoked, and why.
    pub(crate) fn revoked_intermediate(&self, intermediate: Fingerprint) -> Option<Revocation> {
        let published = self.0.revoking.published.borrow();
        published.revocations.of_intermediate(self.trust_domain(), intermediate).map(|revoked| revoked.revocation)
    }

    /// The intermediate that signs here, where that is revoked.
    pub(crate) fn revoked_issuer(&self) -> Option<(Fingerprint, Revocation)> {
        let signs = self.hierarchy().intermediate().info().fingerprint;
        self.revoked_intermediate(signs).map(|revocation| (signs, revocation))
    }

    /// What is revoked now.
    pub(crate) fn revocations(&self) -> Arc<Revocations> {
        self.0.revoking.published.borrow().revocations.clone()
    }

    /// What is revoked, to be followed.
    pub(crate) fn follow_revocations(&self) -> watch::Receiver<Arc<Published>> {
        self.0.revoking.published.subscribe()
    }
}

/// Whether these lists let an identity be issued anything: any of them can bar it.
fn permits<'a>(lists: impl Iterator<Item = &'a RevocationList>, id: &SpiffeId) -> Result<Permit, Barred> {
    let mut earliest = None;
    for identity in lists.filter(|list| list.trust_domain() == id.trust_domain()).filter_map(|list| list.identity(id)) {
        if !identity.reinstated {
            return Err(Barred { id: id.clone(), revocation: identity.revocation });
        }
        earliest = earliest.max(Some(identity.before));
    }
    Ok(Permit { earliest })
}

#[cfg(test)]
mod tests;
