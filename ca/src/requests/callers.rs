//! Requests of callers other than nodes with a join token or their certificate.

use std::{
    borrow::Cow,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use alcazar_identity::{SpiffeId, SpiffeIdKind};
use alcazar_mtls::PeerIdentity;
use alcazar_store::{Expected, Revision};
use http::HeaderMap;

use super::{Node, Reply, reply};
use crate::{
    ca::Ca,
    callers::{Bearer, CallerError, Door, MachineEvidence, Plug, bearer_token},
    csr::Csr,
    records::{Leaf, Lineage, family},
    refusal::RequestError,
};

/// Who asks for a certificate by Istio's CSR API.
pub(crate) enum Caller {
    /// A node, by its certificate.
    Node(Box<Node>),
    /// The holder of a good token.
    Bearer(Bearer),
}

/// Refuses a bearer token beside other evidence: which of them decides would be chance.
pub(crate) fn no_bearer(headers: &HeaderMap) -> Result<(), RequestError> {
    match headers.contains_key(http::header::AUTHORIZATION) {
        true => Err(RequestError::Caller { plug: Plug::Bearer, source: CallerError::Beside }),
        false => Ok(()),
    }
}

impl Caller {
    /// Whose limits count: a node's, or those of one pod, since all pods of an account have one identity.
    pub(crate) fn limited_as(&self) -> Cow<'_, str> {
        match self {
            Self::Node(node) => node.id.as_str().into(),
            Self::Bearer(bearer) => bearer.limited_as(),
        }
    }

    /// When the certificate ends that a node renews.
    pub(crate) fn present(&self) -> Option<SystemTime> {
        match self {
            Self::Node(node) => Some(node.not_after()),
            Self::Bearer(_) => None,
        }
    }
}

impl Ca {
    /// Where those come in who have proved nothing.
    pub(super) fn door(&self, from: Option<IpAddr>) -> Door<'_> {
        Door { admission: &self.0.admission, from }
    }

    /// Who asks, by what the request carries: a bearer token is decided by the tokens' plugs alone, also beside a good
    /// certificate.
    pub(crate) async fn caller(
        &self,
        headers: &HeaderMap,
        peer: Option<&PeerIdentity>,
        from: Option<IpAddr>,
    ) -> Result<Caller, RequestError> {
        let token = bearer_token(headers).map_err(|source| RequestError::Caller { plug: Plug::Bearer, source })?;
        match token {
            Some(token) => Ok(Caller::Bearer(self.0.callers.bearer(token, self.door(from)).await?)),
            None => Ok(Caller::Node(Box::new(self.node(peer).await?))),
        }
    }

    /// Whether the caller, by the header that Istio's clients send, means this cluster.
    pub(crate) fn right_cluster(&self, caller: &Caller, headers: &HeaderMap) -> Result<(), RequestError> {
        let said = headers.get("clusterid").map(|value| value.to_str().unwrap_or("?"));
        let plug = match caller {
            Caller::Node(_) => Plug::NodeCertificate,
            Caller::Bearer(bearer) => bearer.plug,
        };
        self.0.callers.check_cluster(said).map_err(|source| RequestError::Caller { plug, source })
    }

    /// The node behind a request that a certificate alone can make.
    pub(crate) async fn calling_node(
        &self,
        headers: &HeaderMap,
        peer: Option<&PeerIdentity>,
    ) -> Result<Node, RequestError> {
        no_bearer(headers)?;
        self.node(peer).await
    }

    /// A certificate for the holder of a token: its own, or that of `other`, for whom it asks.
    pub(crate) async fn issue_to_bearer(
        &self,
        bearer: &Bearer,
        other: Option<&SpiffeId>,
        csr: &Csr,
        ttl: Duration,
    ) -> Result<Reply, RequestError> {
        let refused = |source| RequestError::Caller { plug: bearer.plug, source };
        let id = match other {
            Some(other) if other.trust_domain() != self.trust_domain() => {
                return Err(RequestError::Foreign(other.clone()));
            }
            Some(other) if crate::serving::is_the_cas(other) => {
                return Err(refused(CallerError::WrongKind(other.clone())));
            }
            Some(other) => {
                bearer.act_for(&self.0.callers, other).map_err(refused)?;
                other
            }
            // A node begins a lineage, by attestation.
            None if matches!(bearer.id.kind(), SpiffeIdKind::Node { .. }) => {
                return Err(refused(CallerError::WrongKind(bearer.id.clone())));
            }
            None => &bearer.id,
        };
        self.issue_for(bearer.id.as_str(), bearer.plug, id, csr, ttl).await
    }

    /// A node's first certificate, for a token: that of a node agent's service account, or one that a rule makes a node.
    pub(crate) async fn attest_bearer(
        &self,
        from: Option<IpAddr>,
        token: &str,
        csr: &[u8],
        expects: Option<&SpiffeId>,
    ) -> Result<Reply, RequestError> {
        let (bearer, node) = self.0.callers.attesting(token, self.door(from)).await?;
        is_expected(&node, expects)?;
        self.begin(node, bearer.id.as_str(), bearer.plug, csr).await
    }

    /// A node's first certificate, for a machine certificate whose key signed a nonce of ours and this request.
    pub(crate) async fn attest_machine(
        &self,
        from: Option<IpAddr>,
        evidence: &MachineEvidence<'_>,
        expects: Option<&SpiffeId>,
    ) -> Result<Reply, RequestError> {
        let refused = |source| RequestError::Caller { plug: Plug::Machine, source };
        let stranger = self.door(from).stranger()?;
        let (node, caller) = self.0.callers.machine(evidence, (self.0.clock)()).map_err(refused)?;
        stranger.proved();
        is_expected(&node, expects)?;
        self.begin(node, &caller, Plug::Machine, evidence.csr).await
    }

    /// Begins a node's lineage, in place of whatever lineage there was before. Evidence that can be shown again does so again.
    async fn begin(&self, node: SpiffeId, caller: &str, plug: Plug, csr: &[u8]) -> Result<Reply, RequestError> {
        if !self.0.config.has_node(&node) {
            return Err(RequestError::OtherCluster(node));
        }
        let known = self.0.records.known_lineage(node.principal());
        let _pass = self.admit(node.as_str(), self.ended(known.as_ref())).await?;
        let permit = self.permits(&node)?;
        let csr = Csr::from_der(csr)?;
        let hierarchy = self.issuing()?;
        let found = self.0.records.get::<Lineage>(family::NODES, node.principal()).await?;
        // A join token that was consumed before what is found here comes too late to replace this.
        let (expected, began) = match &found {
            Some(found) => (Expected::At(found.revision), found.revision),
            None => (Expected::Absent, Revision::new(0)),
        };
        let issued = self.sign(&hierarchy, self.0.profiles.node(), &csr, (&node).into(), None, permit).await?;
        self.record(&issued, caller, plug).await?;
        let leaf = Leaf::from(&issued);
        let lineage = Lineage::begin(leaf.clone(), began);
        match self.0.records.put(family::NODES, node.principal(), expected, &lineage).await {
            Err(error) if error.is_conflict() => return Err(RequestError::Raced(node)),
            outcome => outcome?,
        };
        Ok(reply(hierarchy, node, leaf))
    }
}

/// Refuses to make a node what it does not expect to be: it would refuse its certificate, and its evidence may be good once.
pub(super) fn is_expected(node: &SpiffeId, expects: Option<&SpiffeId>) -> Result<(), RequestError> {
    match expects.filter(|expects| *expects != node) {
        Some(expects) => Err(RequestError::OtherNode { is: node.clone(), expects: expects.clone() }),
        None => Ok(()),
    }
}
