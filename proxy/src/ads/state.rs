//! What the control plane has said so far: delta xDS as plain data.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use alcazar_api::envoy::core::Node;
use alcazar_api::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use alcazar_api::envoy::{Status, UnpackError, unpack};
use alcazar_api::mesh::{POLICY_URL, SERVICE_URL, WORKLOAD_URL, v1};
use alcazar_policy::{Compiled, WorkloadPolicy};

use crate::config::WorkloadName;
use crate::mesh::{Directory, InvalidService, InvalidWorkload, Service, Snapshot, Workload};

/// One proxy's subscriptions, and what came of them. It outlives streams: a new one tells what is known.
#[derive(Debug)]
pub struct State {
    name: WorkloadName,
    versions: BTreeMap<Kind, HashMap<String, String>>,
    /// `None`: never received. A kind that was answered without a resource is known to have none.
    workload: Option<Arc<Workload>>,
    policy: Option<Arc<Compiled>>,
    services: Option<BTreeMap<String, Arc<Service>>>,
}

/// The three kinds of resources that a proxy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Workload,
    Policy,
    Service,
}

impl State {
    /// Nothing known.
    pub fn new(name: WorkloadName) -> Self {
        Self { name, versions: BTreeMap::new(), workload: None, policy: None, services: None }
    }

    /// The first requests of a stream: one for each kind, with what is known from earlier streams.
    pub fn subscribe(&self) -> Vec<DeltaDiscoveryRequest> {
        let subscription = |(at, kind): (usize, &Kind)| DeltaDiscoveryRequest {
            // The first request of a stream says who asks.
            node: (at == 0).then(|| Node { id: self.name.to_string(), ..Node::default() }),
            type_url: kind.url().to_owned(),
            resource_names_subscribe: vec![match kind {
                Kind::Workload | Kind::Policy => self.name.to_string(),
                Kind::Service => WILDCARD.to_owned(),
            }],
            initial_resource_versions: self.versions.get(kind).cloned().unwrap_or_default(),
            ..DeltaDiscoveryRequest::default()
        };
        KINDS.iter().enumerate().map(subscription).collect()
    }

    /// Takes a response whole or, when anything in it is wrong, not at all; returns what to answer.
    ///
    /// # Errors
    /// When it is refused: what is known stays, and the answer (in the error) says why.
    pub fn take(&mut self, response: DeltaDiscoveryResponse) -> Result<DeltaDiscoveryRequest, Box<Refused>> {
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        match self.apply(response) {
            Ok(()) => Ok(answer),
            Err(why) => {
                let message = alcazar_service::process::chain(&why);
                answer.error_detail = Some(Status { code: INVALID_ARGUMENT, message, ..Status::default() });
                Err(Box::new(Refused { answer, why }))
            }
        }
    }

    /// All that is known, once all kinds have been answered.
    ///
    /// A workload or policy that the control plane has taken away denies everything.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let (workload, policy, services) = (self.workload.as_ref()?, self.policy.as_ref()?, self.services.as_ref()?);
        let services = Directory::new(services.values(), self.name.namespace());
        Some(Snapshot { workload: workload.clone(), policy: policy.clone(), services: Arc::new(services) })
    }

    fn apply(&mut self, response: DeltaDiscoveryResponse) -> Result<(), RefusedResource> {
        let kind = Kind::of_url(&response.type_url).ok_or(RefusedResource::Kind(response.type_url))?;
        match kind {
            Kind::Workload => {
                let found = self.own::<v1::Workload>(kind, &response.resources)?;
                let found = found.map(Workload::try_from).transpose().map_err(RefusedResource::Workload)?;
                match found {
                    Some(workload) => self.workload = Some(Arc::new(workload)),
                    None if self.is_removed(&response.removed_resources) => self.deny("workload"),
                    None => {}
                }
            }
            Kind::Policy => {
                let found = self.own::<v1::Policy>(kind, &response.resources)?;
                match found {
                    Some(policy) => self.policy = Some(Arc::new(Compiled::new(WorkloadPolicy::from(policy)))),
                    None if self.is_removed(&response.removed_resources) => self.deny("policy"),
                    None => {}
                }
            }
            Kind::Service => {
                let mut changed = Vec::with_capacity(response.resources.len());
                for resource in &response.resources {
                    let service: v1::Service = message(kind, resource)?;
                    let service = Service::try_from(service)
                        .map_err(|source| RefusedResource::Service { name: resource.name.clone(), source })?;
                    changed.push((resource.name.clone(), Arc::new(service)));
                }
                let services = self.services.get_or_insert_default();
                services.extend(changed);
                services.retain(|name, _| !response.removed_resources.contains(name));
            }
        }
        let versions = self.versions.entry(kind).or_default();
        versions.retain(|name, _| !response.removed_resources.contains(name));
        versions.extend(response.resources.into_iter().map(|resource| (resource.name, resource.version)));
        Ok(())
    }

    /// The one resource that is ours.
    fn own<M: prost::Message + Default>(
        &self,
        kind: Kind,
        resources: &[Resource],
    ) -> Result<Option<M>, RefusedResource> {
        let mut found = None;
        for resource in resources {
            if resource.name != self.name.as_str() {
                return Err(RefusedResource::Foreign(resource.name.clone()));
            }
            found = Some(message(kind, resource)?);
        }
        Ok(found)
    }

    fn is_removed(&self, removed: &[String]) -> bool {
        removed.iter().any(|name| name == self.name.as_str())
    }

    /// Never received: not ready. Received and taken away: nobody may call.
    fn deny(&mut self, what: &str) {
        if self.policy.is_some() {
            tracing::warn!(workload = %self.name, what, "the control plane took it away; every request is denied");
            self.policy = Some(Arc::new(Compiled::new(WorkloadPolicy::deny_all())));
        }
    }
}

impl Kind {
    fn url(self) -> &'static str {
        match self {
            Self::Workload => WORKLOAD_URL,
            Self::Policy => POLICY_URL,
            Self::Service => SERVICE_URL,
        }
    }

    fn of_url(url: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.url() == url)
    }
}

fn message<M: prost::Message + Default>(kind: Kind, resource: &Resource) -> Result<M, RefusedResource> {
    let name = || resource.name.clone();
    let any = resource.resource.as_ref().ok_or_else(|| RefusedResource::Empty(name()))?;
    unpack(kind.url(), any).map_err(|source| RefusedResource::Message { name: name(), source: Box::new(source) })
}

/// A response that was refused whole.
#[derive(Debug, thiserror::Error)]
#[error("the control plane's response was refused; what was known stays")]
pub struct Refused {
    /// What to answer (a NACK).
    pub answer: DeltaDiscoveryRequest,
    #[source]
    why: RefusedResource,
}

/// Why a resource cannot be used.
#[derive(Debug, thiserror::Error)]
enum RefusedResource {
    #[error("nobody asked for resources of type {0:?}")]
    Kind(String),
    #[error("nobody asked for {0:?}")]
    Foreign(String),
    #[error("the resource {0:?} is empty")]
    Empty(String),
    #[error("the resource {name:?} cannot be read")]
    Message { name: String, source: Box<UnpackError> },
    #[error("the workload cannot be used")]
    Workload(#[source] InvalidWorkload),
    #[error("the service {name:?} cannot be used")]
    Service { name: String, source: InvalidService },
}

const KINDS: [Kind; 3] = [Kind::Workload, Kind::Policy, Kind::Service];
const WILDCARD: &str = "*";
/// google.rpc.Code.
const INVALID_ARGUMENT: i32 = 3;
