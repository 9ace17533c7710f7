//! What the CA knows of the cluster's pods: who runs where.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1 as kubernetes;

use super::account::ServiceAccount;

/// The pods of the cluster, found by their name and by their node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    by_name: HashMap<PodName, Pod>,
    by_node: HashMap<String, BTreeSet<PodName>>,
}

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) account: ServiceAccount,
    /// The node that it is bound to; none before it is scheduled.
    pub(crate) node: Option<String>,
    /// Succeeded or failed: nothing of it runs any more. A pending pod counts as running, since its init containers do.
    pub(crate) finished: bool,
}

/// Namespace and name.
pub(crate) type PodName = (String, String);

impl Pods {
    /// Puts in a pod, or what became of it.
    pub(crate) fn put(&mut self, name: PodName, pod: Pod) {
        self.remove(&name);
        if let Some(node) = &pod.node {
            self.by_node.entry(node.clone()).or_default().insert(name.clone());
        }
        self.by_name.insert(name, pod);
    }

    /// Takes out a pod that is gone.
    pub(crate) fn remove(&mut self, name: &PodName) {
        let Some(old) = self.by_name.remove(name) else { return };
        let Some(node) = old.node else { return };
        if let Some(names) = self.by_node.get_mut(&node) {
            names.remove(name);
            if names.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    /// The pod of this name in this namespace.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.by_name.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The pods that are bound to this node.
    pub(crate) fn on(&self, node: &str) -> impl Iterator<Item = &Pod> {
        self.by_node.get(node).into_iter().flatten().filter_map(|name| self.by_name.get(name))
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
    let account = spec.and_then(|spec| spec.service_account_name.clone()).filter(|name| !name.is_empty());
    let account = ServiceAccount { namespace: namespace.clone(), name: account.unwrap_or_else(|| "default".into()) };
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

    fn pod(node: Option<u8>, uid: u8) -> Pod {
        Pod {
            uid: uid.to_string(),
            account: "shop/web".parse().unwrap(),
            node: node.map(|node| format!("node-{node}")),
            finished: false,
        }
    }

    proptest! {
        /// Whatever happens to pods, the index by node says what their names say.
        #[test]
        fn the_index_by_node_is_that_of_the_pods(
            events in proptest::collection::vec((0_u8..6, any::<bool>(), proptest::option::of(0_u8..3), any::<u8>()), 0..60)
        ) {
            let (mut pods, mut plain) = (Pods::default(), HashMap::new());
            for (name, gone, node, uid) in events {
                let name = ("shop".to_owned(), format!("web-{name}"));
                if gone {
                    pods.remove(&name);
                    plain.remove(&name);
                } else {
                    pods.put(name.clone(), pod(node, uid));
                    plain.insert(name, pod(node, uid));
                }
            }
            prop_assert_eq!(pods.len(), plain.len());
            for node in ["node-0", "node-1", "node-2", "node-3"] {
                let mut found: Vec<_> = pods.on(node).map(|pod| pod.uid.clone()).collect();
                let mut expected: Vec<_> =
                    plain.values().filter(|pod| pod.node.as_deref() == Some(node)).map(|pod| pod.uid.clone()).collect();
                found.sort();
                expected.sort();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn an_object_of_the_api_is_reduced_to_what_matters() {
        let read_json = |object: serde_json::Value| read(&serde_json::from_value(object).unwrap());
        let metadata = json!({"namespace": "shop", "name": "web-1", "uid": "u"});
        let name = ("shop".to_owned(), "web-1".to_owned());
        let (found, pod) = read_json(json!({
            "metadata": metadata, "spec": {"containers": [], "serviceAccountName": "web", "nodeName": "a"},
            "status": {"phase": "Succeeded"},
        }))
        .unwrap();
        assert_eq!(
            (found, pod.account.to_string(), pod.node, pod.finished),
            (name, "shop/web".into(), Some("a".into()), true)
        );
        for (phase, finished) in [("Pending", false), ("Running", false), ("Failed", true), ("Unknown", false)] {
            let (_, pod) = read_json(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap();
            assert_eq!((pod.account.to_string(), pod.node, pod.finished), ("shop/default".into(), None, finished));
        }
        assert_eq!(read_json(json!({"metadata": {"name": "web-1"}})), None);
    }
}
