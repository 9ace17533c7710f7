//! The registrations that follow from pods: a node is told of each account that has a pod on it, as if somebody had registered it.
//!
//! ```text
//! pod of shop/web on the node a  ─▶  k8s.shop.web: spiffe://<td>/ns/shop/sa/web on node a, k8s:ns:shop and k8s:sa:web
//! ```
//!
//! Their names say whose they are, and a name that begins so is nobody else's. They are made anew whenever somebody asks, and
//! are nowhere on record.

use std::{collections::BTreeSet, fmt::Write, sync::Arc};

use alcazar_identity::{PodNamespace, Selector, SpiffeId};
use ring::digest;

use super::{CallersError, account::ServiceAccount, pods::Accounts};
use crate::records::{Registration, RegistrationId};

/// Whose pods make no registration and give their node nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Except {
    namespaces: BTreeSet<String>,
    accounts: BTreeSet<ServiceAccount>,
}

impl Except {
    /// Namespaces, and accounts as `<namespace>/<name>`.
    pub(super) fn parse(texts: &[String]) -> Result<Self, CallersError> {
        let mut except = Self::default();
        for text in texts {
            match text.contains('/') {
                true => drop(except.accounts.insert(text.parse()?)),
                // As Kubernetes names them: whoever writes another text means something that he does not get.
                false => match text.parse::<PodNamespace>() {
                    Ok(_) => drop(except.namespaces.insert(text.clone())),
                    Err(source) => return Err(CallersError::Except(source)),
                },
            }
        }
        Ok(except)
    }

    pub(super) fn has(&self, account: &ServiceAccount) -> bool {
        self.namespaces.contains(&account.namespace) || self.accounts.contains(account)
    }
}

/// The registrations of a node for the accounts on it, in the order of their names.
///
/// Of an account whose very pods somebody has registered for the node (this identity by these selectors, no more and no less),
/// there is none: what was put in says with which profile, names and life.
pub(crate) fn registrations(
    node: &SpiffeId,
    accounts: &Accounts,
    except: impl Fn(&ServiceAccount) -> bool,
    recorded: &[Arc<Registration>],
) -> Vec<Arc<Registration>> {
    let of = accounts.iter().filter(|account| !except(account)).filter_map(|account| registration(node, account));
    let mut all: Vec<_> = of.filter(|of| in_place_of(of, recorded).is_none()).map(Arc::new).collect();
    all.sort_by(|one, other| one.id().cmp(other.id()));
    all
}

/// The registration of a node for an account on it; `None` for the CA's own, and for names that no account of Kubernetes has.
pub(crate) fn registration(node: &SpiffeId, account: &ServiceAccount) -> Option<Registration> {
    let id = account.spiffe_id(node.trust_domain()).ok()?;
    let selectors =
        [Selector::PodNamespace(account.namespace.parse().ok()?), Selector::PodAccount(account.name.parse().ok()?)];
    Registration::of_pods(name(account)?, node.clone(), id, selectors).ok()
}

/// What somebody has registered for the very same pods.
pub(crate) fn in_place_of<'r>(of_pods: &Registration, recorded: &'r [Arc<Registration>]) -> Option<&'r Registration> {
    let same = |other: &&Arc<Registration>| {
        other.spiffe_id() == of_pods.spiffe_id() && other.selectors().eq(of_pods.selectors())
    };
    recorded.iter().find(same).map(|other| &**other)
}

/// The account on the node whose registration has this name.
pub(crate) fn account_of<'a>(name: &RegistrationId, accounts: &'a Accounts) -> Option<&'a ServiceAccount> {
    let (namespace, account) = name.as_str().strip_prefix(RegistrationId::OF_PODS)?.split_once('.')?;
    if !account.starts_with('-') {
        let account = ServiceAccount { namespace: namespace.into(), name: account.into() };
        return accounts.get(&account).filter(|account| self::name(account).as_ref() == Some(name));
    }
    accounts
        .iter()
        .filter(|account| account.namespace == namespace)
        .find(|account| self::name(account).as_ref() == Some(name))
}

