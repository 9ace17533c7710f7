//! `ServiceRoleBinding`: who gets a role.

use std::collections::HashSet;

use alcazar_yaml::{Mapping, Node, Reader, Text, Value};

use crate::documents::name_text;
use crate::model::{Attribute, Clause, Matcher, Subject};
use crate::roles::{ReadValue, RuleSpec, read_rules, read_values, take_either, unknown_key};
use crate::values;

/// What a binding says.
#[derive(Debug, Clone)]
pub(crate) struct BindingSpec {
    pub(crate) role: RoleSpec,
    pub(crate) shadow: bool,
    pub(crate) subjects: Vec<Subject>,
}

/// The role that is bound.
#[derive(Debug, Clone)]
pub(crate) enum RoleSpec {
    /// A role of the binding's own namespace.
    Here(String),
    /// `/x`: a role of the root namespace.
    Root(String),
    /// `actions`: rules that belong to this binding alone.
    Inline(Vec<RuleSpec>),
}

pub(crate) fn read_binding(reader: &mut Reader<'_>, spec: &Node) -> Option<BindingSpec> {
    let mut fields = reader.mapping(spec, "spec")?;
    let role = read_role_of(reader, &mut fields);
    let mode = fields.take("mode");
    let mode = mode.map(|node| reader.one_of(node, "mode", &MODES));
    let subjects = fields.take("subjects");
    let start = fields.span().clone();
    reader.finish(fields);
    let Some(subjects) = subjects else {
        reader.error_with_help(&start, "`subjects` is missing", "a binding without a subject allows nobody: add one");
        return None;
    };
    let subjects = read_subjects(reader, subjects)?;
    Some(BindingSpec { role: role?, shadow: mode.unwrap_or(Some(false))?, subjects })
}

/// Whether a mode is shadow.
pub(crate) const MODES: [(&str, bool); 2] = [("ENFORCED", false), ("PERMISSIVE", true)];

fn read_role_of(reader: &mut Reader<'_>, fields: &mut Mapping<'_>) -> Option<RoleSpec> {
    let by_ref = take_either(reader, fields, "roleRef", "role_ref");
    let by_name = fields.take("role");
    let inline = fields.take("actions");
    match (by_ref, by_name, inline) {
        (Some(node), None, None) => read_role_ref(reader, node),
        (None, Some(node), None) => {
            let text = reader.text(node, "role")?;
            match text.text.strip_prefix('/') {
                Some(name) => role_name(reader, name, &text).map(RoleSpec::Root),
                None => role_name(reader, &text.text, &text).map(RoleSpec::Here),
            }
        }
        (None, None, Some(node)) => read_rules(reader, node, "actions").map(RoleSpec::Inline),
        (None, None, None) => {
            reader.error_with_help(
                fields.span(),
                "the binding names no role",
                "add `roleRef:` with `kind: ServiceRole` and `name:`",
            );
            None
        }
        _ => {
            reader.error(fields.span(), "the binding has more than one of `roleRef`, `role` and `actions`: keep one");
            None
        }
    }
}

fn read_role_ref(reader: &mut Reader<'_>, node: &Node) -> Option<RoleSpec> {
    let mut fields = reader.mapping(node, "roleRef")?;
    let (kind, name) = (fields.take("kind"), fields.take("name"));
    reader.finish(fields);
    match kind {
        Some(kind) => reader.one_of(kind, "kind", &[("ServiceRole", ())])?,
        None => {
            reader.error_with_help(&node.span, "`kind` is missing", "add `kind: ServiceRole`");
            return None;
        }
    }
    let Some(name) = name else {
        reader.error_with_help(&node.span, "`name` is missing", "add the `name:` of a ServiceRole");
        return None;
    };
    name_text(reader, name, "name").map(|name| RoleSpec::Here(name.text))
}

fn role_name(reader: &mut Reader<'_>, name: &str, text: &Text) -> Option<String> {
    let node = Node { span: text.span.clone(), value: Value::Scalar(name.to_owned()) };
    name_text(reader, &node, "role").map(|name| name.text)
}

