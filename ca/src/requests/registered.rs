//! What is registered for a node: what somebody has put in, and what follows from the pods on it.

use std::sync::Arc;

use alcazar_identity::{SpiffeId, SpiffeIdKind};

use super::Node;
use crate::{
    ca::{AdminError, Ca},
    callers::{
        Accounts, CallerError, KubernetesPlug, Plug, account_of, in_place_of, registration_of_pods,
        registrations_of_pods,
    },
    records::{Registration, RegistrationId},
    refusal::RequestError,
};

impl Ca {
    /// The registration of this name, if it is the node's.
    pub(crate) async fn registration_of(&self, node: &Node, name: &str) -> Result<Arc<Registration>, RequestError> {
        let denied = || not_registered(&node.id, format!("the registration {name:?}"));
        // A text that cannot be a name is one that is not registered.
        let id: RegistrationId = name.parse().map_err(|_reason| denied())?;
        if id.is_of_pods() {
            return self.registration_of_pods(&node.id, &id);
        }
        let found = self.0.records.registration(id.as_str()).await?;
        found.filter(|found| *found.node() == node.id).ok_or_else(denied)
    }

    /// All that is registered for a node, where `accounts` have pods on it.
    pub(crate) fn registrations_of(&self, node: &SpiffeId, accounts: &Accounts) -> Vec<Arc<Registration>> {
        let mut known = self.0.records.known_registrations(node);
        known.extend(self.registrations_for(node, accounts, &known));
        known
    }

    /// The accounts that have a pod on the node, as it is told.
    ///
    /// # Errors
    /// While the pods are not known.
    pub(crate) fn accounts_on(&self, node: &SpiffeId) -> Result<Accounts, CallerError> {
        // The name of a node is one in its own cluster.
        match (self.0.callers.kubernetes(), node.kind()) {
            (Some(plug), SpiffeIdKind::Node { node: name, .. }) if self.0.config.has_node(node) => {
                plug.accounts_on(name)
            }
            _ => Ok(Accounts::default()),
        }
    }

    /// Whether no node of Kubernetes that is told of pods has this name: a machine that had it would be told of them.
    ///
    /// # Errors
    /// When one has, or the pods are not known.
    pub fn has_no_pods(&self, node: &SpiffeId) -> Result<(), AdminError> {
        match self.accounts_on(node) {
            Ok(accounts) if accounts.is_empty() => Ok(()),
            Ok(_) => Err(AdminError::KubernetesNode(node.clone())),
            Err(_) => Err(AdminError::NoPods(node.clone())),
        }
    }

    /// What follows from pods: of one node, or of all of this cluster; `None` where no node is told, or the pods are not known.
    pub(crate) fn registrations_of_all_pods(&self, node: Option<&SpiffeId>) -> Option<Vec<Arc<Registration>>> {
        let names = self.0.callers.kubernetes().and_then(KubernetesPlug::nodes_with_pods)?;
        let nodes = match node {
            Some(node) => vec![node.clone()],
            None => {
                let config = &self.0.config;
                names
                    .iter()
                    .filter_map(|name| SpiffeId::node(&config.trust_domain, &config.cluster, name).ok())
                    .collect()
            }
        };
        let of = |node: &SpiffeId| {
            let accounts = self.accounts_on(node).unwrap_or_default();
            self.registrations_for(node, &accounts, &self.0.records.known_registrations(node))
        };
        Some(nodes.iter().flat_map(of).collect())
    }

    fn registrations_for(
        &self,
        node: &SpiffeId,
        accounts: &Accounts,
        recorded: &[Arc<Registration>],
    ) -> Vec<Arc<Registration>> {
        let Some(plug) = self.0.callers.kubernetes() else { return Vec::new() };
        registrations_of_pods(node, accounts, |account| plug.is_excepted(account), recorded)
    }

    /// What follows from the pods on a node, by its name. The store is not asked: nobody has put it in.
    fn registration_of_pods(&self, node: &SpiffeId, id: &RegistrationId) -> Result<Arc<Registration>, RequestError> {
        let denied = |why: &str| not_registered(node, format!("the registration {id} ({why})"));
        let unknown = |source| RequestError::Caller { plug: Plug::Kubernetes, source };
        let accounts = self.accounts_on(node).map_err(unknown)?;
        let plug = self.0.callers.kubernetes().ok_or_else(|| denied("nodes are told of no pods here"))?;
        let account = account_of(id, &accounts);
        let account = account.ok_or_else(|| denied("no pod of the account is on the node, or all are finished"))?;
        if plug.is_excepted(account) {
            return Err(denied("callers.kubernetes.podsExcept has the account"));
        }
        let registration = registration_of_pods(node, account).ok_or_else(|| denied("nobody has its identity"))?;
        let recorded = self.0.records.known_registered(node, registration.spiffe_id());
        match in_place_of(&registration, &recorded) {
            Some(other) => Err(denied(&format!("{} is in its place", other.id()))),
            None => Ok(Arc::new(registration)),
        }
    }
}

fn not_registered(node: &SpiffeId, what: String) -> RequestError {
    RequestError::NotRegistered { node: node.clone(), what }
}
