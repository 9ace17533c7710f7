//! The policy of a whole mesh, and what of it applies to one workload.

use std::collections::BTreeMap;
use std::collections::HashMap;

use alcazar_yaml::{SourceFile, YamlError, YamlErrors};

use crate::activation::ConfigSpec;
use crate::bindings::{BindingSpec, RoleSpec};
use crate::documents::{Document, Documents, Kind, Place};
use crate::model::{Activation, Attribute, Binding, Clause, Matcher, Role, Rule, Subject, WorkloadPolicy};
use crate::roles::{RuleSpec, Target, TargetAttribute};

/// The validated documents of a mesh.
#[derive(Debug, Default)]
pub struct Policy {
    settings: Settings,
    config: Option<ConfigSpec>,
    roles: Vec<Document<Vec<RuleSpec>>>,
    bindings: Vec<Document<BindingSpec>>,
    /// The places in `bindings`, by namespace.
    bindings_of: HashMap<String, Vec<usize>>,
    /// The places in `roles`, by namespace.
    roles_of: HashMap<String, Vec<usize>>,
}

/// What the documents do not say themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The namespace whose roles every namespace can bind, as `role: /name`.
    pub root_namespace: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { root_namespace: "istio-system".to_owned() }
    }
}

/// One workload, as far as policies look at it.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// Its name: `destination.name`.
    pub name: &'a str,
    /// Its namespace, whose roles apply to it: `destination.namespace`.
    pub namespace: &'a str,
    /// The bare name of its service account: `destination.user`.
    pub service_account: &'a str,
    /// Its labels: `destination.labels[..]`.
    pub labels: &'a BTreeMap<String, String>,
    /// The full host names (`reviews.shop.svc.cluster.local`) of the services it is behind.
    pub services: &'a [String],
    /// The mesh's trust domain.
    pub trust_domain: &'a str,
    /// Other names of the mesh's trust domain: a principal in one of them is a principal in all.
    pub trust_domain_aliases: &'a [String],
}

impl Policy {
    /// Reads and validates documents: any number of files, any number of documents in each.
    ///
    /// # Errors
    /// Everything that is wrong in any of them, each with its place and a suggestion.
    pub fn from_files(files: &[SourceFile], settings: &Settings) -> Result<Self, YamlErrors> {
        let (policy, errors) = Self::tolerant(files, settings);
        errors.or(policy)
    }

    /// As [`from_files`](Self::from_files), but each bad document is refused alone and the others stand.
    ///
    /// Roles and bindings only ever allow, so that leaving one out denies more. A configuration is not like that:
    /// where one may have been lost, RBAC is on.
    pub fn tolerant(files: &[SourceFile], settings: &Settings) -> (Self, YamlErrors) {
        let (documents, mut errors) = Documents::read(files);
        let roles = unique(documents.roles, &mut errors);
        let bindings = unique(documents.bindings, &mut errors);
        let errors_before = errors.len();
        let config = choose_config(documents.configs, &mut errors);
        let lost = documents.may_miss_config || errors.len() != errors_before;
        let config = if lost { Some(ConfigSpec::on()) } else { config };
        let bindings_of = by_namespace(&bindings);
        let roles_of = by_namespace(&roles);
        (Self { settings: settings.clone(), config, roles, bindings, bindings_of, roles_of }, errors)
    }

    /// Everything that applies to one workload.
    pub fn for_workload(&self, workload: &Workload<'_>) -> WorkloadPolicy {
        let config = self.config.as_ref();
        let activation = config.map_or(Activation::Off, |c| c.activation(workload.namespace, workload.services));
        if activation == Activation::Off {
            return WorkloadPolicy::off();
        }
        let bound = self.bindings_in(workload);
        let own = self.roles_in(workload.namespace);
        let is_root = workload.namespace == self.settings.root_namespace;
        // Where the workload's namespace is the root, its roles are the ones above.
        let root = if is_root { [].iter() } else { self.roles_in(&self.settings.root_namespace) };
        let own = own.map(|at| (at, if is_root { &[RoleName::Here, RoleName::Root][..] } else { &[RoleName::Here] }));
        let named = own.chain(root.map(|at| (at, &[RoleName::Root][..])));
        let mut roles = Vec::new();
        for (at, spellings) in named {
            let Some(document) = self.roles.get(*at) else { continue };
            let bindings: Vec<Binding> = spellings
                .iter()
                .flat_map(|spelling| bound.by_role.get(&(*spelling, document.place.name.as_str())))
                .flatten()
                .map(|binding| bind(binding, workload))
                .collect();
            // A role of the root namespace is nobody's business until it is bound here.
            if document.place.namespace == workload.namespace || !bindings.is_empty() {
                roles.extend(role(&document.place, &document.spec, bindings, workload));
            }
        }
        for (document, rules) in bound.inline {
            roles.extend(role(&document.place, rules, vec![bind(document, workload)], workload));
        }
        WorkloadPolicy { activation, roles }
    }

