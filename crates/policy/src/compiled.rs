//! The compiled policy of one workload, and the decision.

use crate::decision::{Because, Decision, Denial, Grant, GrantNames, Permit, Reason, Shadow};
use crate::eval::{SCANNED_VALUES, all_hold, is_understood};
use crate::index::{Entry, Lists, RuleIndex, SubjectIndex, intersect};
use crate::model::{Activation, Attribute, Clause, Role, WorkloadPolicy};
use crate::request::Request;

/// A [`WorkloadPolicy`] with an index over it: decides.
#[derive(Debug)]
pub struct Compiled {
    policy: WorkloadPolicy,
    rules: RuleIndex,
    subjects: SubjectIndex,
    /// The names of the headers that some clause looks at; sorted.
    headers: Vec<String>,
    /// Whether some role can grant in earnest, and in shadow.
    grants: Grants,
}

#[derive(Debug, Clone, Copy, Default)]
struct Grants {
    enforced: bool,
    /// Some binding is permissive, so that the shadow verdict can differ.
    shadow: bool,
}

impl Compiled {
    /// Builds the index.
    ///
    /// A role with a clause that this version does not understand never matches.
    pub fn new(mut policy: WorkloadPolicy) -> Self {
        clauses_mut(&mut policy).filter(|c| c.values.len() > SCANNED_VALUES).for_each(|c| c.values.sort_unstable());
        let understood = |(_, role): &(u32, &Role)| clauses(role).all(is_understood);
        let roles = || (0..).zip(&policy.roles).filter(understood);
        let mut grants = Grants::default();
        for binding in roles().filter(|(_, role)| !role.rules.is_empty()).flat_map(|(_, role)| &role.bindings) {
            let one = if binding.shadow { &mut grants.shadow } else { &mut grants.enforced };
            *one |= !binding.subjects.is_empty();
        }
        let mut headers: Vec<String> = policy.roles.iter().flat_map(clauses).filter_map(header_name).collect();
        headers.sort_unstable();
        headers.dedup();
        Self { rules: RuleIndex::new(roles()), subjects: SubjectIndex::new(roles()), headers, grants, policy }
    }

    /// Decides about one request.
    ///
    /// Reads nothing but its arguments, and allocates nothing.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        match self.policy.activation {
            Activation::Off => Decision::Allow(Permit { because: Because::RbacOff, shadow: None }),
            Activation::Shadow => {
                let found = self.find(request);
                let shadow = match found.enforced.or(found.shadow) {
                    Some(grant) => Shadow::Allow(grant),
                    None => Shadow::Deny(self.reason(true)),
                };
                Decision::Allow(Permit { because: Because::ShadowOnly, shadow: Some(shadow) })
            }
            Activation::On => self.enforce(self.find(request)),
        }
    }

    fn enforce(&self, found: Found) -> Decision {
        let shadow = match (found.enforced.or(found.shadow), self.grants.shadow) {
            (_, false) => None,
            (Some(grant), true) => Some(Shadow::Allow(grant)),
            (None, true) => Some(Shadow::Deny(self.reason(true))),
        };
        match found.enforced {
            Some(grant) => Decision::Allow(Permit { because: Because::Granted(grant), shadow }),
            None => Decision::Deny(Denial { reason: self.reason(false), shadow }),
        }
    }

    fn reason(&self, in_shadow: bool) -> Reason {
        if self.grants.enforced || (in_shadow && self.grants.shadow) { Reason::NoMatch } else { Reason::NoRole }
    }

    /// The first enforced grant and, unless that came first, the first shadow grant.
    fn find(&self, request: &Request<'_>) -> Found {
        let mut found = Found::default();
        let mut rules = Lists::new();
        self.rules.candidates(request, &mut rules);
        let mut subjects = Lists::new();
        self.subjects.candidates(request, &mut subjects);
        for rules in rules.iter() {
            for subjects in subjects.iter() {
                found.enforced = intersect(rules, subjects, |rules, subjects| {
                    self.find_in_role(request, rules, subjects, &mut found.shadow)
                });
                if found.enforced.is_some() {
                    return found;
                }
            }
        }
        found
    }

    fn find_in_role(
        &self,
        request: &Request<'_>,
        rules: &[Entry],
        subjects: &[Entry],
        in_shadow: &mut Option<Grant>,
    ) -> Option<Grant> {
        let role = self.role(rules.first()?.role)?;
        let rule = rules.iter().find(|entry| {
            let rule = role.rules.get(place(entry.item));
            rule.is_some_and(|rule| all_hold(&rule.clauses, request))
        })?;
        for entry in subjects {
            let Some(binding) = role.bindings.get(place(entry.binding)) else { continue };
            if binding.shadow && in_shadow.is_some() {
                continue;
            }
            let subject = binding.subjects.get(place(entry.item));
            if subject.is_some_and(|subject| all_hold(&subject.clauses, request)) {
                let grant = Grant { role: entry.role, rule: rule.item, binding: entry.binding, subject: entry.item };
                if !binding.shadow {
                    return Some(grant);
                }
                *in_shadow = Some(grant);
            }
        }
        None
    }

    /// The names behind a grant that this policy gave.
    ///
    /// `None` when the grant is another policy's.
    pub fn grant(&self, grant: &Grant) -> Option<GrantNames<'_>> {
        let role = self.role(grant.role)?;
        let binding = role.bindings.get(place(grant.binding))?;
        Some(GrantNames {
            role_namespace: &role.namespace,
            role: &role.name,
            rule: role.rules.get(place(grant.rule))?.index,
            binding_namespace: &binding.namespace,
            binding: &binding.name,
            subject: binding.subjects.get(place(grant.subject))?.index,
        })
    }

    /// The policy this was built from. Long lists of values are sorted in it.
    pub fn policy(&self) -> &WorkloadPolicy {
        &self.policy
    }

    /// The names of the headers that decisions may depend on, in lower case and sorted.
    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    fn role(&self, index: u32) -> Option<&Role> {
        self.policy.roles.get(place(index))
    }
}

/// What a search found.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    enforced: Option<Grant>,
    shadow: Option<Grant>,
}

/// All clauses of a role, its rules' and its subjects'.
pub(crate) fn clauses(role: &Role) -> impl Iterator<Item = &Clause> {
    let rules = role.rules.iter().flat_map(|rule| &rule.clauses);
    rules.chain(role.bindings.iter().flat_map(|b| &b.subjects).flat_map(|subject| &subject.clauses))
}

fn clauses_mut(policy: &mut WorkloadPolicy) -> impl Iterator<Item = &mut Clause> {
    policy.roles.iter_mut().flat_map(|role| {
        let rules = role.rules.iter_mut().flat_map(|rule| &mut rule.clauses);
        let subjects = role.bindings.iter_mut().flat_map(|b| &mut b.subjects);
        rules.chain(subjects.flat_map(|subject| &mut subject.clauses))
    })
}

fn header_name(clause: &Clause) -> Option<String> {
    match &clause.attribute {
        Attribute::Header(name) => Some(name.clone()),
        _ => None,
    }
}

/// A `u32` place as an index.
fn place(index: u32) -> usize {
    // Never fails where addresses have 32 bits or more; if it did, nothing would be found: deny.
    usize::try_from(index).unwrap_or(usize::MAX)
}
