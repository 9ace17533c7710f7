//! The pods of a node, as the kubelet or the API server lists them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Deserialize;

use crate::caller::Pod;
use crate::peer::PodUid;

/// Whose each pod is, or why it is nobody's, by the uid that its control group has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodList(HashMap<PodUid, Result<Pod, String>>);

impl PodList {
    /// Reads a `PodList` in JSON: what it says of the pods of one node.
    ///
    /// # Errors
    /// When it is something else. One odd pod among the others is nobody's, and takes nothing from them.
    pub fn read(json: &[u8], node: &str) -> Result<Self, ParsePodListError> {
        let list: List = serde_json::from_slice(json).map_err(ParsePodListError::Json)?;
        if list.kind != "PodList" {
            return Err(ParsePodListError::Kind(list.kind));
        }
        let mut pods = HashMap::new();
        let mut mirrors = Vec::new();
        for Item { metadata, spec } in list.items.unwrap_or_default() {
            let notes = &metadata.annotations;
            if notes.mirror.is_some() {
                mirrors.push((notes.hash.clone().unwrap_or_default(), is_static(&metadata)));
            }
            // One that is no uid of a control group's is never asked for.
            let Ok(uid) = metadata.uid.parse::<PodUid>() else { continue };
            match pods.entry(uid) {
                Entry::Vacant(place) => drop(place.insert(whose(metadata, spec, node))),
                Entry::Occupied(mut place) => drop(place.insert(Err("two pods are listed with its uid".to_owned()))),
            }
        }
        // A static pod's control group has the digest of its file; what the API shows of it has another uid, and that digest as a note.
        // Anybody may write such a note: it takes nothing from a pod that is listed by its own uid.
        for (hash, why) in mirrors {
            if let Ok(uid) = hash.parse() {
                pods.entry(uid).or_insert(Err(why));
            }
        }
        Ok(Self(pods))
    }

