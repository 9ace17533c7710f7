//! The words for a decision: the same in the proxy's log, on the command line and in tests.

use std::fmt;

use crate::compiled::{Compiled, clauses};
use crate::decision::{Because, Decision, Grant, Reason, Shadow};
use crate::eval::is_understood;
use crate::miss::nearest_miss;
use crate::record::{FailedRecord, GrantRecord, MissRecord, ReasonRecord, ShadowRecord, Verdict};
use crate::request::Request;

/// A decision with names and reasons. Its `Display` is one line of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What happens to the request.
    pub verdict: Verdict,
    /// Why, in a word.
    pub reason: ReasonRecord,
    /// The rule that allowed it.
    pub grant: Option<GrantRecord>,
    /// For a denial: the role that came closest.
    pub nearest_miss: Option<MissRecord>,
    /// What the permissive configuration or bindings would have said.
    pub shadow: Option<ShadowRecord>,
    /// Roles that never match because this version does not understand them, as `namespace/name`.
    pub not_understood: Vec<String>,
}

impl Compiled {
    /// Decides about `request` and says why.
    ///
    /// For a denial this looks at every rule: it costs time in proportion to their number, where
    /// [`decide`](Self::decide) does not. A proxy under a flood of denials should explain only some of them.
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        self.explain_decision(request, &self.decide(request))
    }

    /// Says why `decision`, made by this policy about `request`, came out as it did.
    pub fn explain_decision(&self, request: &Request<'_>, decision: &Decision) -> Explanation {
        let shadow = decision.shadow().map(|shadow| match shadow {
            Shadow::Allow(grant) => {
                ShadowRecord { verdict: Verdict::Allow, grant: self.grant_record(&grant), nearest_miss: None }
            }
            Shadow::Deny(_) => ShadowRecord {
                verdict: Verdict::Deny,
                grant: None,
                nearest_miss: nearest_miss(self.policy(), request, true),
            },
        });
        let (verdict, reason, grant) = match decision {
            Decision::Allow(permit) => match permit.because() {
                Because::RbacOff => (Verdict::Allow, ReasonRecord::RbacOff, None),
                Because::ShadowOnly => (Verdict::Allow, ReasonRecord::ShadowOnly, None),
                Because::Granted(grant) => (Verdict::Allow, ReasonRecord::Granted, self.grant_record(&grant)),
            },
            Decision::Deny(denial) => match denial.reason() {
                Reason::NoRole => (Verdict::Deny, ReasonRecord::NoRole, None),
                Reason::NoMatch => (Verdict::Deny, ReasonRecord::NoMatch, None),
            },
        };
        let missed = reason == ReasonRecord::NoMatch;
        let nearest_miss = if missed { nearest_miss(self.policy(), request, false) } else { None };
        Explanation { verdict, reason, grant, nearest_miss, shadow, not_understood: self.not_understood() }
    }

    fn grant_record(&self, grant: &Grant) -> Option<GrantRecord> {
        self.grant(grant).map(|names| GrantRecord {
            role: format!("{}/{}", names.role_namespace, names.role),
            rule: names.rule,
            binding: format!("{}/{}", names.binding_namespace, names.binding),
            subject: names.subject,
        })
    }

    fn not_understood(&self) -> Vec<String> {
        let roles = self.policy().roles.iter().filter(|role| !clauses(role).all(is_understood));
        roles.map(|role| format!("{}/{}", role.namespace, role.name)).collect()
    }
}

