//! Node authorisation: for whom an account that works for its node may ask. A function of what is known of the pods.

use std::collections::BTreeSet;

use thiserror::Error;

use super::{
    account::{AccountToken, ServiceAccount},
    pods::{Pod, Pods},
};

/// Whether the holder of `caller` may ask for `wanted`'s certificate: it is trusted to work for its node, it is the pod
/// that it says, and a pod with that account is on the same node and not finished.
///
/// # Errors
/// When a condition does not hold; the first one, in this order.
pub(crate) fn act_for(
    pods: &Pods,
    trusted: &BTreeSet<ServiceAccount>,
    caller: &AccountToken,
    wanted: &ServiceAccount,
) -> Result<(), RightsError> {
    if !trusted.contains(&caller.account) {
        return Err(RightsError::NotTrusted(caller.account.clone()));
    }
    let node = node_of(pods, caller)?;
    if runs_on(pods, node, wanted) {
        return Ok(());
    }
    Err(RightsError::NotOnNode { wanted: wanted.clone(), node: node.into() })
}

/// The node that the holder of a token runs on: its pod is known, with that uid and account, and not finished.
///
/// # Errors
/// When it is not so.
pub(crate) fn node_of<'a>(pods: &'a Pods, caller: &AccountToken) -> Result<&'a str, RightsError> {
    let account = || caller.account.clone();
    let bound = caller.pod.as_ref().ok_or_else(|| RightsError::NotBound(account()))?;
    let unknown = || RightsError::UnknownPod { account: account(), pod: bound.name.clone() };
    let pod = pods.get(&caller.account.namespace, &bound.name).ok_or_else(unknown)?;
    // A pod of the same name that came later is another.
    let Pod { uid, account: runs_as, node: Some(node), finished: false } = pod else { return Err(unknown()) };
    if *uid != bound.uid || runs_as.as_ref() != Some(&caller.account) {
        return Err(unknown());
    }
    match &caller.node {
        Some(said) if said != node => {
            Err(RightsError::OtherNode { pod: bound.name.clone(), said: said.clone(), node: node.clone() })
        }
        _ => Ok(node),
    }
}

/// Whether something of this account is on the node: bound to it and not finished.
pub(crate) fn runs_on(pods: &Pods, node: &str, account: &ServiceAccount) -> bool {
    pods.accounts_on(node).contains(account)
}