    fn roles_in(&self, namespace: &str) -> std::slice::Iter<'_, usize> {
        self.roles_of.get(namespace).map_or(&[][..], Vec::as_slice).iter()
    }

    fn bindings_in(&self, workload: &Workload<'_>) -> Bound<'_> {
        let mut bound = Bound::default();
        let places = self.bindings_of.get(workload.namespace).map_or(&[][..], Vec::as_slice);
        for document in places.iter().filter_map(|at| self.bindings.get(*at)) {
            let key = match &document.spec.role {
                RoleSpec::Here(name) => (RoleName::Here, name.as_str()),
                RoleSpec::Root(name) => (RoleName::Root, name.as_str()),
                RoleSpec::Inline(rules) => {
                    bound.inline.push((document, rules));
                    continue;
                }
            };
            bound.by_role.entry(key).or_default().push(document);
        }
        bound
    }
}

/// The bindings of a namespace, by what they bind.
#[derive(Default)]
struct Bound<'a> {
    by_role: HashMap<(RoleName, &'a str), Vec<&'a Document<BindingSpec>>>,
    inline: Vec<(&'a Document<BindingSpec>, &'a [RuleSpec])>,
}

/// How a binding spells a role's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RoleName {
    Here,
    Root,
}

/// The role with the rules that can apply to the workload; `None` when there are none.
fn role(place: &Place, rules: &[RuleSpec], bindings: Vec<Binding>, workload: &Workload<'_>) -> Option<Role> {
    let rules: Vec<Rule> = rules
        .iter()
        .filter(|rule| rule.targets.iter().all(|target| covers(target, workload)))
        .map(|rule| Rule { index: rule.index, clauses: rule.clauses.clone() })
        .collect();
    let role = Role { namespace: place.namespace.clone(), name: place.name.clone(), rules, bindings };
    (!role.rules.is_empty()).then_some(role)
}

fn bind(document: &Document<BindingSpec>, workload: &Workload<'_>) -> Binding {
    let subjects = document.spec.subjects.iter().map(|subject| Subject {
        index: subject.index,
        clauses: subject.clauses.iter().map(|clause| with_aliases(clause, workload)).collect(),
    });
    Binding {
        namespace: document.place.namespace.clone(),
        name: document.place.name.clone(),
        shadow: document.spec.shadow,
        subjects: subjects.collect(),
    }
}

fn covers(target: &Target, workload: &Workload<'_>) -> bool {
    let matches = |text: &str| target.values.iter().any(|value| matches(value, text));
    match &target.what {
        TargetAttribute::Service => {
            // `*` is every workload of the namespace, behind a service or not.
            let any = target.values.contains(&Matcher::Present);
            any || workload
                .services
                .iter()
                .any(|host| matches(host) || short_names(host).any(|n| is_exactly(target, n)))
        }
        TargetAttribute::Label(label) => workload.labels.get(label).is_some_and(|value| matches(value)),
        TargetAttribute::Name => matches(workload.name),
        TargetAttribute::Namespace => matches(workload.namespace),
        TargetAttribute::ServiceAccount => matches(workload.service_account),
    }
}

/// `reviews`, `reviews.shop` and `reviews.shop.svc` for `reviews.shop.svc.cluster.local`.
///
/// Wildcards are compared with the full name only, as they always were.
pub(crate) fn short_names(host: &str) -> impl Iterator<Item = &str> {
    // Other hosts (of a ServiceEntry, say) have no short names.
    let is_service = host.split('.').nth(2) == Some("svc");
    let ends = host.match_indices('.').map(|(dot, _)| dot).take(if is_service { 3 } else { 0 });
    ends.filter_map(|end| host.get(..end))
}

