mod error;
mod issuers;
mod known;
mod parts;
mod path;
mod presented;

use std::time::SystemTime;

use alcazar_identity::{CertificateDer, Fingerprint, Revocations, SvidLeaf, TrustBundles};

use crate::peer::{PeerIdentity, Verified};

pub use error::VerifyPeerError;
pub use parts::{IssuerFault, Link, Roots, TrustDomains};
pub use presented::Presented;

/// Which side of a connection the peer is, and so which extended key usage its certificate must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The peer accepted the connection.
    Server,
    /// The peer opened the connection.
    Client,
}

/// Tells who holds a certificate chain, or why nobody may be believed to.
///
/// The chain is DER, leaf first, as the peer presented it; its other certificates may come in any order and
/// may be superfluous. The root need not be among them. In this order:
///
/// 1. the leaf is an X509-SVID in form: one URI SAN, a SPIFFE ID with a path, no CA, no signing of certificates;
/// 2. we hold a bundle for its trust domain, and these roots alone count;
/// 3. the leaf is good at `now`;
/// 4. a path of signatures, dates, basic constraints and extended key usage leads to one of the roots (webpki);
/// 5. each issuer on that path may sign certificates, and names no other trust domain; the root is good at `now`.
///
/// Nothing is revoked here; handshakes, which know the [`Revocations`] of their credentials, hold the peer against them
/// too ([`VerifyPeerError::Revoked`]), and so does [`PeerIdentity::revoked_by`] at any time after.
///
/// That the peer holds the key is TLS's to prove; who it may be is the caller's to decide.
///
/// **Source**: X509-SVID §5; RFC 5280 §6.
///
/// # Errors
/// When a rule is broken; the error names the peer, the rule, and what would have been believed.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    side: Side,
    now: SystemTime,
) -> Result<PeerIdentity, VerifyPeerError> {
    let (leaf, issuers) = chain.split_first().ok_or(VerifyPeerError::NoCertificate)?;
    verify_chain(leaf, issuers, bundles, &Revocations::default(), side, now)
}

/// [`verify_peer`] for a chain in two parts, as rustls hands it over.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    revocations: &Revocations,
    side: Side,
    now: SystemTime,
) -> Result<PeerIdentity, VerifyPeerError> {
    // Before anything is parsed: building paths from many look-alike issuers is costly, and the peer is a stranger.
    if issuers.len() > MAX_ISSUERS {
        return Err(VerifyPeerError::LongChain { peer: Presented::boxed(leaf), count: issuers.len() + 1 });
    }
    let svid =
        SvidLeaf::parse(leaf).map_err(|source| VerifyPeerError::Form { peer: Presented::boxed(leaf), source })?;
    let trust_domain = svid.id().trust_domain();
    let bundle = bundles.get(trust_domain).ok_or_else(|| VerifyPeerError::ForeignTrustDomain {
        peer: Presented::boxed(leaf),
        trusted: bundles.iter().map(|bundle| bundle.trust_domain().clone()).collect(),
    })?;
    error::check_dates(leaf, Link::Leaf, leaf, svid.validity(), now)?;
    let (issuers, root) = path::find(leaf, &svid, issuers, bundle, revocations, side, now)?;
    let peer = PeerIdentity::new(Verified {
        id: svid.id().clone(),
        serial: svid.serial().to_owned(),
        validity: svid.validity(),
        fingerprint: Fingerprint::of(leaf),
        issuers,
        root,
    });
    match peer.revoked_by(revocations) {
        None => Ok(peer),
        Some(revoked) => Err(VerifyPeerError::Revoked { peer: Presented::boxed(leaf), revoked: Box::new(revoked) }),
    }
}

/// As many issuers as a path can have.
const MAX_ISSUERS: usize = 6;
