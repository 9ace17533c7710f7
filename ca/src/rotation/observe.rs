//! The machine's eyes: what there is to be seen of this CA, of its other replicas, and of everybody whom they serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;

use super::{
    Anchor, Class, Kind, Observations, Observed, Party, Report, Role, Rotation, Timed, Trust,
    records::{Adopted, Note},
    world::WorldError,
};
use crate::{
    authority::AuthorityInfo,
    ca::Ca,
    hierarchy::{Authorities, Hierarchy, blocking},
    jwt_authority::keys::JwtKey,
    records::{Lineage, RecordError, family, prefix, read},
    replicas::{Phase as Doing, Presence, ReplicaState},
};

/// Which certificate stands under which anchor.
pub(super) struct Lookup<'a> {
    kind: Kind,
    from: Option<Anchor>,
    hierarchy: &'a Hierarchy,
    authorities: &'a Authorities,
    replicas: &'a [ReplicaState],
}

/// How the anchors of one kind are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) trusted: BTreeSet<Anchor>,
    pub(super) signing: Anchor,
    pub(super) made: Option<Anchor>,
    pub(super) able: BTreeSet<Anchor>,
    pub(super) known: BTreeSet<Anchor>,
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
            // No certificate is of a JWT key.
            (Kind::Jwt, _) => return None,
            (_, None) => issuer.and_then(|issuer| self.of_a_replica(issuer)),
            (Kind::Root, Some(found)) => self.root_above(found).map(Anchor::from),
            (Kind::Intermediate, Some(found)) => Some(found.fingerprint.into()),
        };
        anchor.or_else(|| self.from.clone())
    }

    /// The anchor of what another replica's intermediate has issued.
    fn of_a_replica(&self, issuer: Fingerprint) -> Option<Anchor> {
        let said = self.replicas.iter().map(|state| &state.presence);
        let mut held = said.flat_map(|said| said.held.iter().chain([&said.signing]));
        let found = held.find(|held| held.intermediate == issuer)?;
        Some(if self.kind == Kind::Root { found.root } else { found.intermediate }.into())
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
        // Whom this replica served while the store was away is among those who are waited for.
        self.pay_notes().await?;
        let (hierarchy, authorities) = (self.hierarchy(), self.authorities().await?);
        let replicas = self.replicas().await?;
        let step = self.0.records.fence().await?.step;
        let from = rotation.from().cloned();
        let lookup =
            Lookup { kind: rotation.kind, from, hierarchy: &hierarchy, authorities: &authorities, replicas: &replicas };
        let sequence = hierarchy.bundles().get(self.trust_domain()).map_or(0, |bundle| bundle.sequence());
        let person = rotation.kind == Kind::Intermediate && self.is_signed_elsewhere(&hierarchy).await?;
        let seen = match rotation.kind {
            Kind::Jwt => self.jwt_view(rotation, &hierarchy),
            kind => {
                let here = if kind == Kind::Root { &authorities.roots } else { &authorities.intermediates };
                let able = authorities.intermediates.iter();
                let able = able.filter_map(|info| lookup.anchor(Some(info.fingerprint)));
                // What is plugged in lies elsewhere, and signs.
                let able: BTreeSet<_> = able.chain([signing(kind, &hierarchy)]).collect();
                let signs = signing(kind, &hierarchy);
                // What a person brings signs as soon as it is plugged in; on the way back it is not ours to remove.
                let brought = Some(&signs).filter(|signs| person && !rotation.back && **signs != rotation.old).cloned();
                Seen {
                    trusted: match kind {
                        Kind::Root => hierarchy.roots().iter().map(|root| root.fingerprint.into()).collect(),
                        _ => BTreeSet::new(),
                    },
                    made: match kind {
                        Kind::Root if !rotation.back => made(rotation, &hierarchy, &self.own_roots().await?, &able),
                        _ => made(rotation, &hierarchy, here, &able),
                    }
                    .or(brought),
                    signing: signs,
                    known: here.iter().map(|info| info.fingerprint.into()).collect(),
                    able,
                }
            }
        };
        // This CA itself: what it serves with is renewed whenever the hierarchy changes.
        let serving = self.0.serving.borrow().clone();
        let issuer = serving.svid().chain().get(1).map(|issuer| Fingerprint::of(issuer));
        let own = Report {
            sequence: serving.bundles().get(self.trust_domain()).map_or(0, |bundle| bundle.sequence()),
            round: rotation.step,
            leaves: lookup.leaves([(issuer, 1)].into_iter()),
            signing: Some(seen.signing.clone()),
            able: seen.able.clone(),
            behind: Vec::new(),
        };
        let own = Observed { role: Role::Replica, silent: Duration::ZERO, report: Some(own) };
        let name = format!("the CA of {}", self.config().cluster);
        let mut parties = vec![Party { name, class: Class::Observed(own) }];
        let now = (self.0.clock)();
        // Of an intermediate: those that share it. The others go on with their own.
        let concerns = |said: &Presence| match rotation.from().and_then(Anchor::fingerprint) {
            _ if rotation.kind != Kind::Intermediate => true,
            from => [said.signing.intermediate, said.serving].into_iter().any(|print| Some(print) == from),
        };
        let others = replicas.iter().filter(|state| !state.here && concerns(&state.presence));
        for other in others.filter(|state| state.presence.phase != Doing::Stopped) {
            let report = self.replica_report(rotation, other, sequence, &lookup);
            let silent = apart(now, other.presence.seen);
            let observed = Observed { role: Role::Replica, silent, report: Some(report) };
            parties.push(Party { name: other.name(), class: Class::Observed(observed) });
        }
        parties.extend(self.nodes(&lookup).await?);
        parties.extend(self.timed(rotation).await?);
        parties.extend(self.clusters(rotation, sequence).await?);
        let trust = Trust { step, sequence, trusted: seen.trusted, signing: seen.signing };
        Ok(Observations { trust, made: seen.made, person, able: seen.able, known: seen.known, parties, elapsed })
    }

    /// Whether what signs was plugged in, and the key of its root is elsewhere.
    async fn is_signed_elsewhere(&self, hierarchy: &Hierarchy) -> Result<bool, WorldError> {
        let (files, root, now) = (self.0.files.clone(), hierarchy.root().fingerprint, (self.0.clock)());
        Ok(blocking(move || Ok(files.plugged.folder()?.is_some() && !files.can_certify(root, now))).await?)
    }

    /// What another replica has said, where `sequence` is that of the trust state here.
    fn replica_report(&self, rotation: &Rotation, other: &ReplicaState, sequence: u64, lookup: &Lookup<'_>) -> Report {
        let said = &other.presence;
        let mut report = Report {
            sequence: said.sequence.min(said.serving_sequence),
            round: said.round,
            leaves: lookup.leaves([(Some(said.serving), 1)].into_iter()),
            signing: Some(said.signing.root.into()),
            able: said.held.iter().map(|held| held.root.into()).collect(),
            behind: Vec::new(),
        };
        if rotation.kind == Kind::Intermediate {
            // Whatever else it has gone over to, it has followed.
            let stays = rotation.from() == Some(&said.signing.intermediate.into());
            report.signing = if stays { rotation.from() } else { rotation.to() }.cloned();
        }
        if rotation.kind == Kind::Jwt {
            // Which key of its own signs follows from the trust state that it has read.
            let new = |key: &&JwtKey| key.generation == Some(rotation.begun);
            let hierarchy = self.hierarchy();
            let mut own = hierarchy.jwt_keys().iter().filter(|key| key.replica.as_deref() == Some(other.id.as_str()));
            let has = own.any(|key| new(&key));
            report.able = rotation.new.iter().filter(|_| has || rotation.back).cloned().collect();
            report.able.insert(rotation.old.clone());
            report.signing = if said.sequence >= sequence { rotation.to() } else { rotation.from() }.cloned();
        }
        report
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
    async fn timed(&self, rotation: &Rotation) -> Result<Vec<Party>, WorldError> {
        let mut parties = Vec::new();
        let mut timed = |name: &str, timed| parties.push(Party { name: name.into(), class: Class::Timed(timed) });
        let what = if rotation.kind == Kind::Jwt { Note::Tokens } else { Note::Certificates };
        let noted = self.in_use(what, Some(rotation.entered)).await?;
        match (noted, what) {
            (Some(noted), Note::Certificates) => timed(CLIENTS, noted.timed()),
            // Whoever checks a token says what bundle it has, or is waited for with the federated.
            (Some(noted), Note::Tokens) => timed(TOKENS, Timed { bundle: Duration::ZERO, ..noted.timed() }),
            (None, _) => {}
        }
        if let Some(endpoint) = &self.0.config.bundle_endpoint {
            let hint = endpoint.refresh_hint;
            timed(FEDERATED, Timed { bundle: hint + hint / 4, leaf: Duration::ZERO });
        }
        Ok(parties)
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

/// What signs certificates now.
pub(super) fn signing(kind: Kind, hierarchy: &Hierarchy) -> Anchor {
    match kind {
        Kind::Root => hierarchy.root().fingerprint.into(),
        _ => hierarchy.intermediate().info().fingerprint.into(),
    }
}

/// What has been made for this rotation: of a root it is whole with an intermediate under it. On the way back all is to go.
fn made(rotation: &Rotation, hierarchy: &Hierarchy, here: &[AuthorityInfo], able: &BTreeSet<Anchor>) -> Option<Anchor> {
    let made = newest(rotation, hierarchy, here).map(Anchor::from);
    made.filter(|made| rotation.kind != Kind::Root || rotation.back || able.contains(made))
}

/// The newest of those that nobody uses and that were not here when the rotation began.
pub(super) fn newest(rotation: &Rotation, hierarchy: &Hierarchy, here: &[AuthorityInfo]) -> Option<Fingerprint> {
    let fresh = here.iter().filter(|info| {
        let anchor = Anchor::from(info.fingerprint);
        let used = match rotation.kind {
            Kind::Root => hierarchy.trusts(info.fingerprint),
            _ => hierarchy.intermediate().info().fingerprint == info.fingerprint,
        };
        !used && anchor != rotation.old && !rotation.here.contains(&anchor)
    });
    fresh.max_by_key(|info| (info.validity.not_before(), info.fingerprint)).map(|info| info.fingerprint)
}

/// How far two moments are apart: after the clock was set back, what was heard before is no fresher for it.
fn apart(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_else(|ahead| ahead.duration())
}

pub(super) const CLIENTS: &str = "clients that never report";
pub(super) const TOKENS: &str = "JWT-SVIDs in use";
pub(super) const FEDERATED: &str = "federated trust domains";