fn is_exactly(target: &Target, name: &str) -> bool {
    target.values.iter().any(|value| matches!(value, Matcher::Exact(exact) if exact == name))
}

fn matches(value: &Matcher, text: &str) -> bool {
    match value {
        Matcher::Present => true,
        Matcher::Exact(exact) => text == exact,
        Matcher::Prefix(prefix) => text.starts_with(prefix.as_str()),
        Matcher::Suffix(suffix) => text.ends_with(suffix.as_str()),
        Matcher::Cidr(_) | Matcher::Port(_) => false,
    }
}

/// A principal `td/ns/..` in one of the mesh's trust domains stands for the same in each of them.
fn with_aliases(clause: &Clause, workload: &Workload<'_>) -> Clause {
    let mut clause = clause.clone();
    if clause.attribute != Attribute::SourcePrincipal || workload.trust_domain_aliases.is_empty() {
        return clause;
    }
    let names =
        || std::iter::once(workload.trust_domain).chain(workload.trust_domain_aliases.iter().map(String::as_str));
    let mut values = Vec::with_capacity(clause.values.len());
    for value in &clause.values {
        let rest = match value {
            Matcher::Exact(text) | Matcher::Prefix(text) => text.split_once('/'),
            _ => None,
        };
        values.push(value.clone());
        let Some((domain, path)) = rest.filter(|(domain, _)| names().any(|name| name == *domain)) else { continue };
        for name in names().filter(|name| *name != domain) {
            let text = format!("{name}/{path}");
            values.push(if matches!(value, Matcher::Prefix(_)) { Matcher::Prefix(text) } else { Matcher::Exact(text) });
        }
    }
    clause.values = values;
    clause
}

/// The documents without those that repeat the name of an earlier one, each of which is an error.
fn unique<T>(documents: Vec<Document<T>>, errors: &mut YamlErrors) -> Vec<Document<T>> {
    let mut seen: HashMap<(String, String), usize> = HashMap::new();
    let mut kept: Vec<Document<T>> = Vec::with_capacity(documents.len());
    for document in documents {
        let place = &document.place;
        let key = (place.namespace.clone(), place.name.clone());
        // Looked up for a repeated one only: a position costs a pass over its file.
        match seen.get(&key).and_then(|first| kept.get(*first)) {
            Some(first) => errors.push(repeated(place, &position(&first.place))),
            None => {
                seen.insert(key, kept.len());
                kept.push(document);
            }
        }
    }
    kept
}

fn repeated(place: &Place, first: &str) -> YamlError {
    let Place { kind, namespace, name, .. } = place;
    let name = if kind.is_config() { name.clone() } else { format!("{namespace}/{name}") };
    let message = format!("there is a second {} `{name}`", kind.name());
    YamlError::new(&place.file, place.span.clone(), message).with_help(format!("the first stands at {first}: keep one"))
}

fn position(place: &Place) -> String {
    let (line, column) = place.file.position(place.span.start);
    format!("{}:{line}:{column}", place.file.name())
}

fn by_namespace<T>(documents: &[Document<T>]) -> HashMap<String, Vec<usize>> {
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, document) in documents.iter().enumerate() {
        places.entry(document.place.namespace.clone()).or_default().push(at);
    }
    places
}

/// The one configuration that counts: a `ClusterRbacConfig` before an `RbacConfig`.
fn choose_config(documents: Vec<Document<ConfigSpec>>, errors: &mut YamlErrors) -> Option<ConfigSpec> {
    let mut chosen: HashMap<Kind, Document<ConfigSpec>> = HashMap::new();
    for document in documents {
        let place = &document.place;
        if place.name != "default" {
            let message = format!("a {} must be named `default`, or it has no effect", place.kind.name());
            errors.push(YamlError::new(&place.file, place.span.clone(), message).with_help("write `name: default`"));
            continue;
        }
        // One for the whole mesh, whatever namespace it stands in.
        match chosen.get(&place.kind) {
            Some(first) => errors.push(repeated(place, &position(&first.place))),
            None => drop(chosen.insert(place.kind, document)),
        }
    }
    let config = chosen.remove(&Kind::ClusterRbacConfig).or_else(|| chosen.remove(&Kind::RbacConfig));
    config.map(|document| document.spec)
}
