//! authenticate -> authorize -> check the CSR -> sign -> record -> reply.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, SpiffeId, SpiffeIdKind};
use alcazar_store::{Expected, Revision};

use crate::{
    admission::Asked,
    ca::Ca,
    callers::Plug,
    csr::{Csr, KeyHash},
    hierarchy::Hierarchy,
    issue::{self, IssueError, Issued, Subject},
    ledger::Entry,
    profile::Profile,
    records::{
        Attestation, Consumed, Leaf, Lineage, Registration, RegistrationId, Stored, TokenRecord, TokenRefusal, family,
    },
    refusal::RequestError,
    revocation::Permit,
    serial::Serial,
    token::{JoinToken, TokenHash},
};

mod callers;
mod forks;
mod nodes;
mod registered;
mod returning;

pub(crate) use self::{
    callers::{Caller, no_bearer},
    nodes::Node,
};

/// A certificate as the caller gets it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) id: SpiffeId,
    /// Leaf first, root excluded.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) issued_at: SystemTime,
    pub(crate) not_after: SystemTime,
    /// What it was issued under. Leaf, chain and bundle are of one moment, also while the intermediate is renewed.
    pub(crate) hierarchy: Arc<Hierarchy>,
}

impl Ca {
    /// A node's first certificate, for a join token.
    pub(crate) async fn attest(
        &self,
        from: Option<IpAddr>,
        token: &str,
        csr: &[u8],
        expects: Option<&SpiffeId>,
    ) -> Result<Reply, RequestError> {
        let stranger = self.door(from).stranger()?;
        let token: JoinToken = token.parse().map_err(RequestError::TokenText)?;
        let hash = token.hash();
        let turn = stranger.turn(Asked::Store).await?;
        let found = self.0.records.get::<TokenRecord>(family::TOKENS, hash.as_str()).await?;
        let Some(Stored { record, revision }) = found else { return Err(RequestError::Token(TokenRefusal::Unknown)) };
        // Made before the configuration named another cluster.
        if !self.0.config.has_node(&record.node) {
            return Err(RequestError::OtherCluster(record.node));
        }
        if !self.hierarchy().trusts(token.pin()) {
            return Err(RequestError::TokenPin);
        }
        callers::is_expected(&record.node, expects)?;
        self.permits(&record.node)?;
        let csr = Csr::from_der(csr)?;
        let lineage = self.0.records.get::<Lineage>(family::NODES, record.node.principal()).await?;
        let attestation = record.attest(revision, lineage.as_ref(), csr.key_hash(), (self.0.clock)());
        let attestation = attestation.map_err(RequestError::Token)?;
        stranger.proved();
        drop(turn);
        let _pass = self.admit(record.node.as_str(), self.ended(lineage.as_ref())).await?;
        let (hierarchy, now) = (self.issuing()?, (self.0.clock)());
        let permit = self.permits(&record.node)?;
        let leaf = match attestation {
            Attestation::Repeat { leaf, finish } if is_repeatable(&hierarchy, &leaf, permit, now) => {
                if finish {
                    self.begin_lineage(&record.node, leaf.clone(), revision).await?;
                }
                leaf
            }
            Attestation::Issue | Attestation::Repeat { .. } => {
                let issued =
                    self.sign(&hierarchy, self.0.profiles.node(), &csr, (&record.node).into(), None, permit).await?;
                let caller = format!("join token {}", hash.as_str().chars().take(16).collect::<String>());
                self.record(&issued, &caller, Plug::JoinToken).await?;
                let leaf = Leaf::from(&issued);
                let consumed = TokenRecord { consumed: Some(Consumed { leaf: leaf.clone() }), ..record.clone() };
                // Of two uses at once one writes this first. The other is a second try with the same key, or finds the token used.
                let put = self.0.records.put(family::TOKENS, hash.as_str(), Expected::At(revision), &consumed).await;
                match put {
                    Err(error) if error.is_conflict() => self.attested_meanwhile(&hash, csr.key_hash()).await?,
                    outcome => {
                        self.begin_lineage(&record.node, leaf.clone(), outcome?).await?;
                        leaf
                    }
                }
            }
        };
        Ok(reply(hierarchy, record.node, leaf))
    }

    /// When the certificate ended of a node that attests anew because it could not renew in time: its workloads wait for it. One
    /// that is good still waits like everybody.
    fn ended(&self, lineage: Option<&Stored<Lineage>>) -> Option<SystemTime> {
        lineage.map(|lineage| lineage.record.latest.not_after).filter(|end| *end <= (self.0.clock)())
    }

    /// The certificate that another request had for the same token while this one was answered.
    async fn attested_meanwhile(&self, token: &TokenHash, key: KeyHash) -> Result<Leaf, RequestError> {
        let found = self.0.records.get::<TokenRecord>(family::TOKENS, token.as_str()).await?;
        let Some(Stored { record, revision }) = found else { return Err(RequestError::Token(TokenRefusal::Unknown)) };
        let lineage = self.0.records.get::<Lineage>(family::NODES, record.node.principal()).await?;
        let attestation = record.attest(revision, lineage.as_ref(), key, (self.0.clock)());
        match attestation.map_err(RequestError::Token)? {
            Attestation::Repeat { leaf, finish } => {
                if finish {
                    self.begin_lineage(&record.node, leaf.clone(), revision).await?;
                }
                Ok(leaf)
            }
            Attestation::Issue => Err(RequestError::Raced(record.node)),
        }
    }

