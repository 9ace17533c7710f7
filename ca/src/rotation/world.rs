//! The machine's eyes and hands: what it is shown of this CA and its nodes, and how what it orders is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;
use thiserror::Error;

use super::{
    Action, Anchor, Class, Kind, Observations, Observed, Party, Report, Role, Rotation, Timed, Trust, records::Adopted,
};
use crate::{
    authority::AuthorityInfo,
    ca::Ca,
    hierarchy::{Authorities, Hierarchy, HierarchyError},
    issue::BACKDATE,
    records::{Lineage, RecordError, family, prefix, read},
};

/// Why the world was not seen, or not changed.
#[derive(Debug, Error)]
pub(crate) enum WorldError {
    /// The store.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The certificates and keys.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// What is ordered is not there.
    #[error("nothing here is {0}")]
    Missing(Anchor),
    /// No JWT keys are rotated yet.
    #[error("the keys of JWT-SVIDs are not rotated by this machine")]
    Jwt,
}

/// Which certificate stands under which anchor.
struct Lookup<'a> {
    kind: Kind,
    from: Option<Anchor>,
    hierarchy: &'a Hierarchy,
    authorities: &'a Authorities,
}

impl Lookup<'_> {
    fn root_above(&self, intermediate: &AuthorityInfo) -> Option<Fingerprint> {
        let mut roots = self.authorities.roots.iter().chain(self.hierarchy.roots());
        roots.find(|root| intermediate.is_signed_by(root)).map(|root| root.fingerprint)
    }

    /// The anchor of what an intermediate has issued. Of one that nobody knows any more the worst is believed.
    fn anchor(&self, issuer: Option<Fingerprint>) -> Option<Anchor> {
        let mut known = self.authorities.intermediates.iter().chain([self.hierarchy.intermediate().info()]);
        let found = issuer.and_then(|issuer| known.find(|info| info.fingerprint == issuer));
        let anchor = match (self.kind, found) {
            (_, None) => None,
            (Kind::Root, Some(found)) => self.root_above(found).map(Anchor::from),
            (_, Some(found)) => Some(found.fingerprint.into()),
        };
        anchor.or_else(|| self.from.clone())
    }

    fn leaves(&self, issuers: impl Iterator<Item = (Option<Fingerprint>, usize)>) -> BTreeMap<Anchor, usize> {
        let mut leaves = BTreeMap::new();
        for (issuer, count) in issuers {
            if let Some(anchor) = self.anchor(issuer) {
                *leaves.entry(anchor).or_insert(0) += count;
            }
        }
        leaves
    }
}

impl Ca {
    /// What there is to be seen now. `elapsed` is for the driver to say.
    pub(super) async fn observe(&self, rotation: &Rotation, elapsed: Duration) -> Result<Observations, WorldError> {
        if rotation.kind == Kind::Jwt {
            return Err(WorldError::Jwt);
        }
        let (hierarchy, authorities) = (self.hierarchy(), self.authorities().await?);
        let fence = self.0.records.fence().await?;
        let lookup = Lookup {
            kind: rotation.kind,
            from: rotation.from().cloned(),
            hierarchy: &hierarchy,
            authorities: &authorities,
        };
        let able = authorities.intermediates.iter().filter_map(|info| lookup.anchor(Some(info.fingerprint)));
        let able: BTreeSet<_> = able.collect();
        let here = if rotation.kind == Kind::Root { &authorities.roots } else { &authorities.intermediates };
        let sequence = hierarchy.bundles().get(self.trust_domain()).map_or(0, |bundle| bundle.sequence());
        let signing = signing(rotation.kind, &hierarchy);
        let trust = Trust {
            step: fence.step,
            sequence,
            trusted: match rotation.kind {
                Kind::Root => hierarchy.roots().iter().map(|root| root.fingerprint.into()).collect(),
                _ => BTreeSet::new(),
            },
            signing: signing.clone(),
        };
        let made = made(rotation, &hierarchy, here, &able);
        let known = here.iter().map(|info| info.fingerprint.into()).collect();
        // This CA itself: what it serves with is renewed whenever the hierarchy changes.
        let serving = self.0.serving.borrow().clone();
        let issuer = serving.svid().chain().get(1).map(|issuer| Fingerprint::of(issuer));
        let own = Report {
            sequence: serving.bundles().get(self.trust_domain()).map_or(0, |bundle| bundle.sequence()),
            round: rotation.step,
            leaves: lookup.leaves([(issuer, 1)].into_iter()),
            signing: Some(signing),
            able: able.clone(),
            behind: Vec::new(),
        };
        let own = Observed { role: Role::Replica, silent: Duration::ZERO, report: Some(own) };
        let name = format!("the CA of {}", self.config().cluster);
        let mut parties = vec![Party { name, class: Class::Observed(own) }];
        parties.extend(self.nodes(&lookup).await?);
        parties.extend(self.timed(&hierarchy).await?);
        Ok(Observations { trust, made, able, known, parties, elapsed })
    }

