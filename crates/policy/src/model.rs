//! The uniform model that every document is lowered to: clauses over attributes.

use std::fmt;

use ipnet::IpNet;

/// Everything that applies to one workload: whether RBAC is on, and its roles with their bindings.
///
/// Plain data, because it crosses the wire from the control plane to the proxy. What depends only on
/// the destination (`services`, `destination.labels[..]`, ...) is resolved already: a rule that cannot
/// apply here is not in it. Feed it to [`Compiled::new`](crate::Compiled::new) to decide with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadPolicy {
    /// Whether requests are decided, decided in shadow, or let pass.
    pub activation: Activation,
    /// The roles that have at least one rule left for this workload. Order is the documents' order.
    pub roles: Vec<Role>,
}

impl WorkloadPolicy {
    /// RBAC is off: everything passes.
    pub fn off() -> Self {
        Self { activation: Activation::Off, roles: Vec::new() }
    }

    /// RBAC is on and nothing is granted: everything is denied.
    pub fn deny_all() -> Self {
        Self { activation: Activation::On, roles: Vec::new() }
    }

    /// The number of rules in all roles.
    pub fn rule_count(&self) -> usize {
        self.roles.iter().map(|role| role.rules.len()).sum()
    }
}

/// Whether RBAC decides for a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Not active: every request passes and nothing is decided.
    Off,
    /// Active: a request passes only when a role grants it.
    On,
    /// Decided and reported, but every request passes (`enforcement_mode: PERMISSIVE`).
    Shadow,
}

/// A role: it allows when one of its rules and one of its bindings' subjects match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// The namespace of the `ServiceRole` (or of the binding, for inline `actions`).
    pub namespace: String,
    /// The name of the `ServiceRole` (or of the binding, for inline `actions`).
    pub name: String,
    /// OR.
    pub rules: Vec<Rule>,
    /// OR.
    pub bindings: Vec<Binding>,
}

/// One entry of a role's `rules`, as far as it is not resolved yet: an AND of clauses.
///
/// A rule without clauses matches every request to the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The place in the document's `rules`, from 0.
    pub index: u32,
    /// AND.
    pub clauses: Vec<Clause>,
}

/// A `ServiceRoleBinding`: who gets the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The namespace of the document.
    pub namespace: String,
    /// The name of the document.
    pub name: String,
    /// `mode: PERMISSIVE`: counts in the shadow verdict only.
    pub shadow: bool,
    /// OR.
    pub subjects: Vec<Subject>,
}

/// One entry of a binding's `subjects`: an AND of clauses.
///
/// A subject without clauses matches everyone (`user: "*"`, `allUsers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The place in the document's `subjects`, from 0.
    pub index: u32,
    /// AND.
    pub clauses: Vec<Clause>,
}

/// One condition: the attribute has one of the values, or, negated, none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// How the document spells it (`notPaths`, `properties[source.namespace]`), for explanations.
    pub field: String,
    /// What is looked at.
    pub attribute: Attribute,
    /// NOT (OR of the values).
    pub negated: bool,
    /// OR. Empty is not understood: the role then never matches.
    pub values: Vec<Matcher>,
}

/// What of a request a clause looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attribute {
    /// The host asked for: lower case, without port. HTTP only.
    Host,
    /// The normalised path, without the query. HTTP only.
    Path,
    /// The HTTP method. HTTP only.
    Method,
    /// Every value of one request header; the name is in lower case. HTTP only.
    Header(String),
    /// The address the connection was made to.
    DestinationIp,
    /// The port the connection was made to.
    DestinationPort,
    /// The server name of the TLS handshake.
    Sni,
    /// The peer's SPIFFE ID without `spiffe://`; absent when it did not authenticate.
    SourcePrincipal,
    /// The namespace in the peer's SPIFFE ID.
    SourceNamespace,
    /// The address the connection came from.
    SourceIp,
    /// `request.auth.principal`: the end user's `iss/sub`. HTTP only. No request has it yet.
    AuthPrincipal,
    /// `request.auth.audiences`. HTTP only. No request has it yet.
    AuthAudiences,
    /// `request.auth.presenter`. HTTP only. No request has it yet.
    AuthPresenter,
    /// `request.auth.claims[..]`: a claim of the end user's token. HTTP only. No request has it yet.
    AuthClaim(String),
    /// `experimental.envoy.filters.X[k]`: what an Envoy filter found out. Never present here.
    EnvoyFilter {
        /// The filter's name.
        filter: String,
        /// The key in that filter's metadata.
        key: String,
    },
    /// Something that this version does not know, from a newer control plane: its role never matches.
    Unknown(String),
}

impl Attribute {
    /// Whether only an HTTP request can have it: on TCP, a rule or subject with it is dropped.
    pub fn is_http_only(&self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::Path
                | Self::Method
                | Self::Header(_)
                | Self::AuthPrincipal
                | Self::AuthAudiences
                | Self::AuthPresenter
                | Self::AuthClaim(_)
        )
    }
}

impl Attribute {
    /// Whether this version never learns it, so that its absence says nothing.
    pub(crate) fn is_unverified(&self) -> bool {
        matches!(
            self,
            Self::AuthPrincipal
                | Self::AuthAudiences
                | Self::AuthPresenter
                | Self::AuthClaim(_)
                | Self::EnvoyFilter { .. }
                | Self::Unknown(_)
        )
    }
}

/// The attribute in words, as an explanation names it.
impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Path => f.write_str("path"),
            Self::Method => f.write_str("method"),
            Self::Header(name) => write!(f, "header {name:?}"),
            Self::DestinationIp => f.write_str("destination address"),
            Self::DestinationPort => f.write_str("destination port"),
            Self::Sni => f.write_str("TLS server name"),
            Self::SourcePrincipal => f.write_str("source principal"),
            Self::SourceNamespace => f.write_str("source namespace"),
            Self::SourceIp => f.write_str("source address"),
            Self::AuthPrincipal => f.write_str("end user"),
            Self::AuthAudiences => f.write_str("token audience"),
            Self::AuthPresenter => f.write_str("token presenter"),
            Self::AuthClaim(claim) => write!(f, "token claim {claim:?}"),
            Self::EnvoyFilter { filter, key } => write!(f, "metadata {key:?} of the Envoy filter {filter:?}"),
            Self::Unknown(what) => write!(f, "{what:?} (unknown to this version)"),
        }
    }
}

/// One value of a clause.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Matcher {
    /// `*`: the attribute is there, whatever it says.
    Present,
    /// The whole text.
    Exact(String),
    /// `text*`.
    Prefix(String),
    /// `*text`.
    Suffix(String),
    /// An address within a network; for the address attributes only.
    Cidr(IpNet),
    /// A port number; for the port attribute only.
    Port(u16),
}

/// As the document writes it.
impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Cidr(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Cidr(net) => write!(f, "{net}"),
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}
