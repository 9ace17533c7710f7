//! Which DNS names an identity may have: patterns over labels.

use alcazar_identity::SpiffeId;
use thiserror::Error;

use super::{AllowedNamesConfig, DnsName};

/// Names that some identities may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AllowedNames {
    identities: Vec<(Part, Part)>,
    names: Vec<NamePattern>,
}

/// A namespace or account, or any.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Any,
    Is(String),
}

/// A name's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamePattern {
    first: First,
    labels: Vec<Label>,
}

/// What may stand before the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Nothing,
    OneLabel,
    Labels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Label {
    Is(String),
    Namespace,
    Account,
}

impl AllowedNames {
    pub(super) fn parse(config: &AllowedNamesConfig) -> Result<Self, ParseAllowedError> {
        let part = |text: &str| if text == "*" { Part::Any } else { Part::Is(text.to_owned()) };
        let identity = |text: &String| match text.split_once('/') {
            Some((namespace, account)) if is_part(namespace) && is_part(account) => {
                Ok((part(namespace), part(account)))
            }
            _ => Err(ParseAllowedError::Identity(text.clone())),
        };
        let identities = config.identities.iter().map(identity).collect::<Result<Vec<_>, _>>()?;
        let names = config.names.iter().map(|text| NamePattern::parse(text)).collect::<Result<Vec<_>, _>>()?;
        // An empty list would mean nobody, and somebody would think that it means everybody.
        if identities.is_empty() || names.is_empty() {
            return Err(ParseAllowedError::Empty);
        }
        Ok(Self { identities, names })
    }

    pub(super) fn allows(&self, id: &SpiffeId, name: &DnsName) -> bool {
        let (Some(namespace), Some(account)) = (id.namespace(), id.service_account()) else { return false };
        let known = self.identities.iter().any(|(one, other)| one.is(namespace) && other.is(account));
        known && self.names.iter().any(|pattern| pattern.matches(name, namespace, account))
    }
}

impl Part {
    fn is(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Is(known) => known == text,
        }
    }
}

impl NamePattern {
    fn parse(text: &str) -> Result<Self, ParseAllowedError> {
        let wrong = || ParseAllowedError::Name(text.to_owned());
        let (first, rest) = match text.split_once('.') {
            Some(("*", rest)) => (First::OneLabel, rest),
            Some(("**", rest)) => (First::Labels, rest),
            _ => (First::Nothing, text),
        };
        let label = |text: &str| match text {
            "{namespace}" => Ok(Label::Namespace),
            "{account}" => Ok(Label::Account),
            // The grammar of names is that of the names themselves; a wildcard stands first or nowhere.
            _ => match text.parse::<DnsName>() {
                Ok(name) => Ok(Label::Is(name.as_str().to_owned())),
                Err(_reason) => Err(wrong()),
            },
        };
        let labels = rest.split('.').map(label).collect::<Result<_, _>>()?;
        Ok(Self { first, labels })
    }

    fn matches(&self, name: &DnsName, namespace: &str, account: &str) -> bool {
        let mut given = name.as_str().rsplit('.');
        for label in self.labels.iter().rev() {
            let expected = match label {
                Label::Is(text) => text,
                Label::Namespace => namespace,
                Label::Account => account,
            };
            if given.next().is_none_or(|given| !given.eq_ignore_ascii_case(expected)) {
                return false;
            }
        }
        let mut more = 0;
        for label in given {
            // A certificate for a wildcard is for names that nobody has listed.
            if label == "*" {
                return false;
            }
            more += 1;
        }
        match self.first {
            First::Nothing => more == 0,
            First::OneLabel => more == 1,
            First::Labels => more >= 1,
        }
    }
}

/// Why something is not a list of names.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseAllowedError {
    /// Not an identity.
    #[error("{0:?} is not <namespace>/<service account>, either of which can be *")]
    Identity(String),
    /// Not a pattern of names.
    #[error(
        "{0:?} is not a DNS name that may begin with * or **, with labels of letters, digits and hyphens, {{namespace}} or {{account}}"
    )]
    Name(String),
    /// Nothing in it.
    #[error("identities and names: name at least one of each")]
    Empty,
}

fn is_part(text: &str) -> bool {
    text == "*" || (!text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(identities: &[&str], names: &[&str]) -> Result<AllowedNames, ParseAllowedError> {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        AllowedNames::parse(&AllowedNamesConfig { identities: texts(identities), names: texts(names) })
    }

    #[test]
    fn names_are_allowed_by_identity_and_pattern() {
        let check = |identity: &str, pattern: &str, id: &str, name: &str, expected: bool| {
            let (allowed, id) = (allowed(&[identity], &[pattern]).unwrap(), format!("spiffe://td/{id}"));
            let allows = allowed.allows(&id.parse().unwrap(), &name.parse().unwrap());
            assert_eq!(allows, expected, "{identity} {pattern} {id} {name}");
        };
        let web = "ns/shop/sa/web";
        check("shop/web", "web.example", web, "web.example", true);
        check("shop/web", "web.example", web, "WEB.example", true);
        check("shop/web", "web.example", web, "a.web.example", false);
        check("shop/web", "web.example", web, "example", false);
        check("shop/*", "web.example", web, "web.example", true);
        check("*/web", "web.example", web, "web.example", true);
        check("shop/api", "web.example", web, "web.example", false);
        check("shop/web", "*.example", web, "a.example", true);
        check("shop/web", "*.example", web, "a.b.example", false);
        check("shop/web", "*.example", web, "example", false);
        check("shop/web", "**.example", web, "a.b.example", true);
        check("shop/web", "**.example", web, "example", false);
        // Wildcards in certificates are nobody's.
        check("shop/web", "*.example", web, "*.example", false);
        check("shop/web", "**.example", web, "*.a.example", false);
        check("*/*", "{account}.{namespace}.svc", web, "web.shop.svc", true);
        check("*/*", "{account}.{namespace}.svc", web, "web.bank.svc", false);
        check("*/*", "{account}.{namespace}.svc", "ns/shop/sa/web.a", "web.a.shop.svc", false);
        check("*/*", "**.example", "node/c/n", "a.example", false);
        check("*/*", "**.example", "elsewhere", "a.example", false);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "*", "**", "a..b", "a.*.b", "a.**", "*a.b", "{name}.b", "a b", "a.{namespace}x"] {
            assert!(allowed(&["*/*"], &[bad]).is_err(), "{bad:?}");
        }
        for bad in ["", "*", "shop", "shop/", "/web", "a/b/c", "sh*p/web"] {
            assert!(allowed(&[bad], &["a.b"]).is_err(), "{bad:?}");
        }
        assert_eq!(allowed(&[], &["a.b"]), Err(ParseAllowedError::Empty));
        assert_eq!(allowed(&["*/*"], &[]), Err(ParseAllowedError::Empty));
    }
}
