//! Nodes that come with their certificate: who they are by their lineage, and their next certificate.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{Fingerprint, SpiffeId, SpiffeIdKind};
use alcazar_mtls::PeerIdentity;
use alcazar_store::Expected;

use super::{Reply, is_repeatable, reply};
use crate::{
    ca::Ca,
    callers::Plug,
    csr::Csr,
    hierarchy::Hierarchy,
    issue::BACKDATE,
    records::{Leaf, Lineage, LineageRefusal, Mark, Pending, RecordError, Renewal, Stored, family, is_younger},
    refusal::RequestError,
    revocation::Permit,
};

/// A node that has proved itself by a certificate of its lineage.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: SpiffeId,
    pub(super) presented: Presented,
    pub(super) lineage: Held,
}

/// The certificate that a node came with.
#[derive(Clone, Debug)]
pub(super) struct Presented {
    pub(super) mark: Mark,
    pub(super) issuer: Fingerprint,
    /// When it was issued, as it says itself.
    pub(super) issued: SystemTime,
    pub(super) not_after: SystemTime,
}

/// A lineage as it is known here.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// As the store has it.
    Stored(Stored<Lineage>),
    /// As it went on while the store was away.
    Pending(Arc<Pending>),
    /// As the store had it: another replica has renewed the node since, and cannot tell.
    Younger(Stored<Lineage>),
}

impl Held {
    fn record(&self) -> &Lineage {
        match self {
            Self::Stored(stored) | Self::Younger(stored) => &stored.record,
            Self::Pending(pending) => &pending.lineage,
        }
    }
}

impl Node {
    /// When the certificate ends by which it proved itself.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.presented.not_after
    }
}

impl From<&PeerIdentity> for Presented {
    fn from(peer: &PeerIdentity) -> Self {
        let validity = peer.validity();
        let issued = validity.not_before().checked_add(BACKDATE).unwrap_or(validity.not_before());
        let mark = Mark { serial: peer.serial().into(), print: peer.fingerprint() };
        Self { mark, issuer: peer.issuer(), issued, not_after: validity.not_after() }
    }
}

impl Ca {
    /// The node behind a connection.
    pub(super) async fn node(&self, peer: Option<&PeerIdentity>) -> Result<Node, RequestError> {
        let peer = peer.ok_or(RequestError::Anonymous)?;
        let id = peer.id().clone();
        if id.trust_domain() != self.trust_domain() {
            return Err(RequestError::Foreign(id));
        }
        if !matches!(id.kind(), SpiffeIdKind::Node { .. }) {
            return Err(RequestError::NotANode(id));
        }
        if !self.0.config.has_node(&id) {
            return Err(RequestError::OtherCluster(id));
        }
        self.permits(&id)?;
        let presented = Presented::from(peer);
        let lineage = self.lineage_of(&id, &presented).await?;
        Ok(Node { id, presented, lineage })
    }

