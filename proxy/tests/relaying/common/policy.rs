use alcazar_policy::{Activation, Attribute, Binding, Clause, Matcher, Role, Rule, Subject, WorkloadPolicy};

/// This caller may do everything with these paths; on TCP ports, nothing.
pub(crate) fn allow(caller: &str, path: &str) -> WorkloadPolicy {
    let path = match path.strip_suffix('*') {
        Some(prefix) => Matcher::Prefix(prefix.to_owned()),
        None => Matcher::Exact(path.to_owned()),
    };
    role(caller, vec![clause("paths", Attribute::Path, path)])
}

/// This caller may do everything, on any port.
pub(crate) fn allow_all(caller: &str) -> WorkloadPolicy {
    role(caller, vec![])
}

fn role(caller: &str, clauses: Vec<Clause>) -> WorkloadPolicy {
    let principal = caller.strip_prefix("spiffe://").unwrap().to_owned();
    let subject = vec![clause("user", Attribute::SourcePrincipal, Matcher::Exact(principal))];
    let binding = Binding {
        namespace: "shop".to_owned(),
        name: "readers".to_owned(),
        shadow: false,
        subjects: vec![Subject { index: 0, clauses: subject }],
    };
    let role = Role {
        namespace: "shop".to_owned(),
        name: "reader".to_owned(),
        rules: vec![Rule { index: 0, clauses }],
        bindings: vec![binding],
    };
    WorkloadPolicy { activation: Activation::On, roles: vec![role] }
}

fn clause(field: &str, attribute: Attribute, value: Matcher) -> Clause {
    Clause { field: field.to_owned(), attribute, negated: false, values: vec![value] }
}
