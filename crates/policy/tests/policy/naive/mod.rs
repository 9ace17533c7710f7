//! A second reading of the RBAC documents: no index, no clauses, no sharing with the engine. It takes the YAML as it is
//! and answers field by field, the way the specification reads.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::support::{Call, Place};

#[derive(Debug, Deserialize)]
pub struct Doc {
    kind: String,
    metadata: Meta,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
struct Meta {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    // ServiceRole
    rules: Option<Vec<Rule>>,
    // ServiceRoleBinding
    subjects: Option<Vec<Subject>>,
    role_ref: Option<RoleRef>,
    role: Option<String>,
    actions: Option<Vec<Rule>>,
    // ServiceRoleBinding and ClusterRbacConfig
    mode: Option<String>,
    // ClusterRbacConfig
    inclusion: Option<Target>,
    exclusion: Option<Target>,
    #[serde(alias = "enforcement_mode")]
    enforcement_mode: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RoleRef {
    name: String,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Target {
    services: Vec<String>,
    namespaces: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    services: Option<Vec<String>>,
    hosts: Option<Vec<String>>,
    not_hosts: Option<Vec<String>>,
    paths: Option<Vec<String>>,
    not_paths: Option<Vec<String>>,
    methods: Option<Vec<String>>,
    not_methods: Option<Vec<String>>,
    ports: Option<Vec<u16>>,
    not_ports: Option<Vec<u16>>,
    #[serde(default)]
    constraints: Vec<Constraint>,
}

#[derive(Debug, Deserialize)]
struct Constraint {
    key: String,
    values: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subject {
    user: Option<String>,
    group: Option<String>,
    names: Option<Vec<String>>,
    not_names: Option<Vec<String>>,
    groups: Option<Vec<String>>,
    not_groups: Option<Vec<String>>,
    namespaces: Option<Vec<String>>,
    not_namespaces: Option<Vec<String>>,
    ips: Option<Vec<String>>,
    not_ips: Option<Vec<String>>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

/// What the documents say: the enforced verdict, and the shadow one where anything is in shadow.
pub fn verdict(docs: &[Doc], place: &Place, call: &Call) -> (bool, Option<bool>) {
    let Some(config) =
        docs.iter().find(|d| d.kind == "ClusterRbacConfig").or(docs.iter().find(|d| d.kind == "RbacConfig"))
    else {
        return (true, None);
    };
    let names = |t: &Option<Target>| {
        let t = t.as_ref().unwrap();
        let by_namespace = t.namespaces.contains(&place.namespace);
        (by_namespace, place.services.iter().map(|s| t.services.contains(s)).collect::<Vec<_>>())
    };
    let active = match config.spec.mode.as_deref().unwrap() {
        "OFF" => false,
        "ON" => true,
        "ON_WITH_INCLUSION" => {
            let (namespace, services) = names(&config.spec.inclusion);
            namespace || services.contains(&true)
        }
        "ON_WITH_EXCLUSION" => {
            let (namespace, services) = names(&config.spec.exclusion);
            !namespace && (services.is_empty() || services.contains(&false))
        }
        other => panic!("{other}"),
    };
    if !active {
        return (true, None);
    }

    let mut enforced = false;
    let mut in_shadow = false;
    let mut anything_in_shadow = false;
    for binding in docs.iter().filter(|d| d.kind == "ServiceRoleBinding" && d.metadata.namespace == place.namespace) {
        let rules: Vec<&Rule> = match (&binding.spec.role_ref, &binding.spec.role, &binding.spec.actions) {
            (Some(by_ref), None, None) => rules_of(docs, &place.namespace, &by_ref.name),
            (None, Some(name), None) => match name.strip_prefix('/') {
                Some(name) => rules_of(docs, "istio-system", name),
                None => rules_of(docs, &place.namespace, name),
            },
            (None, None, Some(actions)) => actions.iter().collect(),
            other => panic!("{other:?}"),
        };
        let permissive = binding.spec.mode.as_deref() == Some("PERMISSIVE");
        if permissive && rules.iter().any(|rule| rule.is_for(place)) {
            anything_in_shadow = true;
        }
        let may = rules.iter().any(|rule| rule.is_for(place) && rule.matches(call))
            && binding.spec.subjects.as_ref().unwrap().iter().any(|subject| subject.matches(place, call));
        in_shadow |= may;
        enforced |= may && !permissive;
    }
    if config.spec.enforcement_mode.as_deref() == Some("PERMISSIVE") {
        (true, Some(in_shadow))
    } else {
        (enforced, anything_in_shadow.then_some(in_shadow))
    }
}

fn rules_of<'a>(docs: &'a [Doc], namespace: &str, name: &str) -> Vec<&'a Rule> {
    let mut roles = docs.iter().filter(|d| d.kind == "ServiceRole");
    let role = roles.find(|d| d.metadata.namespace == namespace && d.metadata.name == name);
    role.map_or(Vec::new(), |d| d.spec.rules.as_ref().unwrap().iter().collect())
}

impl Rule {
    fn is_for(&self, place: &Place) -> bool {
        let service = self.services.as_ref().is_none_or(|services| {
            services.iter().any(|wanted| {
                wanted == "*"
                    || place.services.iter().any(|host| {
                        let parts: Vec<&str> = host.split('.').collect();
                        glob(wanted, host) || (1..=3).any(|n| *wanted == parts[..n].join("."))
                    })
            })
        });
        service
            && self.constraints.iter().all(|c| {
                let any = |text: &str| c.values.iter().any(|value| glob(value, text));
                match c.key.as_str() {
                    "destination.name" => any(&place.name),
                    "destination.namespace" => any(&place.namespace),
                    "destination.user" => any(&place.account),
                    key => match key.strip_prefix("destination.labels[") {
                        Some(label) => place.labels.get(label.trim_end_matches(']')).is_some_and(|text| any(text)),
                        None => true,
                    },
                }
            })
    }

    fn matches(&self, call: &Call) -> bool {
        let uses_http = self.hosts.is_some()
            || self.not_hosts.is_some()
            || self.paths.is_some()
            || self.not_paths.is_some()
            || self.methods.is_some()
            || self.not_methods.is_some()
            || self.constraints.iter().any(|c| c.key.starts_with("request."));
        if call.http.is_none() && uses_http {
            return false;
        }
        let http = call.http.as_ref();
        let host = http.and_then(|h| h.host.as_deref());
        let path = http.map(|h| h.path.as_str());
        let method = http.map(|h| h.method.as_str());
        let port = call.destination.port();
        // Hosts are compared without regard to case.
        let lower = |hosts: &Option<Vec<String>>| hosts.as_ref().map(|h| h.iter().map(|h| h.to_lowercase()).collect());
        wants(&lower(&self.hosts), host)
            && wants_not(&lower(&self.not_hosts), host)
            && wants(&self.paths, path)
            && wants_not(&self.not_paths, path)
            && wants(&self.methods, method)
            && wants_not(&self.not_methods, method)
            && self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
            && self.not_ports.as_ref().is_none_or(|ports| !ports.contains(&port))
            && self.constraints.iter().all(|c| match c.key.as_str() {
                key if key.starts_with("destination.") && !matches!(key, "destination.ip" | "destination.port") => true,
                "destination.ip" => c.values.iter().any(|net| in_network(net, call.destination.ip())),
                "destination.port" => c.values.iter().any(|value| *value == port.to_string()),
                "connection.sni" => wants(&Some(c.values.clone()), call.sni.as_deref()),
                key if key.starts_with("experimental.envoy.filters.") => false,
                key => header(call, key, &c.values),
            })
    }
}

impl Subject {
    fn matches(&self, place: &Place, call: &Call) -> bool {
        let uses_http = self.group.is_some()
            || self.groups.is_some()
            || self.not_groups.is_some()
            || self.properties.keys().any(|key| key.starts_with("request."));
        if call.http.is_none() && uses_http {
            return false;
        }
        let principal = call.source.as_ref().map(|id| id.to_string().replace("spiffe://", ""));
        let is_principal = |wanted: &str| match (wanted, &principal) {
            ("allUsers", _) => true,
            ("*" | "allAuthenticatedUsers", principal) => principal.is_some(),
            (_, None) => false,
            (wanted, Some(principal)) => {
                let mut spellings = vec![wanted.to_owned()];
                let mut domains = vec!["cluster.local".to_owned()];
                domains.extend(place.aliases.clone());
                if let Some((domain, rest)) = wanted.split_once('/')
                    && domains.contains(&domain.to_owned())
                {
                    spellings.extend(domains.iter().map(|domain| format!("{domain}/{rest}")));
                }
                spellings.iter().any(|wanted| glob(wanted, principal))
            }
        };
        let namespace = principal.as_ref().and_then(|p| {
            let parts: Vec<&str> = p.split('/').collect();
            // Others name their namespaces as they like.
            let ours = parts[0] == "cluster.local";
            (ours && parts.len() == 5 && parts[1] == "ns" && parts[3] == "sa").then(|| parts[2].to_owned())
        });
        let namespace = namespace.as_deref();
        self.user.as_ref().is_none_or(|user| user == "*" || is_principal(user))
            // No request carries a token yet, so nobody is known to be in a group, or in none.
            && self.group.is_none()
            && self.groups.is_none()
            && self.not_groups.is_none()
            && self.names.as_ref().is_none_or(|names| names.iter().any(|name| is_principal(name)))
            && self.not_names.as_ref().is_none_or(|names| !names.iter().any(|name| is_principal(name)))
            && wants(&self.namespaces, namespace)
            && wants_not(&self.not_namespaces, namespace)
            && self.ips.as_ref().is_none_or(|nets| nets.iter().any(|net| in_network(net, call.source_ip)))
            && self.not_ips.as_ref().is_none_or(|nets| !nets.iter().any(|net| in_network(net, call.source_ip)))
            && self.properties.iter().all(|(key, value)| match key.as_str() {
                "source.principal" | "source.user" => is_principal(value),
                "source.namespace" => namespace.is_some_and(|namespace| glob(value, namespace)),
                "source.ip" => in_network(value, call.source_ip),
                key if key.starts_with("request.auth.") => false,
                key => header(call, key, std::slice::from_ref(value)),
            })
    }
}

fn wants(values: &Option<Vec<String>>, text: Option<&str>) -> bool {
    values.as_ref().is_none_or(|values| text.is_some_and(|text| values.iter().any(|value| glob(value, text))))
}

fn wants_not(values: &Option<Vec<String>>, text: Option<&str>) -> bool {
    values.as_ref().is_none_or(|values| !text.is_some_and(|text| values.iter().any(|value| glob(value, text))))
}

/// At least one value, and every value matches.
fn header(call: &Call, key: &str, wanted: &[String]) -> bool {
    let name = key.strip_prefix("request.headers[").unwrap().trim_end_matches(']').to_lowercase();
    let headers = &call.http.as_ref().unwrap().headers;
    let values: Vec<&String> = headers.iter().filter(|(n, _)| n.to_lowercase() == name).map(|(_, v)| v).collect();
    !values.is_empty() && values.iter().all(|value| wanted.iter().any(|wanted| glob(wanted, value)))
}

fn glob(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        true
    } else if let Some(suffix) = pattern.strip_prefix('*') {
        text.ends_with(suffix)
    } else if let Some(prefix) = pattern.strip_suffix('*') {
        text.starts_with(prefix)
    } else {
        text == pattern
    }
}

/// IPv4 only: bit by bit.
fn in_network(network: &str, address: IpAddr) -> bool {
    let (base, length) = network.split_once('/').unwrap_or((network, "32"));
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => format!("{:032b}", u32::from(v4)),
        IpAddr::V6(v6) => format!("{:032b}", u32::from(v6.to_ipv4_mapped().unwrap())),
    };
    let length: usize = length.parse().unwrap();
    bits(base.parse().unwrap())[..length] == bits(address)[..length]
}
