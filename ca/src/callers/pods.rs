//! What the CA knows of the cluster's pods: who runs where.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1 as kubernetes;

use super::account::ServiceAccount;

/// The pods of the cluster, found by their name and by their node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    by_name: HashMap<PodName, Pod>,
    by_node: HashMap<String, OnNode>,
}

/// What is bound to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OnNode {
    names: BTreeSet<PodName>,
    /// Those of whom a pod is not finished.
    accounts: Accounts,
}

/// Accounts that have a pod somewhere.
pub(crate) type Accounts = Arc<BTreeSet<ServiceAccount>>;

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) uid: String,
    /// As whom it runs. Mirror pods, which a node makes of its own files for whatever namespace it likes, have none.
    pub(crate) account: Option<ServiceAccount>,
    /// The node that it is bound to; none before it is scheduled.
    pub(crate) node: Option<String>,
    /// Succeeded or failed: nothing of it runs any more. A pending pod counts as running, since its init containers do.
    pub(crate) finished: bool,
}

/// Namespace and name.
pub(crate) type PodName = (String, String);

impl Pods {
    /// Puts in a pod, or what became of it; whether that changes who is on some node.
    pub(crate) fn put(&mut self, name: PodName, pod: Pod) -> bool {
        if self.by_name.get(&name) == Some(&pod) {
            return false;
        }
        let node = pod.node.clone();
        let old = self.by_name.insert(name.clone(), pod).and_then(|old| old.node);
        let left = old.filter(|old| Some(old) != node.as_ref()).is_some_and(|old| self.leave(&old, &name));
        let came = node.is_some_and(|node| {
            self.by_node.entry(node.clone()).or_default().names.insert(name);
            self.count(&node)
        });
        left || came
    }

    /// Takes out a pod that is gone; whether that changes who is on its node.
    pub(crate) fn remove(&mut self, name: &PodName) -> bool {
        let node = self.by_name.remove(name).and_then(|old| old.node);
        node.is_some_and(|node| self.leave(&node, name))
    }

    fn leave(&mut self, node: &str, name: &PodName) -> bool {
        if let Some(on) = self.by_node.get_mut(node) {
            on.names.remove(name);
        }
        self.count(node)
    }

    /// Counts who is on a node; whether that is no longer who was.
    fn count(&mut self, node: &str) -> bool {
        let accounts: BTreeSet<_> =
            self.on(node).filter(|pod| !pod.finished).filter_map(|pod| pod.account.clone()).collect();
        let Some(on) = self.by_node.get_mut(node) else { return false };
        let changed = *on.accounts != accounts;
        if on.names.is_empty() {
            self.by_node.remove(node);
        } else if changed {
            on.accounts = Arc::new(accounts);
        }
        changed
    }

    /// The pod of this name in this namespace.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.by_name.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The accounts of which something is on this node: bound to it and not finished.
    pub(crate) fn accounts_on(&self, node: &str) -> Accounts {
        self.by_node.get(node).map(|on| on.accounts.clone()).unwrap_or_default()
    }

    /// The nodes that pods are bound to.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.by_node.keys().map(String::as_str)
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Pod> {
        self.by_node.get(node).into_iter().flat_map(|on| &on.names).filter_map(|name| self.by_name.get(name))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }
}

/// What matters of an object of the API; `None` for one without a name, which the API does not have.
pub(crate) fn read(object: &kubernetes::Pod) -> Option<(PodName, Pod)> {
    let metadata = &object.metadata;
    let (namespace, name) = (metadata.namespace.clone()?, metadata.name.clone()?);
    let spec = object.spec.as_ref();
    // The API server writes one into every pod but a mirror pod. Were that `default`, a node could be it in any namespace.
    let account = spec.and_then(|spec| spec.service_account_name.clone()).filter(|name| !name.is_empty());
    let account = account.map(|name| ServiceAccount { namespace: namespace.clone(), name });
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    let pod = Pod {
        uid: metadata.uid.clone()?,
        account,
        node: spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
    };
    Some(((namespace, name), pod))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(account: u8, node: Option<u8>, uid: u8, finished: bool) -> Pod {
        let account = (account > 0).then(|| format!("shop/a{account}").parse().unwrap());
        Pod { uid: uid.to_string(), account, node: node.map(|node| format!("node-{node}")), finished }
    }

    proptest! {
        /// Whatever happens to pods, what is kept by node is what they say by name, and a change of it is told as one.
        #[test]
        fn what_is_kept_by_node_is_that_of_the_pods(
            events in proptest::collection::vec(
                (0_u8..6, any::<bool>(), proptest::option::of(0_u8..3), 0_u8..4, any::<u8>(), any::<bool>()), 0..60)
        ) {
            let (mut pods, mut plain) = (Pods::default(), HashMap::new());
            let nodes = ["node-0", "node-1", "node-2", "node-3"];
            for (name, gone, node, account, uid, finished) in events {
                let name = ("shop".to_owned(), format!("web-{name}"));
                let before = nodes.map(|node| pods.accounts_on(node));
                let told = if gone {
                    plain.remove(&name);
                    pods.remove(&name)
                } else {
                    plain.insert(name.clone(), pod(account, node, uid, finished));
                    pods.put(name, pod(account, node, uid, finished))
                };
                prop_assert_eq!(told, before != nodes.map(|node| pods.accounts_on(node)));
            }
            prop_assert_eq!(pods.len(), plain.len());
            let here = |node: &str| plain.values().filter(|pod| pod.node.as_deref() == Some(node)).cloned().collect::<Vec<_>>();
            for node in nodes {
                let mut found: Vec<_> = pods.on(node).map(|pod| pod.uid.clone()).collect();
                let mut expected: Vec<_> = here(node).into_iter().map(|pod| pod.uid).collect();
                found.sort();
                expected.sort();
                prop_assert_eq!(found, expected);
                let accounts = here(node).into_iter().filter(|pod| !pod.finished).filter_map(|pod| pod.account);
                prop_assert_eq!(&*pods.accounts_on(node), &accounts.collect::<BTreeSet<_>>());
                prop_assert_eq!(pods.nodes().any(|known| known == node), !here(node).is_empty());
            }
        }
    }

    #[test]
    fn an_object_of_the_api_is_reduced_to_what_matters() {
        let read_json = |object: serde_json::Value| read(&serde_json::from_value(object).unwrap());
        let metadata = json!({"namespace": "shop", "name": "web-1", "uid": "u"});
        let name = ("shop".to_owned(), "web-1".to_owned());
        let spec = json!({"containers": [], "serviceAccountName": "web", "nodeName": "a"});
        let object = json!({"metadata": metadata, "spec": spec, "status": {"phase": "Succeeded"}});
        let (found, pod) = read_json(object).unwrap();
        let account = |pod: &Pod| pod.account.as_ref().map(ToString::to_string);
        assert_eq!((found, account(&pod)), (name, Some("shop/web".into())));
        assert_eq!((pod.node, pod.finished), (Some("a".into()), true));
        for (phase, finished) in [("Pending", false), ("Running", false), ("Failed", true), ("Unknown", false)] {
            let (_, pod) = read_json(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap();
            assert_eq!((pod.node, pod.finished), (None, finished));
        }
        // As the API has a static pod of the node's own.
        let spec = json!({"containers": [], "nodeName": "a"});
        let (_, pod) = read_json(json!({"metadata": metadata, "spec": spec})).unwrap();
        assert_eq!((pod.account, pod.node), (None, Some("a".into())));
        assert_eq!(read_json(json!({"metadata": {"name": "web-1"}})), None);
    }
}
