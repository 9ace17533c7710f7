//! What a client of an agent's socket says of who may call others through it: in the metadata of its node, under `alcazar`.
//!
//! ```json
//! {"alcazar": {"outbound": ["127.0.0.1:15101"], "outboundUser": 1000}}
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;

use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};

use crate::envoy::core::Node;

/// The listeners at which applications call others as the workload, and whose they have to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outbound {
    /// Where applications connect; none: nobody calls through this client.
    pub listeners: Vec<SocketAddr>,
    /// The user whose processes alone are served there; `None`: whoever can connect.
    pub user: Option<u32>,
}

impl Outbound {
    /// What another client says of itself; `None` where it says nothing, as those do that are not ours.
    pub fn said(node: &Node) -> Option<Self> {
        let field = |fields: &HashMap<String, Value>, name: &str| fields.get(name).and_then(|value| value.kind.clone());
        let Some(Kind::StructValue(own)) = field(&node.metadata.as_ref()?.fields, OWN) else { return None };
        let Some(Kind::ListValue(listeners)) = field(&own.fields, LISTENERS) else { return None };
        let parsed = listeners.values.into_iter().take(MOST).map(|value| match value.kind {
            Some(Kind::StringValue(text)) => text.parse().ok(),
            _ => None,
        });
        let user = match field(&own.fields, USER) {
            None => None,
            // A number that is no user's is no claim to be believed: nothing is known then.
            Some(Kind::NumberValue(number)) => Some(user(number)?),
            Some(_) => return None,
        };
        Some(Self { listeners: parsed.collect::<Option<_>>()?, user })
    }

    /// How it is said.
    pub(super) fn node(&self) -> Node {
        let value = |kind| Value { kind: Some(kind) };
        let listeners = self.listeners.iter().map(|listener| value(Kind::StringValue(listener.to_string()))).collect();
        let mut own = Struct::default();
        own.fields.insert(LISTENERS.to_owned(), value(Kind::ListValue(ListValue { values: listeners })));
        if let Some(user) = self.user {
            own.fields.insert(USER.to_owned(), value(Kind::NumberValue(user.into())));
        }
        let mut metadata = Struct::default();
        metadata.fields.insert(OWN.to_owned(), value(Kind::StructValue(own)));
        Node { user_agent_name: OWN.to_owned(), metadata: Some(metadata), ..Node::default() }
    }
}

/// JSON's numbers are floating.
fn user(number: f64) -> Option<u32> {
    let whole = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
    whole.then(|| format!("{number:.0}").parse().ok()).flatten()
}

const OWN: &str = "alcazar";
const LISTENERS: &str = "outbound";
const USER: &str = "outboundUser";
/// Of listeners that are remembered.
const MOST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_back_and_nothing_else_is_believed() {
        let whole = Outbound { listeners: vec!["127.0.0.1:15101".parse().unwrap()], user: Some(u32::MAX) };
        for said in [whole.clone(), Outbound { user: None, ..whole.clone() }, Outbound::default()] {
            assert_eq!(Outbound::said(&said.node()), Some(said));
        }
        assert_eq!(Outbound::said(&Node { user_agent_name: "envoy".into(), ..Node::default() }), None);
        for (name, kind) in [
            (USER, Kind::NumberValue(-1.0)),
            (USER, Kind::NumberValue(0.5)),
            (USER, Kind::StringValue("root".into())),
            (LISTENERS, Kind::StringValue("127.0.0.1:1".into())),
        ] {
            let mut node = whole.node();
            let metadata = node.metadata.as_mut().unwrap();
            let Some(Kind::StructValue(own)) = &mut metadata.fields.get_mut(OWN).unwrap().kind else { panic!() };
            own.fields.insert(name.to_owned(), Value { kind: Some(kind) });
            assert_eq!(Outbound::said(&node), None, "{name}");
        }
    }
}