    /// Every node that has a lineage, with what it said last.
    async fn nodes(&self, lookup: &Lookup<'_>) -> Result<Vec<Party>, WorldError> {
        let now = (self.0.clock)();
        let said = self.0.records.adopted().await?;
        let family = prefix(family::NODES)?;
        let mut parties = Vec::new();
        for entry in self.0.records.store().list(&family).await.map_err(RecordError::from)?.entries {
            let Some(name) = family.strip(entry.key()) else { continue };
            let lineage: Lineage = read(&entry)?.record;
            let adopted = said.get(name);
            let heard = adopted.map_or(lineage.latest.issued_at, |adopted| adopted.heard);
            let report = adopted.map(|adopted| report(adopted, lookup));
            let observed = Observed { role: Role::Node, silent: apart(now, heard), report };
            parties.push(Party { name: name.into(), class: Class::Observed(observed) });
        }
        Ok(parties)
    }

    /// Those who never report.
    async fn timed(&self, hierarchy: &Hierarchy) -> Result<Vec<Party>, WorldError> {
        let mut parties = Vec::new();
        if let Some(noted) = self.0.records.unreported().await?.filter(|noted| noted.until > (self.0.clock)()) {
            parties.push(Party { name: CLIENTS.into(), class: Class::Timed(noted.timed()) });
        }
        let bundle = hierarchy.bundles().get(self.trust_domain());
        if let Some(hint) = bundle.and_then(|bundle| bundle.refresh_hint()) {
            let timed = Timed { bundle: hint + hint / 4, leaf: Duration::ZERO };
            parties.push(Party { name: FEDERATED.into(), class: Class::Timed(timed) });
        }
        Ok(parties)
    }

    /// Does what was ordered.
    pub(super) async fn act(&self, rotation: &Rotation, action: &Action) -> Result<(), WorldError> {
        match action {
            Action::Make => self.make(rotation).await,
            Action::Settle { step, trusted, dropped, signing } => {
                // Whoever orders for an earlier step has been overtaken.
                if !self.0.records.raise_fence(*step).await? {
                    return Ok(());
                }
                if rotation.kind == Kind::Root {
                    self.settle_roots(trusted, dropped, signing).await
                } else {
                    Ok(self.activate(fingerprint(signing)?).await?)
                }
            }
            Action::Forget(anchor) => {
                let fingerprint = fingerprint(anchor)?;
                if rotation.kind != Kind::Root {
                    return Ok(self.forget_intermediate(fingerprint).await?);
                }
                // From below: an intermediate without its root would be damage.
                let authorities = self.authorities().await?;
                let root = authorities.roots.iter().find(|root| root.fingerprint == fingerprint);
                let under = |info: &&AuthorityInfo| root.is_some_and(|root| info.is_signed_by(root));
                for intermediate in authorities.intermediates.iter().filter(under) {
                    self.forget_intermediate(intermediate.fingerprint).await?;
                }
                Ok(self.forget_root(fingerprint).await?)
            }
        }
    }

