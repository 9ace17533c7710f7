//! The CA's last word on this node, read. Of ten thousand registrations one copy is kept: whoever serves one shares it.

use std::collections::BTreeMap;
use std::sync::Arc;

use alcazar_api::ca::v1;
use alcazar_identity::SpiffeId;
use alcazar_service::process::chain;

use crate::registration::Registration;

/// What the CA has registered for this node, as far as it can be served.
#[derive(Debug)]
pub(crate) struct Registered {
    by_id: BTreeMap<Arc<str>, Registration>,
    /// The CA has not heard of the cluster yet: of pods it says nothing.
    pub(crate) pods_unknown: bool,
}

impl Registered {
    /// Reads what the CA said, for the node of this name. What cannot be served is told, and left out. What is as it was is the
    /// earlier one, which others hold already.
    pub(crate) fn read(said: v1::Registrations, node: &SpiffeId, earlier: Option<&Self>) -> Self {
        let understood = said.registrations.into_iter().filter_map(|wire| match Registration::read(&wire, node) {
            Ok(registration) => Some(registration),
            Err(error) => {
                tracing::error!(
                    target: "alcazar::refused", registration = wire.id, reason = chain(&error),
                    "a registration is not served"
                );
                None
            }
        });
        let known =
            |registration: &Registration| earlier?.by_id.get(registration.id()).filter(|it| *it == registration);
        let shared = understood.map(|registration| known(&registration).cloned().unwrap_or(registration));
        let by_id = shared.map(|registration| (registration.shared_id(), registration)).collect();
        Self { by_id, pods_unknown: said.pods_unknown }
    }

    /// All, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.by_id.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_again_is_kept_once() {
        let node: SpiffeId = "spiffe://td/node/east/vm-1".parse().unwrap();
        let wire = |id: &str, uid: u32| v1::Registration {
            id: id.into(),
            node_id: node.to_string(),
            spiffe_id: format!("spiffe://td/ns/shop/sa/{id}"),
            selectors: vec![format!("uid:{uid}")],
            ..v1::Registration::default()
        };
        let read = |all: Vec<v1::Registration>, earlier: Option<&Registered>| {
            Registered::read(v1::Registrations { registrations: all, pods_unknown: false }, &node, earlier)
        };
        let first = read(vec![wire("b", 2), wire("a", 1), wire("moon/full", 1)], None);
        let again = read(vec![wire("a", 1), wire("b", 3), wire("c", 3)], Some(&first));
        let ids = |all: &Registered| all.iter().map(|one| one.id().to_owned()).collect::<Vec<_>>().join(" ");
        assert_eq!((ids(&first).as_str(), ids(&again).as_str()), ("a b", "a b c"));
        let same: Vec<_> = first.iter().zip(again.iter()).map(|(old, new)| old.is_shared_with(new)).collect();
        assert_eq!(same, [true, false]);
        assert_eq!(again.iter().nth(1).unwrap().uid(), Some(3));
    }
}
