//! [`alcazar_policy::WorkloadPolicy`] on the wire.
//!
//! Understanding is all or nothing within a role: a clause of a newer version becomes one that never matches, so
//! that an old proxy denies more, never less.

use alcazar_policy::{Activation, Attribute, Binding, Clause, Matcher, Role, Rule, Subject, WorkloadPolicy};

use crate::mesh::v1;

impl From<&WorkloadPolicy> for v1::Policy {
    fn from(policy: &WorkloadPolicy) -> Self {
        let activation = match policy.activation {
            Activation::Off => v1::Activation::Off,
            Activation::On => v1::Activation::On,
            Activation::Shadow => v1::Activation::Shadow,
        };
        Self { activation: activation.into(), roles: policy.roles.iter().map(role_message).collect() }
    }
}

impl From<v1::Policy> for WorkloadPolicy {
    fn from(message: v1::Policy) -> Self {
        match message.activation() {
            v1::Activation::Unspecified => Self::deny_all(),
            v1::Activation::Off => Self::off(),
            v1::Activation::On => Self { activation: Activation::On, roles: roles(message.roles) },
            v1::Activation::Shadow => Self { activation: Activation::Shadow, roles: roles(message.roles) },
        }
    }
}

fn role_message(role: &Role) -> v1::Role {
    let rule = |rule: &Rule| v1::Rule { index: rule.index, clauses: clause_messages(&rule.clauses) };
    let subject = |subject: &Subject| v1::Subject { index: subject.index, clauses: clause_messages(&subject.clauses) };
    let binding = |binding: &Binding| v1::Binding {
        namespace: binding.namespace.clone(),
        name: binding.name.clone(),
        shadow: binding.shadow,
        subjects: binding.subjects.iter().map(subject).collect(),
    };
    v1::Role {
        namespace: role.namespace.clone(),
        name: role.name.clone(),
        rules: role.rules.iter().map(rule).collect(),
        bindings: role.bindings.iter().map(binding).collect(),
    }
}

fn roles(messages: Vec<v1::Role>) -> Vec<Role> {
    let rule = |rule: v1::Rule| Rule { index: rule.index, clauses: clauses(rule.clauses) };
    let subject = |subject: v1::Subject| Subject { index: subject.index, clauses: clauses(subject.clauses) };
    let binding = |binding: v1::Binding| Binding {
        namespace: binding.namespace,
        name: binding.name,
        shadow: binding.shadow,
        subjects: binding.subjects.into_iter().map(subject).collect(),
    };
    let role = |role: v1::Role| Role {
        namespace: role.namespace,
        name: role.name,
        rules: role.rules.into_iter().map(rule).collect(),
        bindings: role.bindings.into_iter().map(binding).collect(),
    };
    messages.into_iter().map(role).collect()
}

fn clause_messages(clauses: &[Clause]) -> Vec<v1::Clause> {
    clauses.iter().map(clause_message).collect()
}

fn clause_message(clause: &Clause) -> v1::Clause {
    use v1::Attribute as Wire;
    let (attribute, key, filter) = match &clause.attribute {
        Attribute::Host => (Wire::Host, "", ""),
        Attribute::Path => (Wire::Path, "", ""),
        Attribute::Method => (Wire::Method, "", ""),
        Attribute::Header(name) => (Wire::Header, name.as_str(), ""),
        Attribute::DestinationIp => (Wire::DestinationIp, "", ""),
        Attribute::DestinationPort => (Wire::DestinationPort, "", ""),
        Attribute::Sni => (Wire::Sni, "", ""),
        Attribute::SourcePrincipal => (Wire::SourcePrincipal, "", ""),
        Attribute::SourceNamespace => (Wire::SourceNamespace, "", ""),
        Attribute::SourceIp => (Wire::SourceIp, "", ""),
        Attribute::AuthPrincipal => (Wire::AuthPrincipal, "", ""),
        Attribute::AuthAudiences => (Wire::AuthAudiences, "", ""),
        Attribute::AuthPresenter => (Wire::AuthPresenter, "", ""),
        Attribute::AuthClaim(claim) => (Wire::AuthClaim, claim.as_str(), ""),
        Attribute::EnvoyFilter { filter, key } => (Wire::EnvoyFilter, key.as_str(), filter.as_str()),
        Attribute::Unknown(what) => (Wire::Unspecified, what.as_str(), ""),
    };
    v1::Clause {
        field: clause.field.clone(),
        attribute: attribute.into(),
        key: key.to_owned(),
        filter: filter.to_owned(),
        negated: clause.negated,
        values: clause.values.iter().map(matcher_message).collect(),
    }
}

