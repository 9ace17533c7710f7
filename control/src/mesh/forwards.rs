//! `forwards`: listeners that lead to the TCP services of the mesh.

use alcazar_yaml::{Reader, YamlError, suggest};

use super::service::Bound;
use super::workload::Stated;
use crate::world::{Forward, Protocol, host_names};

/// The forwards of one workload; each must lead to a service's TCP port.
pub(super) fn resolve(reader: &mut Reader<'_>, workload: &Stated, services: &[Bound]) -> Vec<Forward> {
    let mut forwards = Vec::new();
    for stated in &workload.forwards {
        let to = &stated.to;
        let parsed = to.text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let Some((host, port)) = parsed.filter(|(host, _)| !host.is_empty()) else {
            let message = format!("`{}` is not a service and a port", to.text);
            reader.error_with_help(&to.span, message, "write it as in `db.shop:5432`");
            continue;
        };
        let answers = |service: &&Bound| {
            let short = service.namespace == workload.namespace && service.name == host;
            short || host_names(&service.name, &service.namespace).iter().any(|name| name == host)
        };
        let Some(service) = services.iter().find(answers) else {
            let known: Vec<String> = services.iter().map(|s| format!("{}.{}", s.name, s.namespace)).collect();
            let error = YamlError::new(reader.file(), to.span.clone(), format!("there is no service `{host}`"));
            reader.push(error.with_help_if(suggest(host, known.iter().map(String::as_str))));
            continue;
        };
        let name = format!("{}.{}", service.name, service.namespace);
        match service.ports.iter().find(|known| known.number == port) {
            Some(found) if found.protocol == Protocol::Tcp => {
                forwards.push(Forward { listen: stated.listen.value, host: name, port });
            }
            Some(_) => {
                let message = format!("the port {port} of {name} is HTTP");
                reader.error_with_help(&to.span, message, "call it through the workload's outbound proxy");
            }
            None => {
                let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
                let help = format!("it has: {}", ports.join(", "));
                reader.error_with_help(&to.span, format!("{name} has no port {port}"), help);
            }
        }
    }
    forwards
}