/// Why a caller may not ask for another.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RightsError {
    #[error(
        "the account {0} is not trusted to ask for others; if it should be, name it in callers.kubernetes.trustedNodeAccounts"
    )]
    NotTrusted(ServiceAccount),
    #[error("the token of {0} is not bound to a pod, so that nobody knows its node; use a projected token")]
    NotBound(ServiceAccount),
    #[error("no running pod {pod:?} of the account {account} with the token's uid is known in the cluster")]
    UnknownPod { account: ServiceAccount, pod: String },
    #[error("the token of the pod {pod:?} is from the node {said:?}, but the pod is on {node:?}")]
    OtherNode { pod: String, said: String, node: String },
    #[error("the pods of the account {0} give nobody a certificate (callers.kubernetes.podsExcept)")]
    Excepted(ServiceAccount),
    #[error("no pod of the account {wanted} is on the node {node:?}, or all are finished")]
    NotOnNode { wanted: ServiceAccount, node: String },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::callers::account::BoundPod;

    fn account(text: &str) -> ServiceAccount {
        text.parse().unwrap()
    }

    fn put(pods: &mut Pods, name: &str, uid: &str, runs_as: &str, node: Option<&str>, finished: bool) {
        let account = account(runs_as);
        let node = node.map(str::to_owned);
        let pod = Pod { uid: uid.into(), account: Some(account.clone()), node, finished };
        pods.put((account.namespace, name.into()), pod);
    }

    fn token(runs_as: &str, pod: Option<(&str, &str)>, node: Option<&str>) -> AccountToken {
        AccountToken {
            account: account(runs_as),
            pod: pod.map(|(name, uid)| BoundPod { name: name.into(), uid: uid.into() }),
            node: node.map(str::to_owned),
        }
    }

    #[test]
    fn a_trusted_pod_asks_for_its_neighbours_and_for_nobody_else() {
        let mut pods = Pods::default();
        put(&mut pods, "z-a", "1", "istio-system/ztunnel", Some("a"), false);
        put(&mut pods, "z-done", "2", "istio-system/ztunnel", Some("a"), true);
        put(&mut pods, "z-new", "3", "istio-system/ztunnel", None, false);
        put(&mut pods, "web-1", "4", "shop/web", Some("a"), false);
        put(&mut pods, "job-1", "5", "shop/job", Some("a"), true);
        put(&mut pods, "db-1", "6", "shop/db", Some("b"), false);
        put(&mut pods, "new-1", "7", "shop/new", None, false);
        let trusted = BTreeSet::from([account("istio-system/ztunnel")]);
        let z = |pod, uid| token("istio-system/ztunnel", Some((pod, uid)), None);
        let not_on_a = |wanted| Err(RightsError::NotOnNode { wanted: account(wanted), node: "a".into() });
        let unknown =
            |pod: &str| Err(RightsError::UnknownPod { account: account("istio-system/ztunnel"), pod: pod.into() });
        let check = |caller: AccountToken, wanted: &str, expected| {
            assert_eq!(act_for(&pods, &trusted, &caller, &account(wanted)), expected, "{caller:?} for {wanted}");
        };
        check(z("z-a", "1"), "shop/web", Ok(()));
        check(token("istio-system/ztunnel", Some(("z-a", "1")), Some("a")), "shop/web", Ok(()));
        check(z("z-a", "1"), "shop/job", not_on_a("shop/job"));
        check(z("z-a", "1"), "shop/db", not_on_a("shop/db"));
        check(z("z-a", "1"), "shop/new", not_on_a("shop/new"));
        check(z("z-a", "1"), "other/web", not_on_a("other/web"));
        check(z("z-a", "9"), "shop/web", unknown("z-a"));
        check(z("z-b", "1"), "shop/web", unknown("z-b"));
        check(z("z-done", "2"), "shop/web", unknown("z-done"));
        check(z("z-new", "3"), "shop/web", unknown("z-new"));
        // The uid and name of somebody else's pod.
        check(z("web-1", "4"), "shop/web", unknown("web-1"));
        let moved = token("istio-system/ztunnel", Some(("z-a", "1")), Some("b"));
        let other = RightsError::OtherNode { pod: "z-a".into(), said: "b".into(), node: "a".into() };
        check(moved, "shop/web", Err(other));
        let free = token("istio-system/ztunnel", None, Some("a"));
        check(free, "shop/web", Err(RightsError::NotBound(account("istio-system/ztunnel"))));
        let web = token("shop/web", Some(("web-1", "4")), None);
        check(web, "shop/web", Err(RightsError::NotTrusted(account("shop/web"))));
    }

    proptest! {
        /// Against the rule as a person would say it, over clusters of a few pods.
        #[test]
        fn the_decision_is_the_rule(
            cluster in proptest::collection::vec((0_u8..3, 0_u8..3, proptest::option::of(0_u8..2), any::<bool>()), 1..8),
            caller in 0_usize..8, uid_of in 0_usize..8, wanted in 0_u8..3,
        ) {
            let mut pods = Pods::default();
            for (place, (runs_as, _, node, finished)) in cluster.iter().enumerate() {
                let node = node.map(|node| format!("n{node}"));
                put(&mut pods, &format!("p{place}"), &place.to_string(), &format!("ns/a{runs_as}"), node.as_deref(), *finished);
            }
            let (caller, uid_of) = (caller % cluster.len(), uid_of % cluster.len());
            let (runs_as, says, node, finished) = cluster[caller];
            let token = token(&format!("ns/a{says}"), Some((&format!("p{caller}"), &uid_of.to_string())), None);
            let trusted = BTreeSet::from([account("ns/a0")]);
            let expected = says == 0 && runs_as == says && uid_of == caller && !finished && node.is_some()
                && cluster.iter().any(|pod| pod.0 == wanted && pod.2 == node && !pod.3);
            let outcome = act_for(&pods, &trusted, &token, &account(&format!("ns/a{wanted}")));
            prop_assert_eq!(outcome.is_ok(), expected, "{:?}", outcome);
        }
    }
}