impl Explanation {
    /// Whether the shadow verdict adds nothing to the enforced one.
    fn is_same_as(&self, shadow: &ShadowRecord) -> bool {
        let enforced = (self.verdict, &self.grant, &self.nearest_miss);
        self.reason != ReasonRecord::ShadowOnly && enforced == (shadow.verdict, &shadow.grant, &shadow.nearest_miss)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.reason, &self.grant) {
            (ReasonRecord::RbacOff, _) => f.write_str("allowed: RBAC is off for this workload")?,
            (ReasonRecord::ShadowOnly, _) => f.write_str("allowed: RBAC is permissive for this workload")?,
            (ReasonRecord::Granted, Some(grant)) => write!(f, "allowed by {grant}")?,
            (ReasonRecord::Granted, None) => f.write_str("allowed")?,
            (ReasonRecord::NoRole, _) => {
                f.write_str("denied: RBAC is on and no role that is bound to anyone covers this workload")?;
            }
            (ReasonRecord::NoMatch, _) => f.write_str("denied: no role grants this request")?,
        }
        if let Some(miss) = &self.nearest_miss {
            write!(f, "; closest is {miss}")?;
        }
        match &self.shadow {
            Some(shadow) if self.is_same_as(shadow) => f.write_str("; the same in shadow")?,
            Some(ShadowRecord { verdict: Verdict::Allow, grant: Some(grant), .. }) => {
                write!(f, "; in shadow: would be allowed by {grant}")?;
            }
            Some(ShadowRecord { verdict: Verdict::Allow, .. }) => f.write_str("; in shadow: would be allowed")?,
            Some(ShadowRecord { nearest_miss: Some(miss), .. }) => {
                write!(f, "; in shadow: would be denied, closest is {miss}")?;
            }
            Some(_) => f.write_str("; in shadow: would be denied, no role covers this workload")?,
            None => {}
        }
        if let Some((first, others)) = self.not_understood.split_first() {
            write!(f, "; role {first}")?;
            if !others.is_empty() {
                write!(f, " and {} more", others.len())?;
            }
            f.write_str(" never matches: it says something that this version does not understand")?;
        }
        Ok(())
    }
}

/// `role shop/reader (rules[0]), bound by shop/bind-reader (subjects[1])`.
impl fmt::Display for GrantRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, rule, binding, subject } = self;
        write!(f, "role {role} (rules[{rule}]), bound by {binding} (subjects[{subject}])")
    }
}

/// `role shop/reader (rules[0]), bound by shop/bind-reader (subjects[1]): methods wants "GET", but the method is "POST"`.
impl fmt::Display for MissRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "role {}", self.role)?;
        if let Some(rule) = self.rule {
            write!(f, " (rules[{rule}])")?;
        }
        match (&self.binding, self.subject) {
            (Some(binding), Some(subject)) => write!(f, ", bound by {binding} (subjects[{subject}])")?,
            _ => f.write_str(", which no enforced binding gives to anyone")?,
        }
        for (nth, failed) in self.failed.iter().enumerate() {
            f.write_str(if nth == 0 { ": " } else { "; " })?;
            failed.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for FailedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.http_only {
            return write!(f, "{} is about HTTP, but this is a TCP connection", self.field);
        }
        write!(f, "{} wants ", self.field)?;
        if self.negated {
            f.write_str("none of ")?;
        }
        for (nth, value) in self.expected.iter().take(SHOWN).enumerate() {
            write!(f, "{}{value:?}", if nth == 0 { "" } else { " or " })?;
        }
        if let Some(hidden) = self.expected.len().checked_sub(SHOWN).filter(|hidden| *hidden > 0) {
            write!(f, " or {hidden} more")?;
        }
        let what = &self.attribute;
        match self.seen.as_slice() {
            [] if what == "source principal" => {
                f.write_str(", but the caller has none (it did not authenticate as a workload)")
            }
            [] if what == "source namespace" => {
                f.write_str(", but the caller has none (it did not authenticate as a workload of this trust domain)")
            }
            [] => write!(f, ", but the request has no {what}"),
            [one] => write!(f, ", but the {what} is {:?}", shorten(one)),
            [first, others @ ..] => {
                write!(f, ", but the {what} is {:?} and {} more", shorten(first), others.len())
            }
        }
    }
}

/// How many of a clause's values are spelt out.
const SHOWN: usize = 4;

/// The caller chooses these texts, so they must not flood a log.
fn shorten(text: &str) -> &str {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => text.get(..end).unwrap_or(text),
        None => text,
    }
}
