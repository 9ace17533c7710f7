//! Rules that make an identity of what somebody else vouches for: the claims of a token, the names of a certificate.

use std::collections::BTreeMap;

use alcazar_identity::{ParseSpiffeIdError, SpiffeId, SpiffeIdKind, TrustDomain};
use serde::Deserialize;
use thiserror::Error;

/// A rule in `ca.yaml`: whoever matches all of `match` is `identity`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RuleConfig {
    /// What must hold, all of it: a name, and a pattern for its value, in which `*` stands for any characters. At least one.
    pub r#match: BTreeMap<String, String>,
    /// Who it is then: `ns/<namespace>/sa/<account>` or `node/<cluster>/<node>`. `{name}` stands for a value.
    pub identity: String,
    /// The namespaces that the identity may be in. Needed where the namespace is made of a value.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

/// Rules in their order: the first that matches decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    matches: Vec<(String, Pattern)>,
    identity: Vec<Vec<Piece>>,
    namespaces: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(String),
}

/// A text in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern(String);

impl Rules {
    /// Reads rules of a CA of this cluster.
    ///
    /// # Errors
    /// When one makes no sense; the error says which.
    pub(crate) fn new(rules: &[RuleConfig], cluster: &str) -> Result<Self, RuleConfigError> {
        if rules.is_empty() {
            return Err(RuleConfigError::None);
        }
        let read = |(place, rule): (usize, &RuleConfig)| {
            Rule::new(rule, cluster).map_err(|source| RuleConfigError::Rule { number: place + 1, source })
        };
        Ok(Self(rules.iter().enumerate().map(read).collect::<Result<_, _>>()?))
    }

    /// Who it is, of whom `values` says the values of a name; the first rule that matches decides, and no later one is
    /// tried when its identity comes to nothing.
    ///
    /// # Errors
    /// When no rule matches, or what the rule makes is not an identity that it may make.
    pub(crate) fn identify(
        &self,
        trust_domain: &TrustDomain,
        values: &dyn Fn(&str) -> Vec<String>,
    ) -> Result<SpiffeId, RuleError> {
        let matching = |rule: &&Rule| {
            rule.matches.iter().all(|(name, pattern)| values(name).iter().any(|value| pattern.matches(value)))
        };
        self.0.iter().find(matching).ok_or(RuleError::NoneMatches)?.identity(trust_domain, values)
    }
}

