//! One client's stream: who it is, what it may ask for, and its subscriptions. Plain data; `server` moves the bytes.

use std::collections::BTreeMap;

use alcazar_api::envoy::Any;
use alcazar_api::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource};
use alcazar_identity::SpiffeId;

use crate::delta::{Answer, Batch, Outcome, Request, Subscription};
use crate::resource::{Kind, Name, View};
use crate::snapshot::Snapshot;
use crate::status::{ProxyStatus, RefusedResource};

/// A client and its subscriptions.
pub(crate) struct Session {
    peer: SpiffeId,
    node: String,
    subscriptions: BTreeMap<Kind, Subscription>,
}

impl Session {
    pub(crate) fn new(peer: SpiffeId) -> Self {
        Self { peer, node: String::new(), subscriptions: BTreeMap::new() }
    }

    /// What the client calls itself.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Takes a request; the outcome is for the log.
    ///
    /// # Errors
    /// When the client asks for what it may not, or cannot, have. The stream is over then.
    pub(crate) fn take(
        &mut self,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<(Kind, Outcome), RefusedRequest> {
        let kind = Kind::of_url(&request.type_url).ok_or(RefusedRequest::Type(request.type_url))?;
        if let Some(node) = request.node.filter(|node| !node.id.is_empty()) {
            self.claim(node.id, snapshot)?;
        }
        let view = View::new(snapshot.set(kind), &self.peer);
        let foreign = request.resource_names_subscribe.iter().find(|name| view.is_another_s(name));
        if let Some(name) = foreign {
            return Err(RefusedRequest::Foreign { peer: self.peer.clone(), kind, name: name.clone() });
        }
        let names = |names: Vec<String>| names.into_iter().map(Name::from).collect();
        let answer = (!request.response_nonce.is_empty()).then(|| Answer {
            nonce: request.response_nonce,
            refusal: request.error_detail.map(|status| status.message),
        });
        let subscription = self.subscriptions.entry(kind).or_default();
        let outcome = subscription.take(Request {
            subscribe: names(request.resource_names_subscribe),
            unsubscribe: names(request.resource_names_unsubscribe),
            initial: request.initial_resource_versions.into_iter().map(|(name, v)| (Name::from(name), v)).collect(),
            answer,
        });
        match subscription.len() {
            many if many > MAX_NAMES => Err(RefusedRequest::TooMany { kind, names: many }),
            _ => Ok((kind, outcome)),
        }
    }

    /// The next response to send now, if there is one.
    pub(crate) fn next(&mut self, snapshot: &Snapshot) -> Option<DeltaDiscoveryResponse> {
        let Self { peer, subscriptions, .. } = self;
        // In the order of kinds, which is the order of pushing.
        subscriptions.iter_mut().find_map(|(kind, subscription)| {
            let view = View::new(snapshot.set(*kind), peer);
            Some(response(*kind, subscription.next(view)?, view, snapshot.number))
        })
    }

    /// Writes what the client has taken.
    pub(crate) fn report(&self, snapshot: &Snapshot, status: &mut ProxyStatus) {
        status.node.clone_from(&self.node);
        let view = |kind: &Kind| View::new(snapshot.set(*kind), &self.peer);
        let all = self.subscriptions.iter().all(|(kind, subscription)| subscription.is_settled(view(kind)));
        if all && !self.subscriptions.is_empty() {
            status.answered = snapshot.number;
        }
        status.given = self.subscriptions.iter().map(|(kind, subscription)| (*kind, subscription.held())).collect();
        status.refused =
            self.subscriptions.iter().flat_map(|(kind, subscription)| refused(*kind, subscription)).collect();
    }

    /// Takes the client's word for which workload it is; that it may be, its certificate says.
    fn claim(&mut self, node: String, snapshot: &Snapshot) -> Result<(), RefusedRequest> {
        if View::new(snapshot.set(Kind::Workload), &self.peer).is_another_s(&node) {
            return Err(RefusedRequest::Node { peer: self.peer.clone(), node });
        }
        self.node = node;
        Ok(())
    }
}

/// Why a stream is ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusedRequest {
    #[error("no resources of the type {0:?} are served here")]
    Type(String),
    #[error("{peer} is not the identity of the workload {node:?}")]
    Node { peer: SpiffeId, node: String },
    #[error("{peer} may not have the {kind} {name:?}: it is another's")]
    Foreign { peer: SpiffeId, kind: Kind, name: String },
    #[error("{names} names of one kind are too many: at most {MAX_NAMES}")]
    TooMany { kind: Kind, names: usize },
}

fn response(kind: Kind, batch: Batch, view: View<'_>, generation: u64) -> DeltaDiscoveryResponse {
    let resource = |name: Name| {
        let resource = view.get(&name)?;
        Some(WireResource {
            name: name.to_string(),
            version: resource.version.to_string(),
            resource: Some(Any { type_url: kind.url().to_owned(), value: resource.body.clone() }),
            ..WireResource::default()
        })
    };
    DeltaDiscoveryResponse {
        system_version_info: generation.to_string(),
        type_url: kind.url().to_owned(),
        nonce: batch.nonce,
        resources: batch.changed.into_iter().filter_map(resource).collect(),
        removed_resources: batch.removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn refused(kind: Kind, subscription: &Subscription) -> impl Iterator<Item = RefusedResource> {
    subscription.refused().iter().map(move |(name, refusal)| RefusedResource {
        kind,
        name: name.to_string(),
        version: refusal.version,
        reason: refusal.reason.clone(),
    })
}

/// As many names as one client may have us remember, of each kind.
const MAX_NAMES: usize = 20_000;
