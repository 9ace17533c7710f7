//! The path from a leaf to a root: webpki's search, with our rules for issuers inside it.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint, ParseSvidError, Revocations, SvidLeaf, TrustBundle};
use rustls_pki_types::{TrustAnchor, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::error::unknown_issuer;
use super::{Link, Presented, Roots, Side, VerifyPeerError, error, issuers, known};

/// Finds a path that breaks no rule; returns the fingerprints of the issuers on it, the leaf's own first, and of its root.
pub(super) fn find(
    leaf: &CertificateDer<'_>,
    svid: &SvidLeaf,
    presented: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    revocations: &Revocations,
    side: Side,
    now: SystemTime,
) -> Result<(Box<[Fingerprint]>, Fingerprint), VerifyPeerError> {
    let broken = |source| VerifyPeerError::Path { peer: Presented::boxed(leaf), source };
    let end_entity = EndEntityCert::try_from(leaf).map_err(broken)?;
    // Two parsers read the leaf, one for its name and one for its path: what they read must be the same.
    if !end_entity.valid_uri_names().eq([svid.id().as_str()]) {
        let source = ParseSvidError::UnreadableNames;
        return Err(VerifyPeerError::Form { peer: Presented::boxed(leaf), source });
    }
    // A root that webpki cannot read vouches for nobody.
    let (roots, anchors): (Vec<_>, Vec<_>) =
        bundle.roots().filter_map(|root| Some((root, anchor_from_trusted_cert(root).ok()?))).unzip();

    // Our rules run on each candidate, so that a path which breaks one does not hide another that is good:
    // two roots with one key and different dates are an ordinary stage of a renewal.
    let fault = RefCell::new(None);
    let obeys_rules = |path: &VerifiedPath<'_>| {
        let checked = match root_of(path, &roots, &anchors) {
            Some(root) => issuers::check(leaf, path, root, bundle.trust_domain(), now)
                .and_then(|()| issuers::check_revoked(leaf, path, bundle.trust_domain(), revocations)),
            None => return Err(Error::UnknownIssuer),
        };
        checked.map_err(|found| {
            fault.borrow_mut().get_or_insert(found);
            Error::UnknownIssuer
        })
    };
    let usage = match side {
        Side::Server => KeyUsage::server_auth(),
        Side::Client => KeyUsage::client_auth(),
    };
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let found = end_entity.verify_for_usage(
        known::signatures(),
        &anchors,
        presented,
        UnixTime::since_unix_epoch(seconds),
        usage,
        None,
        Some(&obeys_rules),
    );
    match found {
        Ok(path) => {
            let root = root_of(&path, &roots, &anchors).map(|root| Fingerprint::of(root));
            let issuers = path.intermediate_certificates().map(|issuer| Fingerprint::of(&issuer.der())).collect();
            let root = root.ok_or_else(|| unknown_issuer(leaf, presented, bundle))?;
            Ok((issuers, root))
        }
        // A path that got as far as our rules was good in every other way: its fault says most.
        Err(refused) => Err(fault.take().unwrap_or_else(|| explain(refused, leaf, presented, bundle, side, now))),
    }
}

/// The root certificate behind a path's anchor: the very one, because two roots can be alike but for their dates.
fn root_of<'r>(
    path: &VerifiedPath<'_>,
    roots: &[&'r CertificateDer<'static>],
    anchors: &[TrustAnchor<'_>],
) -> Option<&'r CertificateDer<'static>> {
    let same = |anchor: &&TrustAnchor<'_>| {
        std::ptr::eq(std::ptr::from_ref(*anchor).cast::<()>(), std::ptr::from_ref(path.anchor()).cast::<()>())
    };
    anchors.iter().zip(roots).find(|(anchor, _)| same(anchor)).map(|(_, root)| *root)
}

/// webpki's refusal in our words.
fn explain(
    refused: Error,
    leaf: &CertificateDer<'_>,
    presented: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    side: Side,
    now: SystemTime,
) -> VerifyPeerError {
    let peer = || Presented::boxed(leaf);
    match refused {
        Error::UnknownIssuer => unknown_issuer(leaf, presented, bundle),
        Error::InvalidSignatureForPublicKey => VerifyPeerError::Signature {
            peer: peer(),
            issuers: presented.iter().map(Presented::read).collect(),
            roots: Roots::of(bundle),
        },
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            VerifyPeerError::WrongUsage { peer: peer(), side }
        }
        // webpki does not say which certificate it was; the leaf's own dates were good.
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => presented
            .iter()
            .find_map(|issuer| {
                let validity = Presented::read(issuer).validity()?;
                error::check_dates(leaf, Link::Intermediate, issuer, validity, now).err()
            })
            .unwrap_or_else(|| VerifyPeerError::Path { peer: peer(), source: refused }),
        source => VerifyPeerError::Path { peer: peer(), source },
    }
}
