//! `ClusterRbacConfig` and `RbacConfig`: for which workloads RBAC is on.

use alcazar_yaml::{Node, Reader, Text};

use crate::bindings::MODES;
use crate::model::Activation;
use crate::policy::short_names;
use crate::roles::take_either;

/// What a configuration says.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSpec {
    mode: Mode,
    shadow: bool,
}

#[derive(Debug, Clone)]
enum Mode {
    Off,
    On,
    OnFor(Targets),
    OnExcept(Targets),
}

#[derive(Debug, Clone, Default)]
struct Targets {
    /// Full host names.
    services: Vec<String>,
    namespaces: Vec<String>,
}

impl ConfigSpec {
    /// What is fallen back to where a configuration may have been lost: everything is decided.
    pub(crate) fn on() -> Self {
        Self { mode: Mode::On, shadow: false }
    }

    /// Whether RBAC decides for a workload of `namespace` behind `services`.
    pub(crate) fn activation(&self, namespace: &str, services: &[String]) -> Activation {
        let listed = |targets: &Targets| targets.namespaces.iter().any(|listed| listed == namespace);
        let is_active = match &self.mode {
            Mode::Off => false,
            Mode::On => true,
            // Every spelling counts: one that did not would leave the service open.
            Mode::OnFor(targets) => {
                let included = |name: &String| {
                    let spellings = || std::iter::once(name.as_str()).chain(short_names(name));
                    targets.services.iter().any(|target| {
                        let target = target.strip_suffix('.').unwrap_or(target);
                        spellings().any(|spelling| spelling.eq_ignore_ascii_case(target))
                    })
                };
                listed(targets) || services.iter().any(included)
            }
            // A workload is behind all its services at once: it is left out only if all of them are.
            Mode::OnExcept(targets) => {
                let all = !services.is_empty() && services.iter().all(|name| targets.services.contains(name));
                !(listed(targets) || all)
            }
        };
        match (is_active, self.shadow) {
            (false, _) => Activation::Off,
            (true, false) => Activation::On,
            (true, true) => Activation::Shadow,
        }
    }
}

pub(crate) fn read_config(reader: &mut Reader<'_>, spec: &Node) -> Option<ConfigSpec> {
    let mut fields = reader.mapping(spec, "spec")?;
    let mode = fields.take("mode");
    let inclusion = fields.take("inclusion");
    let exclusion = fields.take("exclusion");
    let enforcement = take_either(reader, &mut fields, "enforcementMode", "enforcement_mode");
    reader.finish(fields);
    let inclusion = inclusion.map(|node| read_targets(reader, node, "inclusion"));
    let exclusion = exclusion.map(|node| read_targets(reader, node, "exclusion"));
    let shadow = match enforcement {
        Some(node) => reader.one_of(node, "enforcement_mode", &MODES)?,
        None => false,
    };
    let Some(mode) = mode else {
        reader.error_with_help(&spec.span, "`mode` is missing", "write `mode: ON`, or `mode: OFF`");
        return None;
    };
    let place = &mode.span;
    let mode = match reader.one_of(mode, "mode", &CONFIG_MODES)? {
        ConfigMode::Off => Mode::Off,
        ConfigMode::On => Mode::On,
        ConfigMode::OnWithInclusion => match inclusion {
            Some(targets) => Mode::OnFor(targets?),
            None => {
                reader.error_with_help(
                    place,
                    "`inclusion` is missing",
                    "say for what, or write `mode: ON` or `mode: OFF`",
                );
                return None;
            }
        },
        ConfigMode::OnWithExclusion => match exclusion {
            Some(targets) => Mode::OnExcept(targets?),
            None => {
                reader.error_with_help(place, "`exclusion` is missing", "say for what, or write `mode: ON`");
                return None;
            }
        },
    };
    Some(ConfigSpec { mode, shadow })
}

#[derive(Debug, Clone, Copy)]
enum ConfigMode {
    Off,
    On,
    OnWithInclusion,
    OnWithExclusion,
}

const CONFIG_MODES: [(&str, ConfigMode); 4] = [
    ("OFF", ConfigMode::Off),
    ("ON", ConfigMode::On),
    ("ON_WITH_INCLUSION", ConfigMode::OnWithInclusion),
    ("ON_WITH_EXCLUSION", ConfigMode::OnWithExclusion),
];

fn read_targets(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Targets> {
    let mut fields = reader.mapping(node, what)?;
    let services = fields.take("services");
    let namespaces = fields.take("namespaces");
    reader.finish(fields);
    let mut targets = Targets::default();
    for text in services.and_then(|node| reader.texts(node, "services")).unwrap_or_default() {
        if is_exact(reader, &text) {
            if !text.text.contains('.') {
                let message = format!("`{}` is not the full host name of a service", text.text);
                let help = format!("write it like `{}.default.svc.cluster.local`", text.text);
                reader.error_with_help(&text.span, message, help);
            }
            targets.services.push(text.text);
        }
    }
    for text in namespaces.and_then(|node| reader.texts(node, "namespaces")).unwrap_or_default() {
        if is_exact(reader, &text) {
            targets.namespaces.push(text.text);
        }
    }
    if targets.services.is_empty() && targets.namespaces.is_empty() {
        reader.error_with_help(&node.span, format!("`{what}` is empty"), "add `namespaces:` or `services:`");
    }
    Some(targets)
}

fn is_exact(reader: &mut Reader<'_>, text: &Text) -> bool {
    let is_exact = !text.text.is_empty() && !text.text.contains('*');
    if !is_exact {
        reader.error(&text.span, format!("`{}`: only exact names can stand here", text.text));
    }
    is_exact
}