/// The name of an account's registration: both of its names, and a digest in place of one that is too long. A namespace has
/// no dot and no account begins with a hyphen, so that no two have the same.
fn name(account: &ServiceAccount) -> Option<RegistrationId> {
    let ServiceAccount { namespace, name } = account;
    let prefix = RegistrationId::OF_PODS;
    let whole = format!("{prefix}{namespace}.{name}");
    if whole.len() <= RegistrationId::LONGEST {
        return whole.parse().ok();
    }
    let mut short = format!("{prefix}{namespace}.-");
    for byte in digest::digest(&digest::SHA256, name.as_bytes()).as_ref() {
        write!(short, "{byte:02x}").ok()?;
    }
    short.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::callers::{account::ServiceAccount, pods::Pod, pods::Pods};

    fn account(text: &str) -> ServiceAccount {
        text.parse().unwrap()
    }

    fn id(text: &str) -> SpiffeId {
        text.parse().unwrap()
    }

    fn accounts<const N: usize>(texts: [&str; N]) -> Accounts {
        Arc::new(texts.into_iter().map(account).collect())
    }

    fn node() -> SpiffeId {
        id("spiffe://td/node/c/a")
    }

    fn names(found: &[Arc<Registration>]) -> Vec<&str> {
        found.iter().map(|one| one.id().as_str()).collect()
    }

    #[test]
    fn an_account_on_a_node_is_registered_there_as_itself() {
        let found = registrations(&node(), &accounts(["shop/web", "shop/a.b", "x/db"]), |_| false, &[]);
        assert_eq!(names(&found), ["k8s.shop.a.b", "k8s.shop.web", "k8s.x.db"]);
        let web = &found[1];
        assert_eq!((web.node(), web.spiffe_id()), (&node(), &id("spiffe://td/ns/shop/sa/web")));
        let selectors: Vec<_> = web.selectors().map(ToString::to_string).collect();
        assert_eq!(selectors, ["k8s:ns:shop", "k8s:sa:web"]);
        assert_eq!((web.ttl(), web.profile(), web.dns_names().count()), (None, None, 0));
    }

    #[test]
    fn nobody_is_the_ca_by_a_pod_nor_anybody_who_is_excepted() {
        let here = accounts([
            "alcazar-system/alcazar-ca",
            "alcazar-system/alcazar-control",
            "kube-system/dns",
            "shop/web",
            "shop/db",
        ]);
        let except = Except::parse(&["kube-system".into(), "shop/db".into()]).unwrap();
        let found = registrations(&node(), &here, |account| except.has(account), &[]);
        assert_eq!(names(&found), ["k8s.alcazar-system.alcazar-control", "k8s.shop.web"]);
        for bad in ["", "*", "kube-*", "kube_system", "a.b", "a/b/c", "/", "shop/"] {
            assert!(Except::parse(&[bad.into()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_put_in_for_the_very_same_pods_takes_their_place_and_anything_else_stands_beside() {
        let recorded = |identity: &str, selectors: &[&str]| {
            let selectors: Vec<_> = selectors.iter().map(|text| text.parse().unwrap()).collect();
            Arc::new(Registration::new("shop.web".parse().unwrap(), node(), id(identity), selectors, None).unwrap())
        };
        let web = "spiffe://td/ns/shop/sa/web";
        let left = |recorded| registrations(&node(), &accounts(["shop/web"]), |_| false, &[recorded]).len();
        assert_eq!(left(recorded(web, &["k8s:sa:web", "k8s:ns:shop"])), 0);
        assert_eq!(left(recorded(web, &["uid:7"])), 1);
        assert_eq!(left(recorded(web, &["k8s:sa:web", "k8s:ns:shop", "path:/usr/bin/web"])), 1);
        assert_eq!(left(recorded("spiffe://td/ns/shop/sa/other", &["k8s:sa:web", "k8s:ns:shop"])), 1);
    }

    const LABEL: &str = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
    const SUBDOMAIN: &str = "([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?[.]){0,4}[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";

    proptest! {
        /// Whatever accounts Kubernetes may have, names are apart and lead back to whom they name; those that are absent are nobody.
        #[test]
        fn a_name_leads_back_to_its_account_and_to_no_other(
            pairs in prop::collection::btree_set((LABEL, SUBDOMAIN), 1..6)
        ) {
            let all = pairs.iter().filter(|(_, name)| name.len() <= 253);
            let all: Vec<_> = all.map(|(namespace, name)| account(&format!("{namespace}/{name}"))).collect();
            let here: Accounts = Arc::new(all.iter().cloned().collect());
            let found = registrations(&node(), &here, |_| false, &[]);
            prop_assert_eq!(found.len(), here.len());
            for one in &found {
                let whose = account_of(one.id(), &here).unwrap();
                prop_assert_eq!(&registration(&node(), whose).unwrap(), &**one);
                prop_assert_eq!(one.spiffe_id(), &whose.spiffe_id(node().trust_domain()).unwrap());
                prop_assert!(one.id().is_of_pods());
                let others: Accounts = Arc::new(here.iter().filter(|other| *other != whose).cloned().collect());
                prop_assert_eq!(account_of(one.id(), &others), None);
            }
        }

        /// Over clusters of a few pods: a node has the accounts of whom something is on it, and nobody else's.
        #[test]
        fn a_node_is_told_of_whom_it_runs(
            cluster in prop::collection::vec((0_u8..4, prop::option::of(0_u8..3), any::<bool>()), 0..12)
        ) {
            let mut pods = Pods::default();
            for (place, (runs_as, on, finished)) in cluster.iter().enumerate() {
                let pod = Pod {
                    uid: place.to_string(),
                    account: (*runs_as > 0).then(|| account(&format!("ns/a{runs_as}"))),
                    node: on.map(|on| format!("n{on}")),
                    finished: *finished,
                };
                pods.put(("ns".into(), format!("p{place}")), pod);
            }
            for on in 0..3 {
                let node = id(&format!("spiffe://td/node/c/n{on}"));
                let found = registrations(&node, &pods.accounts_on(&format!("n{on}")), |_| false, &[]);
                let runs = |runs_as: &u8| cluster.iter().any(|pod| *pod == (*runs_as, Some(on), false));
                let expected: Vec<_> = (1..4).filter(runs).map(|runs_as| format!("k8s.ns.a{runs_as}")).collect();
                prop_assert_eq!(names(&found), expected);
            }
        }
    }

    #[test]
    fn a_name_that_is_too_long_has_a_digest_which_no_account_can_be_called() {
        let long = format!("shop/{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
        let here = accounts([&long, "shop/web"]);
        let found = registrations(&node(), &here, |_| false, &[]);
        let name = found[0].id();
        assert!(name.as_str().starts_with("k8s.shop.-") && name.as_str().len() == 10 + 64, "{name}");
        assert_eq!(account_of(name, &here), Some(&account(&long)));
        assert_eq!(account_of(name, &accounts(["shop/web"])), None);
        for none in ["k8s.", "k8s.shop", "k8s.shop.", "k8s.shop.-", "k8s..web", "k8s.web.shop", "shop.web"] {
            assert_eq!(account_of(&none.parse().unwrap(), &here), None, "{none}");
        }
    }
}