impl Rule {
    fn new(config: &RuleConfig, cluster: &str) -> Result<Self, RuleFault> {
        if config.r#match.is_empty() {
            return Err(RuleFault::MatchesEverybody);
        }
        let matches = config.r#match.iter().map(|(name, pattern)| (name.clone(), Pattern(pattern.clone()))).collect();
        let identity = config.identity.split('/').map(pieces).collect::<Option<Vec<_>>>();
        let identity = identity.ok_or_else(|| RuleFault::Braces(config.identity.clone()))?;
        let text = |place: usize| match identity.get(place).map(Vec::as_slice) {
            Some([Piece::Text(text)]) => Some(text.as_str()),
            _ => None,
        };
        let namespaces = match (text(0), identity.len()) {
            (Some("ns"), 4) if text(2) == Some("sa") => match text(1) {
                Some(_) if !config.namespaces.is_empty() => return Err(RuleFault::NamespaceTwice),
                Some(namespace) => vec![namespace.to_owned()],
                None if config.namespaces.is_empty() => return Err(RuleFault::AnyNamespace),
                None => config.namespaces.clone(),
            },
            (Some("node"), 3) if config.namespaces.is_empty() => match text(1) {
                Some(named) if named == cluster => Vec::new(),
                _ => return Err(RuleFault::OtherCluster(cluster.into())),
            },
            _ => return Err(RuleFault::Shape(config.identity.clone())),
        };
        Ok(Self { matches, identity, namespaces })
    }

    fn identity(
        &self,
        trust_domain: &TrustDomain,
        values: &dyn Fn(&str) -> Vec<String>,
    ) -> Result<SpiffeId, RuleError> {
        let filled = self.identity.iter().map(|segment| self.fill(segment, values)).collect::<Result<Vec<_>, _>>()?;
        let id = match filled.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["ns", namespace, "sa", account] => SpiffeId::workload(trust_domain, namespace, account),
            ["node", cluster, node] => SpiffeId::node(trust_domain, cluster, node),
            _ => return Err(RuleError::NoneMatches),
        };
        let id = id.map_err(|source| RuleError::NotAnIdentity { made: shown(&filled.join("/")), source })?;
        let inside = match id.kind() {
            SpiffeIdKind::Workload { namespace, .. } => self.namespaces.iter().any(|allowed| allowed == namespace),
            SpiffeIdKind::Node { .. } => self.namespaces.is_empty(),
            SpiffeIdKind::Other => false,
        };
        if !inside || crate::serving::is_the_cas(&id) {
            return Err(RuleError::Outside(id));
        }
        Ok(id)
    }

    fn fill(&self, segment: &[Piece], values: &dyn Fn(&str) -> Vec<String>) -> Result<String, RuleError> {
        let mut text = String::new();
        for piece in segment {
            match piece {
                Piece::Text(fixed) => text.push_str(fixed),
                Piece::Value(name) => text.push_str(&self.value(name, values)?),
            }
        }
        Ok(text)
    }

    /// The one value of a name, among those that the rule asked for where it asks: a choice would be the caller's.
    fn value(&self, name: &str, values: &dyn Fn(&str) -> Vec<String>) -> Result<String, RuleError> {
        let asked = |value: &String| {
            self.matches.iter().filter(|(of, _)| of == name).all(|(_, pattern)| pattern.matches(value))
        };
        let mut found = values(name).into_iter().filter(asked);
        match (found.next(), found.next()) {
            (Some(value), None) => Ok(value),
            (None, _) => Err(RuleError::Missing(name.into())),
            _ => Err(RuleError::Several(name.into())),
        }
    }
}

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// Texts and `{names}`; `None` when a brace stands alone.
fn pieces(segment: &str) -> Option<Vec<Piece>> {
    let (mut pieces, mut rest) = (Vec::new(), segment);
    while !rest.is_empty() {
        let (text, after) = rest.split_once('{').unwrap_or((rest, ""));
        if text.contains('}') || (after.is_empty() && rest.contains('{')) {
            return None;
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        rest = match after.split_once('}') {
            Some((name, rest)) if !name.is_empty() && !name.contains('{') => {
                pieces.push(Piece::Value(name.into()));
                rest
            }
            None if after.is_empty() => "",
            _ => return None,
        };
    }
    Some(pieces)
}

/// What in the rules makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleConfigError {
    /// No rule: nobody would ever be admitted.
    #[error("rules: there is none, so that nobody would be admitted")]
    None,
    /// A rule.
    #[error("rules: number {number}")]
    Rule {
        /// Its place, from one.
        number: usize,
        /// What is wrong with it.
        source: RuleFault,
    },
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleFault {
    /// It asks for nothing.
    #[error("match is empty, and would match everybody; name a value that must be there, as in {{sub: \"*\"}}")]
    MatchesEverybody,
    /// Braces that do not hold a name.
    #[error("identity {0:?}: a value is written {{name}}, inside one part of the path")]
    Braces(String),
    /// Not a workload and not a node.
    #[error("identity {0:?}: write ns/<namespace>/sa/<account>, or node/<cluster>/<node> (without namespaces)")]
    Shape(String),
    /// The namespace is whatever the caller's values say.
    #[error("the namespace is made of a value; list the allowed ones in namespaces")]
    AnyNamespace,
    /// The namespace is said twice.
    #[error("the identity names its namespace; namespaces is for those that are made of a value")]
    NamespaceTwice,
    /// A node of another cluster.
    #[error("nodes are of this CA's own cluster: write node/{0}/<node>")]
    OtherCluster(String),
}

/// Why the rules make nobody of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RuleError {
    #[error("no rule matches what is said of the caller")]
    NoneMatches,
    #[error("the rule needs a value of {0:?}, and there is none that it accepts")]
    Missing(String),
    #[error("the rule needs the value of {0:?}, and there are several")]
    Several(String),
    #[error("the rule makes {made:?}, which is not an identity")]
    NotAnIdentity { made: String, source: ParseSpiffeIdError },
    #[error("the rule makes {0}, which is not in a namespace that it may be in, or is the CA's own")]
    Outside(SpiffeId),
}

fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
