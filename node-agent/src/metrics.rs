//! What a dashboard reads of an agent. Everything is what it is at the moment at which it is read.

use std::sync::Arc;
use std::time::SystemTime;

use alcazar_mtls::Clock;
use alcazar_service::Metrics;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::adoption::Clients;
use crate::status::Status;

/// Sets the metrics whenever they are read.
pub(crate) fn measure(metrics: &Metrics, status: watch::Receiver<Arc<Status>>, clients: Clients, clock: Clock) {
    let identities = metrics.gauges(
        "alcazar_agent_identities",
        "Workloads that are registered for this node, by whether they have a certificate that is good",
        ["state"],
    );
    let troubled =
        metrics.gauge("alcazar_agent_troubled", "Workloads whose last request for a certificate came to nothing");
    let first = metrics.gauge(
        "alcazar_agent_first_expiry_timestamp_seconds",
        "When the first certificate that is held ends, the node's own included, in seconds since 1970; 0 where none is held",
    );
    let expiry = metrics.gauges(
        "cert_expiry_seconds",
        "Seconds until the certificate of the node ends; absent where it has none",
        ["resource_name"],
    );
    let streams = metrics.gauges("alcazar_agent_clients", "Streams of clients, by how they are", ["state"]);
    let ca = metrics.gauge("alcazar_agent_ca_up", "Whether the CA is followed: 1, or 0 while it cannot be");
    metrics.on_scrape(move || {
        let (status, now) = (status.borrow().clone(), clock());
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let held = status.registrations.iter().filter(|one| one.certificate.is_some()).count();
        identities.with(["held"]).set(count(held));
        identities.with(["missing"]).set(count(status.registrations.len() - held));
        troubled.set(count(status.registrations.iter().filter(|one| one.last_error.is_some()).count()));
        let node = status.node.certificate.as_ref().map(|certificate| certificate.not_after);
        let all = status.registrations.iter().filter_map(|one| Some(one.certificate.as_ref()?.not_after));
        first.set(all.chain(node).min().map_or(0, seconds));
        expiry.clear();
        if let Some(end) = node {
            expiry.with(["node"]).set(seconds(end) - seconds(now));
        }
        let now = clients.now(Instant::now());
        let state = |is: fn(bool, bool) -> bool| {
            count(now.iter().filter(|client| is(client.is_connected(), client.refused.is_some())).count())
        };
        streams.with(["connected"]).set(state(|connected, refuses| connected && !refuses));
        streams.with(["refusing"]).set(state(|connected, refuses| connected && refuses));
        streams.with(["gone"]).set(state(|connected, _| !connected));
        ca.set(i64::from(status.node.ca_error.is_none() && node.is_some()));
    });
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(since).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alcazar_service::metrics::Format;

    use super::*;
    use crate::status::{CertificateStatus, NodeStatus, RegistrationStatus};

    #[tokio::test]
    async fn what_is_read_is_of_that_moment() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let certificate = |end| Some(CertificateStatus { serial: "1".into(), not_before: at(0), not_after: at(end) });
        let workload = |certificate, last_error: Option<&str>| RegistrationStatus {
            id: "a".into(),
            spiffe_id: "spiffe://td/a".parse().unwrap(),
            certificate,
            next_rotation: None,
            last_error: last_error.map(str::to_owned),
            socket: None,
        };
        let nothing = NodeStatus::new("spiffe://td/node/east/vm-1".parse().unwrap());
        let status = |node, registrations: Vec<RegistrationStatus>| {
            let registrations = registrations.into_iter().map(Arc::new).collect();
            Arc::new(Status { node, registrations, narrowing: None })
        };
        let sender = watch::Sender::new(status(nothing.clone(), Vec::new()));
        let metrics = Metrics::new();
        measure(&metrics, sender.subscribe(), Clients::new(), Arc::new(move || at(1000)));
        let read = |line: &str| {
            let text = metrics.encode(Format::Prometheus);
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        };
        read("alcazar_agent_first_expiry_timestamp_seconds 0");
        read("alcazar_agent_ca_up 0");
        let node = NodeStatus { certificate: certificate(5000), ..nothing };
        sender.send_replace(status(
            node,
            vec![
                workload(certificate(3000), None),
                workload(certificate(4000), Some("busy")),
                workload(None, Some("no")),
            ],
        ));
        for line in [
            "alcazar_agent_identities{state=\"held\"} 2",
            "alcazar_agent_identities{state=\"missing\"} 1",
            "alcazar_agent_troubled 2",
            "alcazar_agent_first_expiry_timestamp_seconds 3000",
            "cert_expiry_seconds{resource_name=\"node\"} 4000",
            "alcazar_agent_clients{state=\"connected\"} 0",
            "alcazar_agent_ca_up 1",
        ] {
            read(line);
        }
    }
}
