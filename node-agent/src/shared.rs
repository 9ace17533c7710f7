//! The registrations whose workloads are known by their process, by what tells them apart: a caller is held against those that it
//! could be, and not against all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alcazar_identity::Selector;

use crate::caller::{Caller, Needs};
use crate::registration::Registration;
use crate::registry::Served;

/// Each stands in one place: under that of its selectors which the fewest others are expected to have.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    by_selector: BTreeMap<Selector, Vec<Arc<Served>>>,
    /// What those ask for of whom the connection alone says nothing: they could be anybody.
    of_anybody: Needs,
}

impl Shared {
    pub(crate) fn push(&mut self, served: Arc<Served>) {
        let registration = served.registration();
        // A registration has a selector: without one it is none.
        let Some(selector) = registration.selectors().iter().min_by_key(|selector| rank(selector)).cloned() else {
            return;
        };
        if registration.selectors().iter().all(is_looked_for) {
            self.of_anybody = self.of_anybody.or(registration.needs());
        }
        // Most often there is one.
        self.by_selector.entry(selector).or_insert_with(|| Vec::with_capacity(1)).push(served);
    }

    /// What must be looked at of a caller's process to know its registrations, by what its connection says.
    pub(crate) fn needs(&self, caller: &Caller) -> Needs {
        let known = [Selector::Uid(caller.uid), Selector::Gid(caller.gid)];
        let possible = known.iter().filter_map(|selector| self.by_selector.get(selector)).flatten();
        let possible =
            possible.map(|served| served.registration()).filter(|registration| registration.may_admit(caller));
        possible.map(Registration::needs).fold(self.of_anybody, Needs::or)
    }

    /// All that a caller could be the workload of, by what is known of it.
    pub(crate) fn candidates(&self, caller: &Caller) -> impl Iterator<Item = &Arc<Served>> {
        described_by(caller).into_iter().filter_map(|selector| self.by_selector.get(&selector)).flatten()
    }

    /// The registration that lacks least for a caller to be its workload: for people.
    pub(crate) fn closest(&self, caller: &Caller) -> Option<&Registration> {
        let all = self.by_selector.values().flatten().map(|served| served.registration());
        all.min_by_key(|registration| {
            let width = Reverse(registration.selectors().len());
            (registration.lacking(caller), width, registration.is_of_pods(), registration.id())
        })
    }
}

/// Every selector that holds for a caller, by what is known of it, none twice.
fn described_by(caller: &Caller) -> BTreeSet<Selector> {
    let seen = &caller.seen;
    let groups = seen.groups.known().into_iter().flatten().chain([&caller.gid]);
    let mut all: BTreeSet<_> = groups.map(|gid| Selector::Group(*gid)).collect();
    all.extend([Selector::Uid(caller.uid), Selector::Gid(caller.gid)]);
    all.extend(seen.unit.known().cloned().map(Selector::Unit));
    all.extend(seen.path.known().cloned().map(Selector::Path));
    all.extend(seen.digest.known().cloned().map(Selector::Sha256));
    if let Some(pod) = seen.pod.known() {
        all.extend([Selector::PodNamespace(pod.namespace.clone()), Selector::PodAccount(pod.account.clone())]);
    }
    all
}

/// Whether a caller's process must be looked at to know whether it holds.
fn is_looked_for(selector: &Selector) -> bool {
    !Needs::of([selector]).is_none()
}

/// What is known without a look comes first, so that what must be looked at is known without one; then what tells most.
fn rank(selector: &Selector) -> u8 {
    match selector {
        Selector::Uid(_) => 0,
        Selector::Gid(_) => 1,
        Selector::Sha256(_) => 2,
        Selector::Path(_) => 3,
        Selector::Unit(_) => 4,
        Selector::PodAccount(_) => 5,
        Selector::PodNamespace(_) => 6,
        Selector::Group(_) => 7,
        // Known by its socket, and not here.
        Selector::Socket(_) => 8,
    }
}

#[cfg(test)]
mod tests {
    use alcazar_api::ca::v1;
    use alcazar_identity::ExecutableDigest;
    use proptest::prelude::*;
    use tokio::sync::watch;

    use super::*;
    use crate::caller::{Fact, Pod, Seen};
    use crate::registry::{Held, Registry};

