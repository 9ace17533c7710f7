//! `services`: read, or made up from the workloads' `app` labels, and bound to workloads.

use std::collections::BTreeMap;

use alcazar_yaml::{Node, Reader, Span, Text, Value, YamlError, YamlErrors};

use super::fields::{Located, labels, port_number, protocol, required};
use super::names::{is_label, label};
use super::workload::{Stated, StatedPort, namespace};
use crate::world::{Protocol, ServicePort};

/// A service and the workloads behind it.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) ports: Vec<ServicePort>,
    /// Indexes of workloads, each with the numbers of the service's ports that it serves.
    pub(crate) endpoints: Vec<(usize, Vec<u16>)>,
}

/// Reads `services` and binds each to the workloads that it selects.
pub(super) fn read(
    reader: &mut Reader<'_>,
    node: &Node,
    workloads: &[Stated],
    warnings: &mut YamlErrors,
) -> Vec<Bound> {
    let mut names: BTreeMap<(String, String), Span> = BTreeMap::new();
    let mut bound = Vec::new();
    for item in reader.list(node, "services").unwrap_or_default() {
        let Some(service) = service(reader, item) else { continue };
        let key = (service.namespace.clone(), service.name.text.clone());
        if let Some(first) = names.get(&key) {
            let message = format!("the service {}/{} stands twice", key.0, key.1);
            let error = YamlError::new(reader.file(), service.name.span, message);
            reader.push(error.with_label("again here").with_also(first.clone(), "first here"));
            continue;
        }
        names.insert(key, service.name.span.clone());
        bound.push(bind(reader, service, workloads, warnings));
    }
    bound
}

/// One service per `app` label, or per name where a workload has no such label; ports as the workloads have them.
pub(super) fn defaults(reader: &mut Reader<'_>, workloads: &[Stated]) -> Vec<Bound> {
    let mut groups: BTreeMap<(&str, &str), Vec<(usize, &Stated)>> = BTreeMap::new();
    for (index, workload) in workloads.iter().enumerate() {
        let name = workload.app.as_ref().unwrap_or(&workload.name);
        if !is_label(&name.text) {
            let message = format!("`{}` names a service, and cannot", name.text);
            let help = "write the `app` label in lower case with `-`, or state `services` yourself";
            reader.error_with_help(&name.span, message, help);
            continue;
        }
        let group = groups.entry((&workload.namespace, &name.text)).or_default();
        // Joining by accident would send callers of one to the other.
        if let Some((_, first)) = group.first()
            && first.app.is_some() != workload.app.is_some()
        {
            let message = format!("two default services would be named {}/{}", workload.namespace, name.text);
            let first = first.app.as_ref().unwrap_or(&first.name).span.clone();
            let error = YamlError::new(reader.file(), name.span.clone(), message);
            reader.push(
                error
                    .with_label("by this")
                    .with_also(first, "and by this")
                    .with_help("give both the same `app` label, or state `services` yourself"),
            );
            continue;
        }
        group.push((index, workload));
    }
    groups.into_iter().filter_map(|((namespace, name), group)| default(reader, namespace, name, &group)).collect()
}

fn default(reader: &mut Reader<'_>, namespace: &str, name: &str, group: &[(usize, &Stated)]) -> Option<Bound> {
    let mut ports: BTreeMap<u16, &StatedPort> = BTreeMap::new();
    for port in group.iter().flat_map(|(_, workload)| &workload.ports) {
        let first = ports.entry(port.number.value).or_insert(port);
        if first.protocol != port.protocol {
            let message = format!("the port {} of the service {namespace}/{name} has two protocols", port.number.value);
            let error = YamlError::new(reader.file(), port.number.span.clone(), message);
            reader.push(
                error
                    .with_label(format!("{} here", port.protocol))
                    .with_also(first.number.span.clone(), format!("{} here", first.protocol)),
            );
        }
    }
    // Something that only calls others needs no name to be called by.
    if ports.is_empty() {
        return None;
    }
    let endpoints = group.iter().filter(|(_, workload)| !workload.ports.is_empty());
    Some(Bound {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        endpoints: endpoints.map(|(index, workload)| (*index, numbers(workload))).collect(),
        ports: ports
            .into_iter()
            .map(|(number, port)| ServicePort {
                name: port.name.text.clone(),
                number,
                target: number,
                protocol: port.protocol,
            })
            .collect(),
    })
}

fn numbers(workload: &Stated) -> Vec<u16> {
    workload.ports.iter().map(|port| port.number.value).collect()
}

/// An entry of `services` as the file states it.
struct StatedService {
    name: Text,
    namespace: String,
    selector: Vec<(Text, Text)>,
    selector_span: Span,
    ports: Vec<StatedServicePort>,
}

struct StatedServicePort {
    name: Text,
    number: Located<u16>,
    target: Located<u16>,
    protocol: Protocol,
}

