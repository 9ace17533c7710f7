//! Finds the few rules and subjects that a request can match, without looking at the others.
//!
//! A rule is filed under one of its clauses (path, else host, port, method), a subject under its principal
//! or namespace; what has none of these lies in `rest`. A request looks up a handful of lists on each
//! side, each sorted by role, and the lists are intersected by role. Filing only narrows: every candidate is
//! checked in full afterwards.

use crate::hash::Table;
use crate::model::{Attribute, Clause, Matcher, Role};
use crate::patterns::{PatternIndex, PatternIndexBuilder};
use crate::request::{Protocol, Request};

/// One rule, or one subject of one binding, within a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) role: u32,
    /// 0 for a rule.
    pub(crate) binding: u32,
    pub(crate) item: u32,
}

/// The rules of a policy, filed.
#[derive(Debug)]
pub(crate) struct RuleIndex {
    path: PatternIndex,
    host: PatternIndex,
    port: Table<u16, Vec<Entry>>,
    method: Table<Box<str>, Vec<Entry>>,
    rest: Vec<Entry>,
}

/// The subjects of a policy, filed.
#[derive(Debug)]
pub(crate) struct SubjectIndex {
    principal: PatternIndex,
    namespace: PatternIndex,
    rest: Vec<Entry>,
}

impl RuleIndex {
    /// `roles` are the roles that may match, each with its place in the policy.
    pub(crate) fn new<'a>(roles: impl Iterator<Item = (u32, &'a Role)>) -> Self {
        let (mut path, mut host) = (PatternIndexBuilder::default(), PatternIndexBuilder::default());
        let (mut port, mut method) = (Table::<u16, Vec<Entry>>::default(), Table::<Box<str>, Vec<Entry>>::default());
        let mut rest = Vec::new();
        for (role, document) in roles {
            for (item, rule) in (0..).zip(&document.rules) {
                let entry = Entry { role, binding: 0, item };
                if let Some(clause) = text_key(&rule.clauses, &Attribute::Path) {
                    path.file(&clause.values, entry);
                } else if let Some(clause) = text_key(&rule.clauses, &Attribute::Host) {
                    host.file(&clause.values, entry);
                } else if let Some(ports) = ports_key(&rule.clauses) {
                    ports.into_iter().for_each(|number| file(port.entry(number).or_default(), entry));
                } else if let Some(methods) = methods_key(&rule.clauses) {
                    methods.into_iter().for_each(|name| file(method.entry(name.into()).or_default(), entry));
                } else {
                    rest.push(entry);
                }
            }
        }
        Self { path: path.build(), host: host.build(), port, method, rest }
    }

    /// The lists in which every rule that matches `request` is found.
    pub(crate) fn candidates<'a>(&'a self, request: &Request<'_>, lists: &mut Lists<'a>) {
        if let Protocol::Http(http) = request.protocol {
            self.path.look_up(http.path.as_str(), lists);
            if let Some(host) = http.host {
                self.host.look_up(host.as_str(), lists);
            }
            lists.push(self.method.get(http.method).map_or(&[], Vec::as_slice));
        }
        lists.push(self.port.get(&request.destination.port()).map_or(&[], Vec::as_slice));
        lists.push(&self.rest);
    }
}

impl SubjectIndex {
    /// `roles` are the roles that may match, each with its place in the policy.
    pub(crate) fn new<'a>(roles: impl Iterator<Item = (u32, &'a Role)>) -> Self {
        let (mut principal, mut namespace) = (PatternIndexBuilder::default(), PatternIndexBuilder::default());
        let mut rest = Vec::new();
        for (role, document) in roles {
            for (binding, bound) in (0..).zip(&document.bindings) {
                for (item, subject) in (0..).zip(&bound.subjects) {
                    let entry = Entry { role, binding, item };
                    if let Some(clause) = text_key(&subject.clauses, &Attribute::SourcePrincipal) {
                        principal.file(&clause.values, entry);
                    } else if let Some(clause) = text_key(&subject.clauses, &Attribute::SourceNamespace) {
                        namespace.file(&clause.values, entry);
                    } else {
                        rest.push(entry);
                    }
                }
            }
        }
        Self { principal: principal.build(), namespace: namespace.build(), rest }
    }

    /// The lists in which every subject that matches `request` is found.
    pub(crate) fn candidates<'a>(&'a self, request: &Request<'_>, lists: &mut Lists<'a>) {
        if let Some(source) = request.source {
            self.principal.look_up(source.principal(), lists);
            // Taking the namespace out of the identity costs something.
            if !self.namespace.is_empty()
                && let Some(namespace) = request.source_namespace()
            {
                self.namespace.look_up(namespace, lists);
            }
        }
        lists.push(&self.rest);
    }
}

