//! For a denial: the role that came closest, and which clauses of it failed.

use crate::eval::{holds, text};
use crate::model::{Attribute, Binding, Clause, Role, Rule, Subject, WorkloadPolicy};
use crate::record::{FailedRecord, MissRecord, REDACTED};
use crate::request::{Protocol, Request};

/// The role with the fewest failed clauses, over its best rule and its best subject.
///
/// Of equals: the one of which more clauses hold, then the one whose rule covers the request, then the first.
pub(crate) fn nearest_miss(policy: &WorkloadPolicy, request: &Request<'_>, in_shadow: bool) -> Option<MissRecord> {
    let misses = policy.roles.iter().filter_map(|role| Miss::of(role, request, in_shadow));
    let nearest = misses.min_by_key(Miss::distance)?;
    Some(nearest.record(request))
}

/// How one role failed.
struct Miss<'a> {
    role: &'a Role,
    rule: &'a Rule,
    rule_score: Score,
    bound: Option<(&'a Binding, &'a Subject, Score)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    failed: usize,
    held: std::cmp::Reverse<usize>,
}

impl Score {
    fn of(clauses: &[Clause], request: &Request<'_>) -> Self {
        let held = clauses.iter().filter(|clause| holds(clause, request)).count();
        Self { failed: clauses.len().saturating_sub(held), held: std::cmp::Reverse(held) }
    }
}

impl<'a> Miss<'a> {
    fn of(role: &'a Role, request: &Request<'_>, in_shadow: bool) -> Option<Self> {
        let scored = role.rules.iter().map(|rule| (rule, Score::of(&rule.clauses, request)));
        let (rule, rule_score) = scored.min_by_key(|(_, score)| *score)?;
        let bindings = role.bindings.iter().filter(|binding| in_shadow || !binding.shadow);
        let subjects = bindings.flat_map(|binding| binding.subjects.iter().map(move |subject| (binding, subject)));
        let bound = subjects
            .map(|(binding, subject)| (binding, subject, Score::of(&subject.clauses, request)))
            .min_by_key(|(_, _, score)| *score);
        Some(Self { role, rule, rule_score, bound })
    }

    fn distance(&self) -> impl Ord + use<> {
        let rule = self.rule_score;
        match self.bound {
            Some((_, _, subject)) => {
                let held = std::cmp::Reverse(rule.held.0 + subject.held.0);
                (false, rule.failed + subject.failed, held, rule.failed)
            }
            // Bound to nobody: only where nothing else is there.
            None => (true, rule.failed, rule.held, rule.failed),
        }
    }

    fn record(&self, request: &Request<'_>) -> MissRecord {
        let subject_clauses = self.bound.map_or(&[][..], |(_, subject, _)| &subject.clauses);
        let clauses = self.rule.clauses.iter().chain(subject_clauses);
        MissRecord {
            role: format!("{}/{}", self.role.namespace, self.role.name),
            rule: Some(self.rule.index),
            binding: self.bound.map(|(binding, ..)| format!("{}/{}", binding.namespace, binding.name)),
            subject: self.bound.map(|(_, subject, _)| subject.index),
            failed: clauses.filter(|clause| !holds(clause, request)).map(|c| failed(c, request)).collect(),
        }
    }
}

fn failed(clause: &Clause, request: &Request<'_>) -> FailedRecord {
    FailedRecord {
        field: clause.field.clone(),
        attribute: clause.attribute.to_string(),
        seen: seen(&clause.attribute, request),
        expected: clause.values.iter().map(ToString::to_string).collect(),
        negated: clause.negated,
        http_only: clause.attribute.is_http_only() && !request.protocol.is_http(),
    }
}

/// What the request has for an attribute, as texts fit for a log.
pub(crate) fn seen(attribute: &Attribute, request: &Request<'_>) -> Vec<String> {
    match (attribute, request.protocol) {
        (Attribute::DestinationIp, _) => vec![request.destination.ip().to_canonical().to_string()],
        (Attribute::SourceIp, _) => vec![request.source_ip.to_canonical().to_string()],
        (Attribute::DestinationPort, _) => vec![request.destination.port().to_string()],
        (Attribute::Header(name), Protocol::Http(http)) => {
            let mut values = Vec::new();
            http.headers.visit(name, &mut |value| {
                let value = String::from_utf8_lossy(value).into_owned();
                values.push(if is_credential(name) { REDACTED.to_owned() } else { value });
                true
            });
            values
        }
        (attribute, _) => text(attribute, request).map(str::to_owned).into_iter().collect(),
    }
}

/// Headers whose values let whoever reads them act as the caller.
fn is_credential(name: &str) -> bool {
    const CREDENTIALS: [&str; 5] = ["authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"];
    CREDENTIALS.contains(&name)
}
