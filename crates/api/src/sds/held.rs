use std::time::SystemTime;

use alcazar_identity::{Credentials, TrustBundle, TrustBundles, X509Svid};

use super::client::deepest;
use super::secret::same_roots;
use super::{ALL, DEFAULT, ROOT_CA, SecretError, bundle_from_secret, bundles_from_secret, svid_from_secret};
use crate::ca::v1;
use crate::envoy::discovery::DiscoveryResponse;
use crate::envoy::tls::Secret;
use crate::envoy::{SECRET_URL, UnpackError, unpack};
use crate::revocations::Keeper;

/// What the agent has said so far.
#[derive(Default)]
pub(super) struct Held {
    svid: Option<X509Svid>,
    roots: Option<Secret>,
    /// Every trust domain's bundle, our own included.
    all: Option<Secret>,
    /// Those of other trust domains.
    others: Vec<TrustBundle>,
    /// Counts the bundles that were published: SDS does not carry a sequence.
    sequence: u64,
    /// Lists of revocations, as they were shown last; those that were good are in the keeper.
    shown: Option<v1::SignedRevocations>,
    keeper: Keeper,
}

impl Held {
    /// Takes a response whole or not at all.
    pub(super) fn take(&mut self, response: &DiscoveryResponse, now: SystemTime) -> Result<(), ResponseError> {
        let (mut svid, mut roots, mut all) = (None, None, None);
        for resource in &response.resources {
            let secret: Secret = unpack(SECRET_URL, resource)?;
            match secret.name.as_str() {
                DEFAULT => svid = Some(svid_from_secret(&secret)?),
                ROOT_CA => roots = Some(secret),
                ALL => all = Some(secret),
                name => tracing::debug!(name, "the agent sent a secret that was not asked for"),
            }
        }
        let next = self.sequence + 1;
        let others = match all.as_ref().filter(|all| self.all.as_ref() != Some(*all)) {
            Some(all) => Some(bundles_from_secret(all, next)?),
            None => None,
        };
        if let Some(svid) = svid.or_else(|| self.svid.clone()) {
            // The bundle must convert before anything is replaced.
            if let Some(roots) = &roots {
                bundle_from_secret(roots, svid.id().trust_domain().clone(), next)?;
            }
            self.svid = Some(svid);
        }
        if let Some(read) = others {
            for refused in &read.refused {
                tracing::warn!(reason = %refused, cause = %deepest(refused), "a trust domain's bundle cannot be used; its members are refused");
            }
            self.all = all;
            self.sequence = next;
            self.others = read.bundles;
        }
        // CRLs are not gone by here: a new one is no new bundle, for which every connection would be looked at again.
        let same = |new: &Secret| self.roots.as_ref().is_some_and(|held| same_roots(held, new));
        if let Some(roots) = roots.filter(|new| !same(new)) {
            self.sequence = next;
            self.roots = Some(roots);
        }
        self.check_revocations(now)?;
        Ok(())
    }

    /// Takes what is good of lists of revocations.
    pub(super) fn show(&mut self, shown: v1::SignedRevocations, now: SystemTime) -> Result<(), SecretError> {
        self.shown = Some(shown);
        self.check_revocations(now)
    }

    /// Takes what is good of the lists shown. With other roots another may be good than before.
    fn check_revocations(&mut self, now: SystemTime) -> Result<(), SecretError> {
        let (Some(shown), Some(bundles)) = (&self.shown, self.bundles()?) else { return Ok(()) };
        let outcome = self.keeper.take(shown, &bundles, now);
        for refused in outcome.refused {
            tracing::warn!(target: "alcazar::revoked", reason = %refused, cause = %deepest(&refused), "a list of revocations that the agent has shown is not taken");
        }
        Ok(())
    }

    /// Our own trust domain's bundle, as `ROOTCA` has it, and those of the others. Nobody else's says what ours is.
    fn bundles(&self) -> Result<Option<TrustBundles>, SecretError> {
        let (Some(svid), Some(roots)) = (&self.svid, &self.roots) else { return Ok(None) };
        let trust_domain = svid.id().trust_domain();
        let own = bundle_from_secret(roots, trust_domain.clone(), self.sequence)?;
        let others = self.others.iter().filter(|other| other.trust_domain() != trust_domain).cloned();
        Ok(Some(others.chain([own]).collect()))
    }

    pub(super) fn credentials(&self) -> Result<Option<Credentials>, SecretError> {
        let (Some(svid), Some(bundles)) = (&self.svid, self.bundles()?) else { return Ok(None) };
        let revocations = self.keeper.current().clone();
        Ok(Some(Credentials::new(svid.clone(), bundles).with_revocations(revocations)))
    }
}

/// Why a response was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResponseError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("{}: {}", .0, deepest(.0))]
    Secret(#[from] SecretError),
}