    /// Whose a pod is, or why it is nobody's; `None` where it is not listed.
    pub fn get(&self, uid: &PodUid) -> Option<&Result<Pod, String>> {
        self.0.get(uid)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn whose(metadata: Metadata, spec: Spec, node: &str) -> Result<Pod, String> {
    let notes = &metadata.annotations;
    if notes.mirror.is_some() || notes.source.as_deref().is_some_and(|source| source != "api") {
        return Err(is_static(&metadata));
    }
    let Metadata { namespace, name, .. } = metadata;
    let (account, on) = (spec.service_account_name.unwrap_or_default(), spec.node_name.unwrap_or_default());
    if on != node {
        return Err(format!(
            "its pod {namespace}/{name} is listed as one of the node {on:?}, and this agent is told to be on {node:?}"
        ));
    }
    let odd = |error: &dyn std::fmt::Display| format!("its pod {namespace}/{name} is listed in an odd way: {error}");
    Ok(Pod {
        account: account.parse().map_err(|error| odd(&error))?,
        namespace: namespace.parse().map_err(|error| odd(&error))?,
        name,
    })
}

fn is_static(Metadata { namespace, name, .. }: &Metadata) -> String {
    format!("its pod {namespace}/{name} is a static one, from a file of the node: such a pod has no service account")
}

#[derive(Deserialize)]
struct List {
    kind: String,
    items: Option<Vec<Item>>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Metadata {
    uid: String,
    namespace: String,
    name: String,
    annotations: Annotations,
}

/// **Source**: the kubelet's `pkg/kubelet/types`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    /// Where the kubelet has the pod from: `api`, `file` or `http`.
    #[serde(rename = "kubernetes.io/config.source")]
    source: Option<String>,
    /// Of what the API shows of a static pod.
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

/// Why an answer is no list of pods.
#[derive(Debug, thiserror::Error)]
pub enum ParsePodListError {
    /// It is no JSON of that shape.
    #[error("the answer is no list of pods in JSON")]
    Json(#[source] serde_json::Error),
    /// It is a list of something else, or an error.
    #[error("the answer is a {0:?}, not a PodList")]
    Kind(String),
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const A: &str = "0f6d2c1e-4b3a-4c5d-8e9f-001122334455";
    const B: &str = "1f6d2c1e-4b3a-4c5d-8e9f-001122334455";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn pod(uid: &str, name: &str, account: &str, annotations: &Value) -> Value {
        json!({
            "metadata": {"uid": uid, "namespace": "shop", "name": name, "annotations": annotations, "labels": {"a": "b"}},
            "spec": {"nodeName": "n1", "serviceAccountName": account, "containers": []},
            "status": {"phase": "Running"},
        })
    }

    fn list(items: &[Value]) -> PodList {
        let text = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).to_string();
        PodList::read(text.as_bytes(), "n1").unwrap()
    }

    fn told(list: &PodList, uid: &str) -> String {
        match list.get(&uid.parse().unwrap()) {
            Some(Ok(pod)) => pod.to_string(),
            Some(Err(why)) => why.clone(),
            None => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_pod_is_its_service_accounts() {
        let source = json!({"kubernetes.io/config.source": "api", "other": "x"});
        let list = list(&[pod(A, "web-1", "web", &source), pod(B, "db-1", "db", &json!({}))]);
        assert_eq!(told(&list, A), "shop/web-1 of the service account web");
        assert_eq!(told(&list, HASH), "nothing");
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn a_static_pod_is_nobodys_as_the_kubelet_lists_it_and_as_the_api_does() {
        let by_kubelet = pod(HASH, "etcd", "admin", &json!({"kubernetes.io/config.source": "file"}));
        let mirror = json!({"kubernetes.io/config.source": "file", "kubernetes.io/config.mirror": HASH, "kubernetes.io/config.hash": HASH});
        for list in [list(&[by_kubelet]), list(&[pod(A, "etcd", "", &mirror)])] {
            assert!(told(&list, HASH).contains("static"), "{}", told(&list, HASH));
        }
        // A note is anybody's to write.
        let note = json!({"kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": B});
        for items in [
            [pod(A, "bad", "x", &note), pod(B, "db", "db", &json!({}))],
            [pod(B, "db", "db", &json!({})), pod(A, "bad", "x", &note)],
        ] {
            assert_eq!(told(&list(&items), B), "shop/db of the service account db");
        }
    }

    #[test]
    fn an_odd_pod_is_nobodys_and_takes_nothing_from_the_others() {
        let good = pod(B, "db", "db", &json!({}));
        let mut elsewhere = pod(A, "web", "web", &json!({}));
        elsewhere["spec"]["nodeName"] = json!("n2");
        for (odd, why) in [
            (pod(A, "web", "", &json!({})), "names no service account"),
            (pod(A, "web", "a/b", &json!({})), "names no service account"),
            (json!({"metadata": {"uid": A, "name": "x"}}), "\"\", and this agent is told to be on \"n1\""),
            (elsewhere, "one of the node \"n2\""),
        ] {
            let list = list(&[odd, good.clone(), pod("x", "y", "z", &json!({}))]);
            assert!(told(&list, A).contains(why), "{}", told(&list, A));
            assert_eq!(told(&list, B), "shop/db of the service account db");
        }
        let twice = list(&[good.clone(), pod(B, "other", "other", &json!({}))]);
        assert!(told(&twice, B).contains("two pods"));
        assert_eq!(list(&[]).len(), 0);
    }

    #[test]
    fn what_is_no_list_of_pods_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"kind":"Status","message":"no"}"#,
            r#"{"kind":"PodList","items":{}}"#,
            r#"{"kind":"PodList","items":[{}]}"#,
        ] {
            assert!(PodList::read(bad.as_bytes(), "n1").is_err(), "{bad}");
        }
        assert!(PodList::read(br#"{"kind":"PodList","items":null}"#, "n1").is_ok());
    }
}