fn read_subjects(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<Subject>> {
    let items = reader.list(node, "subjects")?;
    if items.is_empty() {
        reader.error_with_help(&node.span, "`subjects` is empty", "a binding without a subject allows nobody: add one");
        return None;
    }
    Some((0..).zip(items).filter_map(|(index, item)| read_subject(reader, index, item)).collect())
}

fn read_subject(reader: &mut Reader<'_>, index: u32, node: &Node) -> Option<Subject> {
    let mut fields = reader.mapping(node, "subject")?;
    let mut clauses = Vec::new();
    if let Some(user) = fields.take("user") {
        let user = reader.text(user, "user").and_then(|text| caller(reader, &text, "user"));
        clauses.extend(user.and_then(|user| named(vec![user], "user", false)));
    }
    if let Some(group) = fields.take("group") {
        let group = reader.text(group, "group").and_then(|text| values::pattern(reader, &text));
        clauses.extend(group.map(|group| clause("group", groups(), false, vec![group])));
    }
    for (field, snake, negated) in [("names", "names", false), ("notNames", "not_names", true)] {
        if let Some(node) = take_either(reader, &mut fields, field, snake) {
            clauses.extend(read_names(reader, node, field, negated));
        }
    }
    for (field, snake, attribute, negated, read) in FIELDS {
        if let Some(node) = take_either(reader, &mut fields, field, snake)
            && let Some(values) = read_values(reader, node, field, read)
        {
            let attribute = attribute.unwrap_or_else(groups);
            clauses.push(clause(field, attribute, negated, values));
        }
    }
    let properties = fields.take("properties");
    let is_empty = fields.is_empty();
    reader.finish(fields);
    if let Some(node) = properties {
        read_properties(reader, node, &mut clauses);
    }
    if is_empty {
        reader.error_with_help(&node.span, "the subject is empty", "write `user: \"*\"` for anyone");
        return None;
    }
    Some(Subject { index, clauses })
}

/// As for a rule. No attribute: `request.auth.claims[groups]`.
const FIELDS: [(&str, &str, Option<Attribute>, bool, ReadValue); 6] = [
    ("groups", "groups", None, false, values::pattern),
    ("notGroups", "not_groups", None, true, values::pattern),
    ("namespaces", "namespaces", Some(Attribute::SourceNamespace), false, values::pattern),
    ("notNamespaces", "not_namespaces", Some(Attribute::SourceNamespace), true, values::pattern),
    ("ips", "ips", Some(Attribute::SourceIp), false, values::network),
    ("notIps", "not_ips", Some(Attribute::SourceIp), true, values::network),
];

fn groups() -> Attribute {
    Attribute::AuthClaim("groups".to_owned())
}

fn clause(field: &str, attribute: Attribute, negated: bool, values: Vec<Matcher>) -> Clause {
    Clause { field: field.to_owned(), attribute, negated, values }
}

/// A caller, as `user` and `names` name one.
enum Caller {
    /// Authenticated or not.
    Anyone,
    Principal(Matcher),
}

fn caller(reader: &mut Reader<'_>, value: &Text, field: &str) -> Option<Caller> {
    match value.text.as_str() {
        "allUsers" => Some(Caller::Anyone),
        "*" if field == "user" => Some(Caller::Anyone),
        "*" => {
            let help = "write `allAuthenticatedUsers`, or `user: \"*\"` for anyone";
            reader.error_with_help(
                &value.span,
                format!("`{field}: [\"*\"]` does not say whether callers must authenticate"),
                help,
            );
            None
        }
        "allAuthenticatedUsers" => Some(Caller::Principal(Matcher::Present)),
        _ => values::principal(reader, value).map(Caller::Principal),
    }
}

fn read_names(reader: &mut Reader<'_>, node: &Node, field: &str, negated: bool) -> Option<Clause> {
    let texts = reader.texts(node, field)?;
    if texts.is_empty() {
        let help = "leave the field away if it does not matter";
        reader.error_with_help(&node.span, format!("`{field}` is empty: it would match nothing"), help);
    }
    let mut callers = Vec::with_capacity(texts.len());
    for text in &texts {
        match caller(reader, text, field) {
            Some(Caller::Anyone) if negated => {
                reader.error(
                    &text.span,
                    format!("`{field}` with `allUsers` leaves nobody: the subject could never match"),
                );
            }
            caller => callers.extend(caller),
        }
    }
    named(callers, field, negated)
}

/// The clause for these callers; none where anyone will do.
fn named(callers: Vec<Caller>, field: &str, negated: bool) -> Option<Clause> {
    let principal = |caller| match caller {
        Caller::Anyone => None,
        Caller::Principal(matcher) => Some(matcher),
    };
    let principals: Option<Vec<Matcher>> = callers.into_iter().map(principal).collect();
    principals.map(|values| clause(field, Attribute::SourcePrincipal, negated, values))
}

fn read_properties(reader: &mut Reader<'_>, node: &Node, clauses: &mut Vec<Clause>) {
    let Some(mut fields) = reader.mapping(node, "properties") else { return };
    let entries = fields.take_rest();
    if entries.is_empty() {
        reader.error(&node.span, "`properties` is empty: leave it away if it does not matter");
    }
    let mut seen = HashSet::new();
    for (key, value) in entries {
        let Some((attribute, read)) = property(reader, &key) else { continue };
        if !seen.insert(attribute.clone()) {
            reader.error(&key.span, format!("the property `{}` stands twice", key.text));
            continue;
        }
        let Some(text) = reader.text(value, &key.text) else { continue };
        if let Some(matcher) = read(reader, &text) {
            clauses.push(clause(&format!("properties[{}]", key.text), attribute, false, vec![matcher]));
        }
    }
}

fn property(reader: &mut Reader<'_>, key: &Text) -> Option<(Attribute, ReadValue)> {
    let text = key.text.as_str();
    if let Some(name) = values::bracketed(text, "request.headers") {
        return Some((Attribute::Header(values::header_name(reader, key, name)?), values::pattern));
    }
    if let Some(claim) = values::bracketed(text, "request.auth.claims").filter(|claim| !claim.is_empty()) {
        return Some((Attribute::AuthClaim(claim.to_owned()), values::pattern));
    }
    match text {
        "source.principal" | "source.user" => Some((Attribute::SourcePrincipal, source_principal)),
        "source.namespace" => Some((Attribute::SourceNamespace, values::pattern)),
        "source.ip" => Some((Attribute::SourceIp, values::network)),
        "request.auth.principal" => Some((Attribute::AuthPrincipal, values::pattern)),
        "request.auth.audiences" => Some((Attribute::AuthAudiences, values::pattern)),
        "request.auth.presenter" => Some((Attribute::AuthPresenter, values::pattern)),
        _ => {
            unknown_key(reader, key, "property", &PROPERTIES);
            None
        }
    }
}

/// `*` is any authenticated peer.
fn source_principal(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    match value.text.as_str() {
        "allAuthenticatedUsers" => Some(Matcher::Present),
        "allUsers" => {
            reader.error_with_help(
                &value.span,
                "a `source.principal` is always authenticated",
                "write `user: \"*\"` for anyone",
            );
            None
        }
        _ => values::principal(reader, value),
    }
}

const PROPERTIES: [&str; 9] = [
    "source.principal",
    "source.namespace",
    "source.ip",
    "source.user",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[..]",
    "request.headers[..]",
];
