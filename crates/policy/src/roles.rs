//! `ServiceRole`: what may be done, as rules.

use std::collections::HashSet;

use alcazar_yaml::{Mapping, Node, Reader, Text, YamlError, suggest};

use crate::model::{Attribute, Clause, Matcher};
use crate::values;

/// One entry of `rules`.
#[derive(Debug, Clone)]
pub(crate) struct RuleSpec {
    pub(crate) index: u32,
    /// AND. Resolved against the workload.
    pub(crate) targets: Vec<Target>,
    /// AND. Matched against requests.
    pub(crate) clauses: Vec<Clause>,
}

/// A condition on the workload that the rule is for.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) what: TargetAttribute,
    /// OR.
    pub(crate) values: Vec<Matcher>,
}

/// What of a workload a [`Target`] looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetAttribute {
    Service,
    Label(String),
    Name,
    Namespace,
    ServiceAccount,
}

/// Reads a value of one kind.
pub(crate) type ReadValue = fn(&mut Reader<'_>, &Text) -> Option<Matcher>;

pub(crate) fn read_role(reader: &mut Reader<'_>, spec: &Node) -> Option<Vec<RuleSpec>> {
    let mut fields = reader.mapping(spec, "spec")?;
    let rules = fields.take("rules");
    reader.finish(fields);
    let Some(rules) = rules else {
        reader.error_with_help(&spec.span, "`rules` is missing", "a role without a rule allows nothing: add one");
        return None;
    };
    read_rules(reader, rules, "rules")
}

/// A list of rules: a role's `rules`, or a binding's `actions`.
pub(crate) fn read_rules(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Vec<RuleSpec>> {
    let items = reader.list(node, what)?;
    if items.is_empty() {
        reader.error_with_help(
            &node.span,
            format!("`{what}` has no rule"),
            "a role without a rule allows nothing: add one",
        );
        return None;
    }
    Some((0..).zip(items).filter_map(|(index, item)| read_rule(reader, index, item)).collect())
}

fn read_rule(reader: &mut Reader<'_>, index: u32, node: &Node) -> Option<RuleSpec> {
    let mut fields = reader.mapping(node, "rule")?;
    let mut rule = RuleSpec { index, targets: Vec::new(), clauses: Vec::new() };
    if let Some(node) = fields.take("services")
        && let Some(values) = read_values(reader, node, "services", values::pattern)
    {
        rule.targets.push(Target { what: TargetAttribute::Service, values });
    }
    for (field, snake, attribute, negated, read) in FIELDS {
        if let Some(node) = take_either(reader, &mut fields, field, snake)
            && let Some(values) = read_values(reader, node, field, read)
        {
            rule.clauses.push(Clause { field: field.to_owned(), attribute, negated, values });
        }
    }
    for (field, negation, snake) in [("methods", "notMethods", "not_methods"), ("ports", "notPorts", "not_ports")] {
        if fields.has(field) && (fields.has(negation) || fields.has(snake)) {
            reader.error_with_help(
                fields.span(),
                format!("a rule cannot have both `{field}` and `{negation}`"),
                "keep one of them",
            );
        }
    }
    let has_ports = fields.has("ports") || fields.has("notPorts") || fields.has("not_ports");
    if let Some(node) = fields.take("constraints") {
        read_constraints(reader, node, has_ports, &mut rule);
    }
    let is_empty = fields.is_empty();
    reader.finish(fields);
    if is_empty {
        let help = "write `services: [\"*\"]` to allow every request to every service of the namespace";
        reader.error_with_help(&node.span, "the rule is empty", help);
        return None;
    }
    Some(rule)
}

/// Field, its spelling in snake case, what it looks at, whether it is a negation, and how its values are read.
const FIELDS: [(&str, &str, Attribute, bool, ReadValue); 8] = [
    ("hosts", "hosts", Attribute::Host, false, values::host),
    ("notHosts", "not_hosts", Attribute::Host, true, values::host),
    ("paths", "paths", Attribute::Path, false, values::path),
    ("notPaths", "not_paths", Attribute::Path, true, values::path),
    ("methods", "methods", Attribute::Method, false, values::pattern),
    ("notMethods", "not_methods", Attribute::Method, true, values::pattern),
    ("ports", "ports", Attribute::DestinationPort, false, values::port),
    ("notPorts", "not_ports", Attribute::DestinationPort, true, values::port),
];

/// The field, in either of the spellings that protobuf's JSON has.
pub(crate) fn take_either<'n>(
    reader: &mut Reader<'_>,
    fields: &mut Mapping<'n>,
    camel: &'static str,
    snake: &'static str,
) -> Option<&'n Node> {
    let found = fields.take(camel);
    if camel == snake {
        return found;
    }
    match (found, fields.take_with_key(snake)) {
        (Some(node), Some((key, _))) => {
            reader.error_with_help(
                &key.span,
                format!("`{camel}` and `{snake}` are the same field"),
                "keep one of them",
            );
            Some(node)
        }
        (Some(node), None) | (None, Some((_, node))) => Some(node),
        (None, None) => None,
    }
}

