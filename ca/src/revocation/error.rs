//! Why nothing is revoked, or given back: each says what to do.

use std::time::SystemTime;

use alcazar_api::{
    MAX_MESSAGE,
    revocations::{ListError, MAX_LIST},
};
use alcazar_identity::{Fingerprint, RevocationReason, SpiffeId, rfc3339};
use thiserror::Error;

use super::{intermediates::UnknownError, refresh::RefreshError};
use crate::{hierarchy::HierarchyError, ledger::LedgerError, records::RecordError, signer::SignError};

/// Why nothing was revoked, or given back.
#[derive(Debug, Error)]
pub enum RevokeError {
    /// Not a serial number.
    #[error(
        "{0:?} is not a serial number: at most 40 hexadecimal digits, as in `alcazar ledger list` or openssl's output"
    )]
    Serial(String),
    /// Its time is over anyhow.
    #[error(
        "the certificate {serial} of {id} expired at {}: nobody believes it any more", rfc3339(*not_after)
    )]
    Over {
        /// Which.
        serial: String,
        /// Whose.
        id: SpiffeId,
        /// When.
        not_after: SystemTime,
    },
    /// An authority's, which no list of leaves is about.
    #[error(
        "{serial} is the serial number of a certificate authority, {fingerprint}: nobody looks for one by its number. An intermediate is revoked by `alcazar revoke --intermediate {fingerprint}`; a root is replaced (`alcazar root rotate`)"
    )]
    Authority {
        /// Its number.
        serial: String,
        /// What it is revoked by.
        fingerprint: Fingerprint,
    },
    /// A root, which is taken back by nobody.
    #[error(
        "{0} is a root, and nobody can take back a root: whoever trusts it does. Replace it (`alcazar root rotate`); one of another trust domain is removed from its bundle (`alcazar bundle set`)"
    )]
    Root(Fingerprint),
    /// A token, which is in no list.
    #[error(
        "{id} is a JWT-SVID of {of}, and those who check tokens ask no list: it is good until {}; so that there are no more, revoke the identity", rfc3339(*expires)
    )]
    Token {
        /// The token's id.
        id: String,
        /// Whom it names.
        of: SpiffeId,
        /// Its end.
        expires: SystemTime,
    },
    /// No list is longer.
    #[error(
        "the list of this cluster has no room: {entries} entries, {bytes} bytes. Revoke the intermediate that issued them instead (`alcazar ca rotate`, then `alcazar revoke --intermediate`)"
    )]
    Full {
        /// How many there are.
        entries: usize,
        /// How long it is.
        bytes: usize,
    },
    /// Another trust domain's.
    #[error("{0} is not the identity of a workload or node of this trust domain")]
    Foreign(SpiffeId),
    /// The CA itself.
    #[error(
        "{0} is the CA's own identity: without it no node could hear of any revocation; revoke its intermediate, or one of its certificates by serial number"
    )]
    OurOwn(SpiffeId),
    /// Nothing to give back.
    #[error("{0} is not revoked here; `alcazar revocations` shows what is")]
    NotRevoked(String),
    /// It was given back already.
    #[error("{id} is not revoked any more: it was reinstated at {}", rfc3339(*at))]
    Reinstated {
        /// Which.
        id: SpiffeId,
        /// When.
        at: SystemTime,
    },
    /// RFC 5280 §5.3.1.
    #[error(
        "the certificate {serial} was revoked for {reason}, which is final; only certificateHold can be lifted. Its holder gets a new certificate by renewing"
    )]
    NotOnHold {
        /// Which.
        serial: String,
        /// Why it was revoked.
        reason: RevocationReason,
    },
    /// An intermediate stays revoked.
    #[error("the revocation of an intermediate is final; make another one")]
    Final,
    /// It signs.
    #[error(
        "the intermediate {0} is the one that signs here; replace it first (`alcazar ca rotate`), then revoke it. If its key is in other hands, --force revokes it now: nothing is issued here until there is another one, and whoever has a certificate of it is cut off"
    )]
    Signs(Fingerprint),
    /// Another replica signs with it.
    #[error(
        "the intermediate {intermediate} is the one that {replica} signs with; replace it there first (`alcazar ca rotate` by that replica's socket), then revoke it. If its key is in other hands, --force revokes it now: that replica issues nothing until it has another one, and whoever has a certificate of it is cut off"
    )]
    SignsElsewhere {
        /// Which.
        intermediate: Fingerprint,
        /// Which signs with it.
        replica: String,
    },
    /// The root is offline.
    #[error(
        "the intermediate {intermediate} can be revoked by its root alone, whose key is not here; have the list signed where the root is kept: `alcazar root revoke-intermediate` there, `alcazar revocations import FILE` at each CA under it"
    )]
    RootKey {
        /// Which.
        intermediate: Fingerprint,
        /// What is missing.
        source: Box<HierarchyError>,
    },
    /// A list that would leave no room for others.
    #[error(
        "the list is not taken: it is {bytes} bytes long, and with it all lists are {all}; one may have {MAX_LIST}, and all together {MAX_ALL}, so that verifiers can be told of them"
    )]
    LongImport {
        /// How long it is.
        bytes: usize,
        /// How long all are with it.
        all: usize,
    },
    /// A list that nobody would take.
    #[error("the list is not taken")]
    Import(#[source] ListError),
    /// A CRL of nobody who is trusted.
    #[error("a CRL in the file is not signed by a root that is trusted here")]
    Crl,
    /// A CRL that no record has room for.
    #[error("a CRL in the file is {0} bytes long, more than a record takes")]
    LongCrl(usize),
    /// The key did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It is on record, and not in force yet.
    #[error("it is on record, and will be in force once this is mended")]
    Refresh(#[from] RefreshError),
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The ledger cannot be read.
    #[error("the ledger cannot be asked for the certificate")]
    Ledger(#[from] LedgerError),
    /// Neither the records nor the disk nor the ledger say which it is.
    #[error("the certificate of the intermediate cannot be looked for")]
    Unknown(#[from] UnknownError),
    /// The process is ending.
    #[error("interrupted")]
    Interrupted,
}

/// How long all lists together may be, with room for what travels beside them.
pub(super) const MAX_ALL: usize = MAX_MESSAGE / 4 * 3;
