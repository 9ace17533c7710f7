use std::fmt;
use std::sync::Arc;

use alcazar_identity::{Fingerprint, Proven, Revocations, Revoked, SpiffeId, Validity};

/// Who is at the other end: the result of a verification, and the only thing that authorisation sees of it.
///
/// Only the verifier makes one. Cheap to clone. Two are equal when they stand on the same leaf certificate
/// and the same issuer and root.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity(Arc<Verified>);

impl PeerIdentity {
    pub(crate) fn new(verified: Verified) -> Self {
        Self(Arc::new(verified))
    }

    /// The identity that the certificate names.
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// The leaf's serial number, in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// When the leaf is good; a connection must not outlive its end.
    pub fn validity(&self) -> Validity {
        self.0.validity
    }

    /// The leaf's SHA-256: what `x-forwarded-client-cert` carries as `Hash`.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// The SHA-256 of the certificate whose key signed the leaf, on the path that was verified.
    pub fn issuer(&self) -> Fingerprint {
        self.0.issuers.first().copied().unwrap_or(self.0.root)
    }

    /// Whether it is to be believed no more by these revocations, and why: what proved it holds, as long as nobody takes
    /// it back.
    pub fn revoked_by(&self, revocations: &Revocations) -> Option<Revoked> {
        let Verified { id, serial, validity, root, issuers, .. } = &*self.0;
        let issuers = if issuers.is_empty() { std::slice::from_ref(root) } else { issuers };
        revocations.of(&Proven { id, serial, not_before: validity.not_before(), issuers })
    }

    /// The SHA-256 of the root that the verified path ends at.
    pub fn root(&self) -> Fingerprint {
        self.0.root
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.id, f)
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerIdentity({}, serial {})", self.0.id, self.0.serial)
    }
}

/// What a verification found.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Verified {
    pub(crate) id: SpiffeId,
    pub(crate) serial: String,
    pub(crate) validity: Validity,
    pub(crate) fingerprint: Fingerprint,
    /// Between the leaf and the root, the leaf's own issuer first.
    pub(crate) issuers: Box<[Fingerprint]>,
    pub(crate) root: Fingerprint,
}