fn clauses(messages: Vec<v1::Clause>) -> Vec<Clause> {
    messages.into_iter().map(clause).collect()
}

fn clause(message: v1::Clause) -> Clause {
    let values: Option<Vec<Matcher>> = message.values.iter().map(matcher).collect();
    let attribute = attribute(&message);
    match values {
        Some(values) => Clause { field: message.field, attribute, negated: message.negated, values },
        // Dropping the one value that is not understood would widen a negated clause.
        None => Clause {
            attribute: Attribute::Unknown(message.field.clone()),
            field: message.field,
            negated: message.negated,
            values: Vec::new(),
        },
    }
}

fn attribute(message: &v1::Clause) -> Attribute {
    use v1::Attribute as Wire;
    match Wire::try_from(message.attribute).unwrap_or(Wire::Unspecified) {
        Wire::Host => Attribute::Host,
        Wire::Path => Attribute::Path,
        Wire::Method => Attribute::Method,
        Wire::Header => Attribute::Header(message.key.clone()),
        Wire::DestinationIp => Attribute::DestinationIp,
        Wire::DestinationPort => Attribute::DestinationPort,
        Wire::Sni => Attribute::Sni,
        Wire::SourcePrincipal => Attribute::SourcePrincipal,
        Wire::SourceNamespace => Attribute::SourceNamespace,
        Wire::SourceIp => Attribute::SourceIp,
        Wire::AuthPrincipal => Attribute::AuthPrincipal,
        Wire::AuthAudiences => Attribute::AuthAudiences,
        Wire::AuthPresenter => Attribute::AuthPresenter,
        Wire::AuthClaim => Attribute::AuthClaim(message.key.clone()),
        Wire::EnvoyFilter => Attribute::EnvoyFilter { filter: message.filter.clone(), key: message.key.clone() },
        Wire::Unspecified if message.key.is_empty() => Attribute::Unknown(message.field.clone()),
        Wire::Unspecified => Attribute::Unknown(message.key.clone()),
    }
}

fn matcher_message(matcher: &Matcher) -> v1::Matcher {
    use v1::matcher::Kind;
    let kind = match matcher {
        Matcher::Present => Kind::Present(v1::Present {}),
        Matcher::Exact(text) => Kind::Exact(text.clone()),
        Matcher::Prefix(text) => Kind::Prefix(text.clone()),
        Matcher::Suffix(text) => Kind::Suffix(text.clone()),
        Matcher::Cidr(net) => Kind::Cidr(net.to_string()),
        Matcher::Port(port) => Kind::Port(u32::from(*port)),
    };
    v1::Matcher { kind: Some(kind) }
}