    /// Few values, so that many hold.
    fn selector() -> impl Strategy<Value = String> {
        prop_oneof![
            (0..3_u32).prop_map(|n| format!("uid:{n}")),
            (0..3_u32).prop_map(|n| format!("gid:{n}")),
            (0..3_u32).prop_map(|n| format!("group:{n}")),
            "[ab]".prop_map(|n| format!("unit:{n}.service")),
            "[ab]".prop_map(|n| format!("path:/{n}")),
            "[ab]".prop_map(|n| format!("sha256:{}", n.repeat(64))),
            "[ab]".prop_map(|n| format!("k8s:ns:{n}")),
            "[ab]".prop_map(|n| format!("k8s:sa:{n}")),
        ]
    }

    fn fact<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Fact<T>> {
        proptest::option::of(of).prop_map(|known| known.map_or(Fact::NotAsked, Fact::Known))
    }

    fn caller() -> impl Strategy<Value = Caller> {
        let unit = "[ab]".prop_map(|n| format!("{n}.service").parse().unwrap());
        let path = "[ab]".prop_map(|n| format!("/{n}").parse().unwrap());
        let digest = prop_oneof![Just(0xaa), Just(0xbb)].prop_map(|byte| ExecutableDigest::new([byte; 32]));
        let pod = ("[ab]", "[ab]").prop_map(|(namespace, account)| Pod {
            name: "a".to_owned(),
            namespace: namespace.parse().unwrap(),
            account: account.parse().unwrap(),
        });
        let groups = proptest::collection::vec(0..3_u32, 0..3);
        let pod = prop_oneof![
            4 => fact(pod),
            1 => Just(Fact::Absent("it is elsewhere".to_owned())),
            1 => Just(Fact::Unknown("it cannot be read".to_owned())),
        ];
        let seen = (fact(groups), fact(unit), fact(path), fact(digest), pod);
        (0..3_u32, 0..3_u32, seen).prop_map(|(uid, gid, (groups, unit, path, digest, pod))| Caller {
            socket: None,
            uid,
            gid,
            pid: None,
            seen: Seen { groups, unit, path, digest, pod },
        })
    }

    fn served(number: usize, selectors: Vec<String>) -> Arc<Served> {
        let node = "spiffe://td/node/east/vm-1";
        let wire = v1::Registration {
            id: format!("w{number:02}"),
            node_id: node.into(),
            spiffe_id: format!("spiffe://td/ns/shop/sa/w{number}"),
            selectors,
            ..v1::Registration::default()
        };
        let registration = Registration::read(&wire, &node.parse().unwrap()).unwrap();
        Arc::new(Served::new(registration, watch::channel(Arc::new(Held::Nothing("not yet".into()))).1))
    }

    proptest! {
        #[test]
        fn it_says_what_a_look_at_all_registrations_says(
            all in proptest::collection::vec(proptest::collection::vec(selector(), 1..4), 0..20),
            caller in caller(),
        ) {
            let all: Vec<_> = all.into_iter().enumerate().map(|(number, selectors)| served(number, selectors)).collect();
            let registry = Registry::new(all.iter().cloned());
            let mut by_width = all.clone();
            by_width.sort_by_key(|served| Reverse(served.registration().selectors().len()));
            let registrations = || by_width.iter().map(|served| served.registration());

            let id = |registration: &Registration| registration.id().to_owned();
            let admitted: Vec<_> = registrations().filter(|r| r.admits(&caller)).map(id).collect();
            let closest = registrations().min_by_key(|r| r.lacking(&caller));
            let possible = registrations().filter(|r| r.may_admit(&caller)).map(Registration::needs);
            prop_assert_eq!(registry.needs(&caller), possible.fold(Needs::default(), Needs::or));
            match registry.admit(&caller) {
                Ok(served) => {
                    let found: Vec<_> = served.iter().map(|served| id(served.registration())).collect();
                    prop_assert_eq!(found, admitted);
                }
                Err(refused) => {
                    prop_assert!(admitted.is_empty());
                    let expected = closest.map(|r| format!("the closest is {} (", r.id()));
                    prop_assert_eq!(refused.closest().is_some(), expected.is_some());
                    prop_assert!(refused.closest().unwrap_or_default().starts_with(&expected.unwrap_or_default()));
                }
            }
        }
    }
}