    async fn make(&self, rotation: &Rotation) -> Result<(), WorldError> {
        let root = match rotation.kind {
            Kind::Root => {
                let (hierarchy, authorities) = (self.hierarchy(), self.authorities().await?);
                match newest(rotation, &hierarchy, &authorities.roots) {
                    // Made before a crash, without its intermediate.
                    Some(root) => root,
                    None => self.make_root().await?.fingerprint,
                }
            }
            _ => self.hierarchy().root().fingerprint,
        };
        self.make_intermediate(root).await?;
        Ok(())
    }

    /// First everybody who is to be trusted, then the signer, then without those who are not: at no moment is there a signer
    /// whom nobody trusts.
    async fn settle_roots(
        &self,
        trusted: &BTreeSet<Anchor>,
        dropped: &BTreeSet<Anchor>,
        signing: &Anchor,
    ) -> Result<(), WorldError> {
        let present: BTreeSet<Anchor> = self.hierarchy().roots().iter().map(|root| root.fingerprint.into()).collect();
        let wider: BTreeSet<_> = present.union(trusted).cloned().collect();
        let signs = fingerprint(signing)?;
        if self.hierarchy().root().fingerprint != signs {
            self.set_trusted_roots(&fingerprints(&wider)?).await?;
            let authorities = self.authorities().await?;
            let root = authorities.roots.iter().find(|root| root.fingerprint == signs);
            let root = root.ok_or_else(|| WorldError::Missing(signing.clone()))?;
            let under = authorities.intermediates.iter().filter(|info| info.is_signed_by(root));
            let intermediate = under.max_by_key(|info| info.validity.not_after());
            let intermediate = intermediate.ok_or_else(|| WorldError::Missing(signing.clone()))?;
            self.activate(intermediate.fingerprint).await?;
        }
        let exactly: BTreeSet<_> = wider.difference(dropped).cloned().collect();
        self.set_trusted_roots(&fingerprints(&exactly)?).await?;
        Ok(())
    }
}

fn report(adopted: &Adopted, lookup: &Lookup<'_>) -> Report {
    Report {
        sequence: adopted.sequence,
        round: adopted.round,
        leaves: lookup.leaves(adopted.issuers()),
        signing: None,
        able: BTreeSet::new(),
        behind: adopted.behind.clone(),
    }
}

/// What signs now.
pub(super) fn signing(kind: Kind, hierarchy: &Hierarchy) -> Anchor {
    match kind {
        Kind::Root => hierarchy.root().fingerprint.into(),
        _ => hierarchy.intermediate().info().fingerprint.into(),
    }
}

/// What has been made for this rotation and is whole: of a root, also an intermediate under it.
fn made(rotation: &Rotation, hierarchy: &Hierarchy, here: &[AuthorityInfo], able: &BTreeSet<Anchor>) -> Option<Anchor> {
    let made = newest(rotation, hierarchy, here).map(Anchor::from);
    made.filter(|made| rotation.kind != Kind::Root || able.contains(made))
}

/// The newest of those that nobody uses and that are not older than the rotation.
fn newest(rotation: &Rotation, hierarchy: &Hierarchy, here: &[AuthorityInfo]) -> Option<Fingerprint> {
    let fresh = here.iter().filter(|info| {
        let used = match rotation.kind {
            Kind::Root => hierarchy.trusts(info.fingerprint),
            _ => hierarchy.intermediate().info().fingerprint == info.fingerprint,
        };
        let begins = info.validity.not_before() + BACKDATE;
        !used && Anchor::from(info.fingerprint) != rotation.old && begins + SECOND >= rotation.started
    });
    fresh.max_by_key(|info| info.validity.not_before()).map(|info| info.fingerprint)
}

fn fingerprint(anchor: &Anchor) -> Result<Fingerprint, WorldError> {
    anchor.fingerprint().ok_or_else(|| WorldError::Missing(anchor.clone()))
}

fn fingerprints(anchors: &BTreeSet<Anchor>) -> Result<Vec<Fingerprint>, WorldError> {
    anchors.iter().map(fingerprint).collect()
}

/// How far two moments are apart: after the clock was set back, what was heard before is no fresher for it.
fn apart(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_else(|ahead| ahead.duration())
}

const CLIENTS: &str = "clients of the CSR API";
const FEDERATED: &str = "federated trust domains";
const SECOND: Duration = Duration::from_secs(1);