fn service(reader: &mut Reader<'_>, node: &Node) -> Option<StatedService> {
    let mut fields = reader.mapping(node, "services")?;
    let name = required(reader, &mut fields, "name", "this service").and_then(|node| label(reader, node, "name"));
    let of = name.as_ref().map_or_else(|| "this service".to_owned(), |name| format!("the service `{}`", name.text));
    let namespace = required(reader, &mut fields, "namespace", &of).and_then(|node| namespace(reader, node));
    let selector = required(reader, &mut fields, "selector", &of)
        .and_then(|node| Some((labels(reader, node, "selector")?, node.span.clone())));
    if let Some((labels, span)) = &selector
        && labels.is_empty()
    {
        reader.error_with_help(span, "the selector selects nothing", "name a label, as in `{app: reviews}`");
    }
    let ports = required(reader, &mut fields, "ports", &of).map(|node| ports(reader, node)).unwrap_or_default();
    reader.finish(fields);
    let (selector, selector_span) = selector?;
    Some(StatedService { name: name?, namespace: namespace?, selector, selector_span, ports })
}

fn ports(reader: &mut Reader<'_>, node: &Node) -> Vec<StatedServicePort> {
    let mut ports: Vec<StatedServicePort> = Vec::new();
    let items = reader.list(node, "ports").unwrap_or_default();
    if items.is_empty() && matches!(node.value, Value::List(_)) {
        reader.error(&node.span, "the service has no port");
    }
    for item in items {
        let Some(port) = port(reader, item) else { continue };
        if let Some(first) = ports.iter().find(|first| first.number.value == port.number.value) {
            let message = format!("the port {} stands twice", port.number.value);
            let error = YamlError::new(reader.file(), port.number.span.clone(), message);
            reader.push(error.with_label("again here").with_also(first.number.span.clone(), "first here"));
            continue;
        }
        ports.push(port);
    }
    ports
}

fn port(reader: &mut Reader<'_>, node: &Node) -> Option<StatedServicePort> {
    let mut fields = reader.mapping(node, "ports")?;
    let name = required(reader, &mut fields, "name", "this port").and_then(|node| label(reader, node, "name"));
    let number = required(reader, &mut fields, "port", "this port").and_then(|node| port_number(reader, node, "port"));
    let target = match fields.take("targetPort") {
        Some(node) => port_number(reader, node, "targetPort"),
        None => number.clone(),
    };
    let protocol = required(reader, &mut fields, "protocol", "this port").and_then(|node| protocol(reader, node));
    reader.finish(fields);
    Some(StatedServicePort { name: name?, number: number?, target: target?, protocol: protocol? })
}

fn bind(reader: &mut Reader<'_>, service: StatedService, workloads: &[Stated], warnings: &mut YamlErrors) -> Bound {
    let selects = |workload: &Stated| {
        workload.namespace == service.namespace
            && !service.selector.is_empty()
            && service.selector.iter().all(|(key, value)| workload.labels.get(&key.text) == Some(&value.text))
    };
    let selected: Vec<(usize, &Stated)> =
        workloads.iter().enumerate().filter(|(_, workload)| selects(workload)).collect();
    if selected.is_empty() && !service.selector.is_empty() {
        let message = format!("the service {}/{} selects no workload", service.namespace, service.name.text);
        let error = YamlError::new(reader.file(), service.selector_span.clone(), message);
        warnings.push(error.with_label("no workload of this namespace has these labels"));
    }
    for port in &service.ports {
        check_target(reader, port, &selected);
    }
    let served = |workload: &Stated| -> Vec<u16> {
        let has = |port: &&StatedServicePort| workload.port(port.target.value).is_some();
        service.ports.iter().filter(has).map(|port| port.number.value).collect()
    };
    let endpoints = selected.iter().map(|(index, workload)| (*index, served(workload)));
    Bound {
        endpoints: endpoints.filter(|(_, ports)| !ports.is_empty()).collect(),
        ports: service
            .ports
            .iter()
            .map(|port| ServicePort {
                name: port.name.text.clone(),
                number: port.number.value,
                target: port.target.value,
                protocol: port.protocol,
            })
            .collect(),
        name: service.name.text,
        namespace: service.namespace,
    }
}

/// The port behind a service's port must be there, and be read the same way.
fn check_target(reader: &mut Reader<'_>, port: &StatedServicePort, selected: &[(usize, &Stated)]) {
    let target = port.target.value;
    let found: Vec<(&Stated, &StatedPort)> =
        selected.iter().filter_map(|(_, workload)| Some((*workload, workload.port(target)?))).collect();
    for (workload, behind) in &found {
        if behind.protocol != port.protocol {
            let message =
                format!("the port {target} of {} is {}, not {}", workload.key(), behind.protocol, port.protocol);
            let error = YamlError::new(reader.file(), port.target.span.clone(), message);
            reader.push(
                error
                    .with_label(format!("{} here", port.protocol))
                    .with_also(behind.number.span.clone(), format!("{} here", behind.protocol)),
            );
        }
    }
    if let (true, Some((_, first))) = (found.is_empty(), selected.first()) {
        let all = selected.iter().flat_map(|(_, workload)| numbers(workload));
        let ports: std::collections::BTreeSet<u16> = all.collect();
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let message = format!("no workload behind the service has the port {target}");
        let help = match ports.as_slice() {
            [] => format!("give {} a port {target}", first.key()),
            ports => format!("the workloads that it selects have: {}", ports.join(", ")),
        };
        reader.error_with_help(&port.target.span, message, help);
    }
}