    /// A certificate for the workload that is registered for the node under this name.
    pub(crate) async fn issue_registered(
        &self,
        node: &Node,
        registration: &str,
        csr: &[u8],
    ) -> Result<Reply, RequestError> {
        let registration = self.registration_of(node, registration).await?;
        let life = self.life(&registration)?;
        self.issue_workload(node, &registration, &Csr::from_der(csr)?, life).await
    }

    /// How long the certificates of a registration live.
    fn life(&self, registration: &Registration) -> Result<Duration, RequestError> {
        let profile = self.profile(registration)?;
        Ok(registration.ttl().unwrap_or(profile.default_ttl()).min(profile.max_ttl()))
    }

    /// The profile of a registration's certificates, which the configuration may have lost since.
    pub(crate) fn profile(&self, registration: &Registration) -> Result<&Profile, RequestError> {
        self.0.profiles.of(registration.profile()).ok_or_else(|| RequestError::NoProfile {
            registration: registration.id().to_string(),
            profile: registration.profile().unwrap_or_default().into(),
        })
    }

    /// A certificate for an identity that some registration gives to the node, for `ttl` but no longer than a registration
    /// would have given; or for one of a pod that the cluster has scheduled on the node.
    pub(crate) async fn issue_impersonated(
        &self,
        node: &Node,
        id: &SpiffeId,
        csr: &Csr,
        ttl: Duration,
    ) -> Result<Reply, RequestError> {
        let scheduled = self.is_scheduled(&node.id, id);
        let registered = self.registered(&node.id, id, scheduled).await?;
        let mut longest = None;
        for registration in &registered {
            let life = self.life(registration)?;
            if longest.is_none_or(|(longest, _)| life > longest) {
                longest = Some((life, registration));
            }
        }
        match longest {
            Some((longest, registration)) => self.issue_workload(node, registration, csr, ttl.min(longest)).await,
            None if scheduled => self.issue_for(node.id.as_str(), Plug::NodeCertificate, id, csr, ttl).await,
            None => Err(RequestError::NotRegistered { node: node.id.clone(), what: format!("the identity {id}") }),
        }
    }

    /// The registrations that give the identity to the node. One that another replica has just put in is looked for where it
    /// decides whether anything is issued; what it says of the certificates of a pod, which has them anyway, comes by the watch.
    async fn registered(
        &self,
        node: &SpiffeId,
        id: &SpiffeId,
        scheduled: bool,
    ) -> Result<Vec<Arc<Registration>>, RequestError> {
        let records = &self.0.records;
        let known = records.known_registered(node, id);
        if !known.is_empty() || scheduled && records.follows_registrations() {
            return Ok(known);
        }
        match records.registered(node, id).await {
            Err(error) if scheduled && error.is_away() => Ok(known),
            outcome => Ok(outcome?),
        }
    }

    /// Whether a pod of this identity is on the node, as far as the cluster's API says.
    fn is_scheduled(&self, node: &SpiffeId, id: &SpiffeId) -> bool {
        let SpiffeIdKind::Node { node, .. } = node.kind() else { return false };
        let own = id.trust_domain() == self.trust_domain() && !crate::serving::is_the_cas(id);
        own && self.0.callers.kubernetes().is_some_and(|plug| plug.is_scheduled(node, id))
    }

    async fn issue_workload(
        &self,
        node: &Node,
        registration: &Registration,
        csr: &Csr,
        ttl: Duration,
    ) -> Result<Reply, RequestError> {
        let (hierarchy, profile) = (self.issuing()?, self.profile(registration)?);
        let id = registration.spiffe_id();
        // The allow-list may have become shorter since the names were registered.
        let (dns, more): (Vec<_>, Vec<_>) =
            registration.dns_names().cloned().partition(|name| profile.allows_name(id, name));
        if !more.is_empty() {
            tracing::warn!(registration = %registration.id(), spiffe_id = %id, names = ?more, "a certificate goes without DNS names that its profile does not allow any more");
        }
        let (subject, permit) = (Subject { id, dns: &dns }, self.permits(id)?);
        let issued = self.sign(&hierarchy, profile, csr, subject, Some(ttl), permit).await?;
        self.record_for(&issued, node.id.as_str(), Plug::NodeCertificate, Some(registration.id())).await?;
        Ok(reply(hierarchy, issued.id.clone(), Leaf::from(&issued)))
    }