    /// The lineage for which a certificate speaks.
    pub(super) async fn lineage_of(&self, id: &SpiffeId, presented: &Presented) -> Result<Held, RequestError> {
        let refused = |source| RequestError::Lineage { node: id.clone(), source };
        let speaks = |lineage: &Lineage| lineage.speaks(&presented.mark);
        // In this order: what is no longer pending is known.
        let pending = self.0.renewals.of(id.principal());
        let known = self.0.records.known_lineage(id.principal());
        let pending = pending.filter(|pending| {
            // A new lineage ends the old one, however far that has come here.
            let anew = |known: &Stored<Lineage>| {
                known.revision > pending.base() && !known.record.is_the_same_as(&pending.lineage)
            };
            !known.as_ref().is_some_and(anew)
        });
        // What went on here is newer than what it went on from, and than what the store was told of it on the way.
        let is_older = |stored: &Stored<Lineage>| {
            let gone_on =
                |pending: &Arc<Pending>| stored.revision <= pending.base() || pending.has_told(&stored.record);
            pending.as_ref().is_some_and(gone_on)
        };
        let known = known.filter(|known| !is_older(known));
        if let Some(pending) = pending.as_ref().filter(|pending| speaks(&pending.lineage).is_ok()) {
            return Ok(Held::Pending(pending.clone()));
        }
        if let Some(known) = known.clone().filter(|known| speaks(&known.record).is_ok()) {
            return Ok(Held::Stored(known));
        }
        let latest = match (&known, &pending) {
            (Some(known), _) => Some(&known.record),
            (None, Some(pending)) => Some(&pending.lineage),
            (None, None) => None,
        };
        // Another replica may know better.
        match self.0.records.lineage(id.principal()).await {
            Ok(Some(found)) => match speaks(&found.record) {
                // What was pending on it goes on where it is; a copy of what it began with does not.
                Ok(()) if is_older(&found) => {
                    Err(refused(latest.and_then(|latest| speaks(latest).err()).unwrap_or(LineageRefusal::Unknown)))
                }
                Ok(()) => Ok(Held::Stored(found)),
                // Of an intermediate that no replica has it is not even that.
                Err(_)
                    if is_younger(&found.record.latest, presented.issued, &presented.mark)
                        && self.is_of_a_replica(presented.issuer) =>
                {
                    Err(RequestError::Untold(id.clone()))
                }
                Err(refusal) => Err(refused(refusal)),
            },
            Ok(None) => Err(refused(LineageRefusal::Unknown)),
            Err(error) if error.is_away() => match latest {
                // Older than what is known here is older for everybody.
                Some(latest) if presented.issued < latest.latest.issued_at => {
                    Err(speaks(latest).err().map_or(error.into(), refused))
                }
                // Another replica gave it, to which the node cannot go any more. Once it went on here, it goes on from there.
                Some(_) if pending.is_none() && self.is_of_a_replica(presented.issuer) => {
                    known.map(Held::Younger).ok_or(error.into())
                }
                _ => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the certificate of this fingerprint is what a replica of this CA signs with.
    fn is_of_a_replica(&self, issuer: Fingerprint) -> bool {
        let replicas = self.0.presences.known();
        let mut held = replicas.iter().flat_map(|state| state.presence.held.iter().chain([&state.presence.signing]));
        self.hierarchy().intermediate().info().fingerprint == issuer || held.any(|held| held.intermediate == issuer)
    }

    /// A node's next certificate.
    pub(crate) async fn renew(&self, node: Node, csr: &Csr, ttl: Duration) -> Result<Reply, RequestError> {
        let (hierarchy, now) = (self.issuing()?, (self.0.clock)());
        let permit = self.permits(&node.id)?;
        if let Held::Pending(pending) = &node.lineage
            && pending.is_too_old(now)
        {
            return Err(RequestError::AwayTooLong(node.id));
        }
        let renewal = match &node.lineage {
            Held::Younger(_) => Ok(Renewal::Issue),
            held => held.record().renew(&node.presented.mark, csr.key_hash()),
        };
        let stepped = match renewal {
            Err(refusal) => {
                return Err(self.refused_renewal(node.id, &node.presented, Some(csr.key_hash()), refusal).await);
            }
            Ok(Renewal::Issue) => true,
            // In place of one that was never received, where that cannot be repeated.
            Ok(Renewal::Repeat(leaf)) => match self.repeated(&node, leaf, &hierarchy, permit, now).await {
                Some(leaf) => return Ok(reply(hierarchy, node.id, leaf)),
                None => false,
            },
        };
        let issued = self.sign(&hierarchy, self.0.profiles.node(), csr, (&node.id).into(), Some(ttl), permit).await?;
        self.record(&issued, node.id.as_str(), Plug::NodeCertificate).await?;
        let leaf = Leaf::from(&issued);
        self.go_on(&node, &leaf, stepped, now).await?;
        Ok(reply(hierarchy, node.id, leaf))
    }

    /// The certificate that the node was given before, where it is worth giving out once more.
    async fn repeated(
        &self,
        node: &Node,
        leaf: Leaf,
        hierarchy: &Arc<Hierarchy>,
        permit: Permit,
        now: SystemTime,
    ) -> Option<Leaf> {
        if !is_repeatable(hierarchy, &leaf, permit, now) {
            return None;
        }
        if leaf.is_whole() {
            return Some(leaf);
        }
        // Here is only what tells it apart.
        let found = self.0.records.lineage(node.id.principal()).await.ok().flatten()?;
        Some(found.record.latest).filter(|latest| latest.print == leaf.print)
    }

    /// Makes `leaf` the latest certificate of the node's lineage: in the store, or here while that is away.
    async fn go_on(&self, node: &Node, leaf: &Leaf, stepped: bool, now: SystemTime) -> Result<(), RequestError> {
        let (mut held, principal) = (node.lineage.clone(), node.id.principal());
        for _ in 0..TRIES {
            let next = match stepped {
                true => held.record().next(leaf.clone(), &node.presented.mark),
                false => held.record().instead(leaf.clone()),
            };
            let (before, pending) = match &held {
                Held::Stored(stored) => {
                    match self.0.records.put(family::NODES, principal, Expected::At(stored.revision), &next).await {
                        Ok(_revision) => return Ok(()),
                        Err(error) if error.is_conflict() => return Err(RequestError::Raced(node.id.clone())),
                        Err(error) if !error.is_away() => return Err(error.into()),
                        Err(error) => self.without_the_store(node, &error),
                    }
                    // What was pending there is over, since the store went on from elsewhere.
                    let before = self.0.renewals.of(principal).filter(|before| stored.revision > before.base());
                    (before, Pending::begin(node.id.clone(), stored, next, stepped, now))
                }
                Held::Pending(pending) => (Some(pending.clone()), pending.next(next, stepped)),
                Held::Younger(stored) => {
                    let (id, from) = (node.id.clone(), &node.presented.mark);
                    (None, Pending::begin_from(id, stored, from, leaf.clone(), now))
                }
            };
            if self.0.renewals.keep(before, pending).await? {
                self.0.metrics.provisional_renewals.inc();
                return Ok(());
            }
            // The store was told in between, or another request was quicker.
            held = self.lineage_of(&node.id, &node.presented).await?;
            if !matches!(held, Held::Younger(_)) && !held.record().is_latest(&node.presented.mark) {
                break;
            }
        }
        Err(RequestError::Raced(node.id.clone()))
    }

    fn without_the_store(&self, node: &Node, error: &RecordError) {
        tracing::warn!(node = %node.id, reason = %alcazar_service::process::chain(error), "a node is renewed without the store, which is told when it answers");
    }
}

/// How often a renewal is put on what has just changed under it.
const TRIES: usize = 4;