/// Adds an entry; entries come in order, and one that repeats comes right after itself.
pub(crate) fn file(list: &mut Vec<Entry>, entry: Entry) {
    if list.last() != Some(&entry) {
        list.push(entry);
    }
}

/// The positive clause on `attribute` whose values all name a text to file under.
fn text_key<'a>(clauses: &'a [Clause], attribute: &Attribute) -> Option<&'a Clause> {
    let is_text = |value: &Matcher| matches!(value, Matcher::Exact(_) | Matcher::Prefix(_) | Matcher::Suffix(_));
    clauses.iter().find(|c| !c.negated && c.attribute == *attribute && c.values.iter().all(is_text))
}

fn ports_key(clauses: &[Clause]) -> Option<Vec<u16>> {
    let port = |value: &Matcher| match value {
        Matcher::Port(port) => Some(*port),
        _ => None,
    };
    clauses
        .iter()
        .filter(|c| !c.negated && c.attribute == Attribute::DestinationPort)
        .find_map(|c| c.values.iter().map(port).collect())
}

fn methods_key(clauses: &[Clause]) -> Option<Vec<&str>> {
    clauses
        .iter()
        .filter(|c| !c.negated && c.attribute == Attribute::Method)
        .find_map(|c| c.values.iter().map(exact_text).collect())
}

fn exact_text(value: &Matcher) -> Option<&str> {
    match value {
        Matcher::Exact(text) => Some(text),
        _ => None,
    }
}

/// The lists a request looked up. They lie on the stack as long as they are few, as they are
/// unless patterns nest deeper than a dozen levels.
pub(crate) struct Lists<'a> {
    few: [&'a [Entry]; FEW],
    len: usize,
    more: Vec<&'a [Entry]>,
}

const FEW: usize = 24;

impl<'a> Lists<'a> {
    pub(crate) fn new() -> Self {
        Self { few: [&[]; FEW], len: 0, more: Vec::new() }
    }

    pub(crate) fn push(&mut self, list: &'a [Entry]) {
        if list.is_empty() {
            return;
        }
        match self.few.get_mut(self.len) {
            Some(slot) => {
                *slot = list;
                self.len += 1;
            }
            None => self.more.push(list),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [Entry]> {
        self.few.iter().take(self.len).chain(&self.more).copied()
    }
}

/// Calls `visit` with the entries of each role that stands in both lists, until it returns something.
pub(crate) fn intersect<T>(
    mut rules: &[Entry],
    mut subjects: &[Entry],
    mut visit: impl FnMut(&[Entry], &[Entry]) -> Option<T>,
) -> Option<T> {
    loop {
        let (rule, subject) = (rules.first()?, subjects.first()?);
        if rule.role < subject.role {
            rules = skip_to(rules, subject.role);
        } else if subject.role < rule.role {
            subjects = skip_to(subjects, rule.role);
        } else {
            let (ours, later) = split_role(rules, rule.role);
            let (theirs, later_subjects) = split_role(subjects, rule.role);
            if let Some(found) = visit(ours, theirs) {
                return Some(found);
            }
            (rules, subjects) = (later, later_subjects);
        }
    }
}

/// The list from the first entry on whose role is `role` or later. Gallops: cheap for near and far.
fn skip_to(list: &[Entry], role: u32) -> &[Entry] {
    let mut step = 1;
    let mut before = 0;
    while list.get(step).is_some_and(|entry| entry.role < role) {
        before = step;
        step *= 2;
    }
    let window = list.get(before..list.len().min(step + 1)).unwrap_or_default();
    let start = before + window.partition_point(|entry| entry.role < role);
    list.get(start..).unwrap_or_default()
}

fn split_role(list: &[Entry], role: u32) -> (&[Entry], &[Entry]) {
    let end = list.iter().position(|entry| entry.role != role).unwrap_or(list.len());
    list.split_at_checked(end).unwrap_or((list, &[]))
}