    /// A certificate for an identity that is not registered: of the default profile, without DNS names.
    pub(crate) async fn issue_for(
        &self,
        caller: &str,
        plug: Plug,
        id: &SpiffeId,
        csr: &Csr,
        ttl: Duration,
    ) -> Result<Reply, RequestError> {
        // Agents and proxies know the CA by it.
        if crate::serving::is_the_cas(id) {
            return Err(RequestError::OwnIdentity(id.clone()));
        }
        // Who is no node of ours says nothing of what it enforces. Before the hierarchy is looked at: a rotation sees the note.
        self.note_unreported(ttl.min(self.0.profiles.default().max_ttl())).await?;
        let hierarchy = self.issuing()?;
        let permit = self.permits(id)?;
        let issued = self.sign(&hierarchy, self.0.profiles.default(), csr, id.into(), Some(ttl), permit).await?;
        self.record(&issued, caller, plug).await?;
        Ok(reply(hierarchy, issued.id.clone(), Leaf::from(&issued)))
    }

    /// What to issue under: nothing where nobody would believe it.
    fn issuing(&self) -> Result<Arc<Hierarchy>, RequestError> {
        match self.revoked_issuer() {
            Some((intermediate, _)) => Err(RequestError::RevokedIssuer(intermediate)),
            None => Ok(self.hierarchy()),
        }
    }

    /// By the profile; its default life where `ttl` is none. A signer that waits for a token does so where a thread may wait.
    async fn sign(
        &self,
        hierarchy: &Arc<Hierarchy>,
        profile: &Profile,
        csr: &Csr,
        subject: Subject<'_>,
        ttl: Option<Duration>,
        permit: Permit,
    ) -> Result<Issued, RequestError> {
        let now = (self.0.clock)();
        profile.check_key(csr.kind())?;
        let ttl = ttl.unwrap_or(profile.default_ttl()).min(profile.max_ttl());
        let (serial, earliest) = (Serial::random()?, permit.earliest);
        if !hierarchy.intermediate().signer().is_remote() {
            return Ok(issue::issue_from(csr, subject, ttl, hierarchy.intermediate(), serial, now, earliest)?);
        }
        let (hierarchy, csr) = (Arc::clone(hierarchy), csr.clone());
        let (id, dns) = (subject.id.clone(), subject.dns.to_vec());
        let issued = self.0.signing.with(move || {
            let subject = Subject { id: &id, dns: &dns };
            issue::issue_from(&csr, subject, ttl, hierarchy.intermediate(), serial, now, earliest)
        });
        let issued = issued.await.map_err(IssueError::Sign).and_then(|issued| issued);
        match &issued {
            Ok(_) => self.0.signing.note(Ok(())),
            Err(IssueError::Sign(error)) => self.0.signing.note(Err(error)),
            // It has not come to that.
            Err(_) => {}
        }
        Ok(issued?)
    }

    /// On record first, then in the log; the reply comes after.
    async fn record(&self, issued: &Issued, caller: &str, plug: Plug) -> Result<(), RequestError> {
        self.record_for(issued, caller, plug, None).await
    }

    /// The same, with the registration by which it was issued.
    async fn record_for(
        &self,
        issued: &Issued,
        caller: &str,
        plug: Plug,
        registration: Option<&RegistrationId>,
    ) -> Result<(), RequestError> {
        let registration = registration.map(RegistrationId::as_str);
        self.0.ledger.record(&Entry::Certificate { issued, caller }).await?;
        self.0.metrics.issued.inc();
        let not_after = alcazar_identity::rfc3339(issued.validity.not_after());
        tracing::info!(target: "alcazar::issued", spiffe_id = %issued.id, serial = %issued.serial, not_after, caller, %plug, registration, clamped = issued.clamped, "issued a certificate");
        if issued.clamped {
            tracing::warn!(spiffe_id = %issued.id, serial = %issued.serial, not_after, "a certificate lives shorter than was asked, because the intermediate ends then");
        }
        Ok(())
    }

    /// Begins the lineage of the token that was consumed at `consumed`. It replaces whatever lineage there was before, even
    /// one that renews at this moment, but never its own, which may have gone on, nor that of a token consumed later.
    async fn begin_lineage(&self, node: &SpiffeId, leaf: Leaf, consumed: Revision) -> Result<(), RequestError> {
        let lineage = Lineage::begin(leaf, consumed);
        loop {
            let found = self.0.records.get::<Lineage>(family::NODES, node.principal()).await?;
            let expected = match found {
                Some(found) if found.record.latest.serial == lineage.latest.serial => return Ok(()),
                Some(found) if found.record.began_at_or_after(consumed) => {
                    return Err(RequestError::Token(TokenRefusal::MovedOn));
                }
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            };
            match self.0.records.put(family::NODES, node.principal(), expected, &lineage).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome.map(drop)?),
            }
        }
    }
}

fn is_repeatable(hierarchy: &Hierarchy, leaf: &Leaf, permit: Permit, now: SystemTime) -> bool {
    permit.covers(leaf.issued_at) && leaf.is_repeatable(hierarchy.intermediate().info().fingerprint, now)
}

fn reply(hierarchy: Arc<Hierarchy>, id: SpiffeId, leaf: Leaf) -> Reply {
    let chain = hierarchy.chain(&leaf.certificate);
    Reply { id, chain, issued_at: leaf.issued_at, not_after: leaf.not_after, hierarchy }
}

#[cfg(test)]
mod tests;