/// A list of at least one value. `None` when any of it is wrong.
pub(crate) fn read_values(reader: &mut Reader<'_>, node: &Node, what: &str, read: ReadValue) -> Option<Vec<Matcher>> {
    let texts = reader.texts(node, what)?;
    if texts.is_empty() {
        let help = "leave the field away if it does not matter";
        reader.error_with_help(&node.span, format!("`{what}` is empty: it would match nothing"), help);
        return None;
    }
    Some(texts.iter().filter_map(|text| read(reader, text)).collect())
}

fn read_constraints(reader: &mut Reader<'_>, node: &Node, has_ports: bool, rule: &mut RuleSpec) {
    let mut seen = HashSet::new();
    let items = reader.list(node, "constraints");
    if items.is_some_and(<[Node]>::is_empty) {
        // As a rule's only field it would leave a rule that matches everything.
        let help = "leave the field away if it does not matter";
        reader.error_with_help(&node.span, "`constraints` is empty: it would limit nothing", help);
    }
    for item in items.unwrap_or_default() {
        let Some(mut fields) = reader.mapping(item, "constraint") else { continue };
        let (key, values) = (fields.take("key"), fields.take("values"));
        reader.finish(fields);
        let (Some(key), Some(values)) = (key, values) else {
            reader.error_with_help(&item.span, "a constraint has a `key` and `values`", "add what is missing");
            continue;
        };
        let Some(key) = reader.text(key, "key") else { continue };
        let Some(what) = constraint(reader, &key) else { continue };
        // Headers are told apart without regard to case.
        if !seen.insert(key.text.to_ascii_lowercase()) {
            let help = "put all values under one: they are alternatives";
            reader.error_with_help(&key.span, format!("the constraint `{}` stands twice", key.text), help);
        }
        if has_ports && matches!(what, Constraint::Request(Attribute::DestinationPort, _)) {
            let help = "keep one of them";
            reader.error_with_help(
                &key.span,
                "a rule cannot have both `ports` and a constraint `destination.port`",
                help,
            );
        }
        match what {
            Constraint::Target(what) => {
                let read = if what == TargetAttribute::ServiceAccount { account } else { values::pattern };
                let values = read_values(reader, values, "values", read).unwrap_or_default();
                rule.targets.push(Target { what, values });
            }
            Constraint::Request(attribute, read) => {
                let values = read_values(reader, values, "values", read).unwrap_or_default();
                let field = format!("constraints[{}]", key.text);
                rule.clauses.push(Clause { field, attribute, negated: false, values });
            }
        }
    }
}

enum Constraint {
    Target(TargetAttribute),
    Request(Attribute, ReadValue),
}

fn constraint(reader: &mut Reader<'_>, key: &Text) -> Option<Constraint> {
    let text = key.text.as_str();
    if let Some(label) = values::bracketed(text, "destination.labels").filter(|label| !label.is_empty()) {
        return Some(Constraint::Target(TargetAttribute::Label(label.to_owned())));
    }
    if let Some(name) = values::bracketed(text, "request.headers") {
        let name = values::header_name(reader, key, name)?;
        return Some(Constraint::Request(Attribute::Header(name), values::pattern));
    }
    if let Some((filter, key)) = envoy_filter(text) {
        let attribute = Attribute::EnvoyFilter { filter: filter.to_owned(), key: key.to_owned() };
        return Some(Constraint::Request(attribute, values::pattern));
    }
    match text {
        "destination.name" => Some(Constraint::Target(TargetAttribute::Name)),
        "destination.namespace" => Some(Constraint::Target(TargetAttribute::Namespace)),
        "destination.user" => Some(Constraint::Target(TargetAttribute::ServiceAccount)),
        "destination.ip" => Some(Constraint::Request(Attribute::DestinationIp, values::network)),
        "destination.port" => Some(Constraint::Request(Attribute::DestinationPort, values::port)),
        "connection.sni" => Some(Constraint::Request(Attribute::Sni, values::pattern)),
        _ => {
            unknown_key(reader, key, "constraint", &CONSTRAINTS);
            None
        }
    }
}

/// Notes a key that is none, with the nearest one that is. What stands in brackets is left aside.
pub(crate) fn unknown_key(reader: &mut Reader<'_>, key: &Text, what: &str, known: &[&str]) {
    let bare = key.text.split('[').next().unwrap_or_default();
    let error = YamlError::new(reader.file(), key.span.clone(), format!("`{}` is not the key of a {what}", key.text));
    reader.push(error.with_help_if(suggest(bare, known.iter().copied())));
}

const CONSTRAINTS: [&str; 9] = [
    "destination.labels[..]",
    "destination.name",
    "destination.namespace",
    "destination.user",
    "destination.ip",
    "destination.port",
    "request.headers[..]",
    "connection.sni",
    "experimental.envoy.filters.X[..]",
];

/// `experimental.envoy.filters.<filter>[<key>]`.
fn envoy_filter(text: &str) -> Option<(&str, &str)> {
    let (filter, key) = text.strip_prefix("experimental.envoy.filters.")?.strip_suffix(']')?.split_once('[')?;
    (!filter.is_empty() && !key.is_empty()).then_some((filter, key))
}

/// The bare name of a service account.
fn account(reader: &mut Reader<'_>, value: &Text) -> Option<Matcher> {
    if let Some((_, name)) = value.text.rsplit_once('/') {
        let message = format!("`{}` can never match: `destination.user` is the bare name of the account", value.text);
        reader.error_with_help(&value.span, message, format!("write `{name}`"));
        return None;
    }
    values::pattern(reader, value)
}