fn matcher(message: &v1::Matcher) -> Option<Matcher> {
    use v1::matcher::Kind;
    match message.kind.as_ref()? {
        Kind::Present(_) => Some(Matcher::Present),
        Kind::Exact(text) => Some(Matcher::Exact(text.clone())),
        Kind::Prefix(text) => Some(Matcher::Prefix(text.clone())),
        Kind::Suffix(text) => Some(Matcher::Suffix(text.clone())),
        Kind::Cidr(net) => net.parse().ok().map(Matcher::Cidr),
        Kind::Port(port) => u16::try_from(*port).ok().map(Matcher::Port),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_attribute() -> impl Strategy<Value = Attribute> {
        let key = "[a-z]{1,4}";
        prop_oneof![
            Just(Attribute::Host),
            Just(Attribute::Path),
            Just(Attribute::Method),
            key.prop_map(Attribute::Header),
            Just(Attribute::DestinationIp),
            Just(Attribute::DestinationPort),
            Just(Attribute::Sni),
            Just(Attribute::SourcePrincipal),
            Just(Attribute::SourceNamespace),
            Just(Attribute::SourceIp),
            Just(Attribute::AuthPrincipal),
            Just(Attribute::AuthAudiences),
            Just(Attribute::AuthPresenter),
            key.prop_map(Attribute::AuthClaim),
            (key, key).prop_map(|(filter, key)| Attribute::EnvoyFilter { filter, key }),
            key.prop_map(Attribute::Unknown),
        ]
    }

    fn any_matcher() -> impl Strategy<Value = Matcher> {
        let text = "[a-z/]{0,5}";
        prop_oneof![
            Just(Matcher::Present),
            text.prop_map(Matcher::Exact),
            text.prop_map(Matcher::Prefix),
            text.prop_map(Matcher::Suffix),
            (any::<[u8; 4]>(), 0_u8..=32).prop_map(|(address, length)| Matcher::Cidr(
                format!("{}/{length}", std::net::Ipv4Addr::from(address)).parse().unwrap()
            )),
            any::<u16>().prop_map(Matcher::Port),
        ]
    }

    fn any_clauses() -> impl Strategy<Value = Vec<Clause>> {
        let values = prop::collection::vec(any_matcher(), 0..3);
        let clause = ("[a-z]{1,4}", any_attribute(), any::<bool>(), values)
            .prop_map(|(field, attribute, negated, values)| Clause { field, attribute, negated, values });
        prop::collection::vec(clause, 0..3)
    }

    fn any_policy() -> impl Strategy<Value = WorkloadPolicy> {
        let rules = prop::collection::vec(
            (any::<u32>(), any_clauses()).prop_map(|(index, clauses)| Rule { index, clauses }),
            0..3,
        );
        let subjects = prop::collection::vec(
            (any::<u32>(), any_clauses()).prop_map(|(index, clauses)| Subject { index, clauses }),
            0..3,
        );
        let bindings = prop::collection::vec(
            ("[a-z]{1,4}", "[a-z]{1,4}", any::<bool>(), subjects)
                .prop_map(|(namespace, name, shadow, subjects)| Binding { namespace, name, shadow, subjects }),
            0..3,
        );
        let role = ("[a-z]{1,4}", "[a-z]{1,4}", rules, bindings).prop_map(|(namespace, name, rules, bindings)| Role {
            namespace,
            name,
            rules,
            bindings,
        });
        let roles = prop::collection::vec(role, 0..3);
        let active = (prop_oneof![Just(Activation::On), Just(Activation::Shadow)], roles)
            .prop_map(|(activation, roles)| WorkloadPolicy { activation, roles });
        prop_oneof![1 => Just(WorkloadPolicy::off()), 9 => active]
    }

    proptest! {
        #[test]
        fn a_policy_crosses_the_wire_unchanged(policy in any_policy()) {
            prop_assert_eq!(WorkloadPolicy::from(v1::Policy::from(&policy)), policy);
        }
    }

    #[test]
    fn what_is_not_understood_denies() {
        assert_eq!(WorkloadPolicy::from(v1::Policy::default()), WorkloadPolicy::deny_all());

        let newer = v1::Clause {
            field: "notMoons".into(),
            attribute: v1::Attribute::Path.into(),
            negated: true,
            values: vec![v1::Matcher { kind: None }],
            ..v1::Clause::default()
        };
        assert_eq!(clause(newer).attribute, Attribute::Unknown("notMoons".into()));

        let unknown = v1::Clause { field: "moons".into(), attribute: 9_999, ..v1::Clause::default() };
        assert_eq!(clause(unknown).attribute, Attribute::Unknown("moons".into()));
    }
}
