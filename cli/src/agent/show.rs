//! The status of an agent, for people.

use std::time::{Duration, SystemTime};

use alcazar_node_agent::{CertificateReport, ClientReport, OutboundReport, StatusReport};

use crate::status::{left, short_serial};
use crate::table::Table;

/// The node, its workloads, who is served, and at last what is wrong.
pub(super) fn text(report: &StatusReport, now: SystemTime) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        text.push_str(&format!("{what:<13} {value}\n"));
    };
    let node = &report.node;
    line("node", &node.spiffe_id);
    line(
        "certificate",
        &match &node.certificate {
            Some(certificate) => format!(
                "{}, for {} more, next {}",
                short_serial(&certificate.serial),
                left(certificate.not_after, now),
                next(node.next_rotation, now)
            ),
            None => "none".to_owned(),
        },
    );
    if let Some(how) = &node.proved_by {
        line("proved itself", how);
    }
    for error in &node.errors {
        line("trouble", error);
    }
    for trouble in &report.degraded {
        line("trouble", trouble);
    }
    if let Some(narrowing) = &report.narrowing {
        line("narrowed by", &narrowing.file);
        for (what, ids) in [("withheld", &narrowing.withheld), ("unknown", &narrowing.unknown)] {
            if !ids.is_empty() {
                line(what, &ids.join(", "));
            }
        }
        if let Some(error) = &narrowing.error {
            line("trouble", error);
        }
    }
    if report.registrations.is_empty() {
        text.push_str("\nno workload is registered for this node\n");
    } else {
        text.push_str(&format!("\n{}", workloads(report, now)));
    }
    if !report.clients.is_empty() {
        text.push_str(&format!("\n{}", clients(report)));
    }
    for warning in warnings(report) {
        text.push_str(&format!("\n{warning}\n"));
    }
    let troubles = report.registrations.iter().filter_map(|one| Some((&one.id, one.last_error.as_ref()?)));
    for (id, error) in troubles {
        text.push_str(&format!("\n{id}: {error}\n"));
    }
    text
}

fn workloads(report: &StatusReport, now: SystemTime) -> String {
    let mut table = Table::new(["REGISTRATION", "SPIFFE ID", "SERIAL", "LIVES", "NEXT", "SOCKET"]);
    for one in &report.registrations {
        let of = |text: &dyn Fn(&CertificateReport) -> String| one.certificate.as_ref().map_or("-".to_owned(), text);
        table.row([
            one.id.clone(),
            one.spiffe_id.clone(),
            of(&|certificate| short_serial(&certificate.serial).to_owned()),
            of(&|certificate| left(certificate.not_after, now)),
            next(one.next_rotation, now),
            one.socket.clone().unwrap_or("-".to_owned()),
        ]);
    }
    table.to_string()
}

/// Who could call others as somebody that they are not.
fn warnings(report: &StatusReport) -> Vec<String> {
    let with_identity = report.clients.iter().filter(|client| client.connected);
    let warning = |client: &ClientReport| {
        let id = client.spiffe_id.as_ref()?;
        match client.outbound.as_ref()? {
            OutboundReport::Said { user: None, listeners } if !listeners.is_empty() => Some(format!(
                "warning: whoever can connect to {} calls others as {id}: set outboundUser in the proxy's configuration to the user who runs the application",
                listeners.join(" or ")
            )),
            OutboundReport::Unknown => Some(format!(
                "warning: unknown who can call others as {id} through {}: it does not say to whom it listens, as Envoy does not",
                client.caller
            )),
            OutboundReport::Said { .. } => None,
        }
    };
    with_identity.filter_map(warning).collect()
}

/// Who may call others through a client, in a word.
fn through(outbound: Option<&OutboundReport>) -> String {
    match outbound {
        None => "-".to_owned(),
        Some(OutboundReport::Unknown) => "unknown".to_owned(),
        Some(OutboundReport::Said { listeners, .. }) if listeners.is_empty() => "nobody".to_owned(),
        Some(OutboundReport::Said { user: Some(user), .. }) => format!("uid {user}"),
        Some(OutboundReport::Said { user: None, .. }) => "ANYBODY".to_owned(),
    }
}

fn clients(report: &StatusReport) -> String {
    let mut table = Table::new(["SPIFFE ID", "SERIAL", "BUNDLE", "IS", "SERVES", "CALLER"]);
    for client in &report.clients {
        let is = match (&client.refused, client.connected) {
            (Some(reason), _) => format!("refusing: {reason}"),
            (None, true) => "connected".to_owned(),
            (None, false) => "gone".to_owned(),
        };
        table.row([
            client.spiffe_id.clone().unwrap_or("-".to_owned()),
            client.serial.as_deref().map_or("-", short_serial).to_owned(),
            client.bundle.map_or("-".to_owned(), |sequence| sequence.to_string()),
            is,
            through(client.outbound.as_ref().filter(|_| client.spiffe_id.is_some())),
            client.caller.clone(),
        ]);
    }
    table.to_string()
}

fn next(at: Option<u64>, now: SystemTime) -> String {
    let Some(at) = at.map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at)) else { return "now".to_owned() };
    at.duration_since(now).map_or("now".to_owned(), |ahead| format!("in {}", crate::span::of(ahead)))
}

#[cfg(test)]
mod tests {
    use alcazar_node_agent::{NarrowingReport, NodeReport, RegistrationReport};

    use super::*;

    #[test]
    fn a_status_reads_from_the_node_to_what_is_wrong() {
        let certificate =
            || Some(CertificateReport { serial: "0123456789abcdef".into(), not_before: 0, not_after: 3600 });
        let registration = |id: &str, certificate, last_error: Option<&str>| RegistrationReport {
            id: id.into(),
            spiffe_id: format!("spiffe://td/ns/shop/sa/{id}"),
            certificate,
            next_rotation: Some(1800),
            last_error: last_error.map(str::to_owned),
            socket: None,
        };
        let report = StatusReport {
            node: NodeReport {
                spiffe_id: "spiffe://td/node/east/vm-1".into(),
                certificate: certificate(),
                proved_by: Some("attested by its join token".into()),
                next_rotation: None,
                errors: vec!["the CA is away".into()],
            },
            registrations: vec![
                registration("web", certificate(), None),
                registration("db", None, Some("not allowed")),
            ],
            clients: vec![ClientReport {
                caller: "uid 1000, gid 1000, pid 7, on the shared socket".into(),
                spiffe_id: None,
                serial: None,
                bundle: Some(3),
                outbound: None,
                refused: Some("bad key".into()),
                connected: true,
            }],
            narrowing: Some(NarrowingReport {
                file: "/etc/narrow.yaml".into(),
                error: None,
                withheld: vec!["cache".into()],
                unknown: Vec::new(),
            }),
            degraded: vec!["sealed store: no folder".into()],
        };
        let expected = "node          spiffe://td/node/east/vm-1\n\
            certificate   0123456789ab, for 60 min more, next now\n\
            proved itself attested by its join token\n\
            trouble       the CA is away\n\
            trouble       sealed store: no folder\n\
            narrowed by   /etc/narrow.yaml\n\
            withheld      cache\n\
            \n\
            REGISTRATION  SPIFFE ID                SERIAL        LIVES   NEXT       SOCKET\n\
            web           spiffe://td/ns/shop/sa/web  0123456789ab  60 min  in 30 min  -\n\
            db            spiffe://td/ns/shop/sa/db   -             -       in 30 min  -\n\
            \n\
            SPIFFE ID  SERIAL  BUNDLE  IS                 SERVES  CALLER\n\
            -          -       3       refusing: bad key  -       uid 1000, gid 1000, pid 7, on the shared socket\n\
            \n\
            db: not allowed\n";
        let squeeze = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeeze(&text(&report, SystemTime::UNIX_EPOCH)), squeeze(expected));
    }

    #[test]
    fn who_can_call_through_a_proxy_is_warned_of_unless_it_is_its_user() {
        let client = |name: &str, outbound: Option<OutboundReport>, connected| ClientReport {
            caller: format!("uid 998, pid 7, {name}"),
            spiffe_id: Some(format!("spiffe://td/ns/shop/sa/{name}")),
            serial: None,
            bundle: None,
            outbound,
            refused: None,
            connected,
        };
        let said = |user, listeners: &[&str]| {
            let listeners = listeners.iter().map(|&listener| listener.to_owned()).collect();
            Some(OutboundReport::Said { listeners, user })
        };
        let report = StatusReport {
            node: NodeReport {
                spiffe_id: "spiffe://td/node/east/vm-1".into(),
                certificate: None,
                proved_by: None,
                next_rotation: None,
                errors: Vec::new(),
            },
            registrations: Vec::new(),
            clients: vec![
                client("bound", said(Some(1000), &["127.0.0.1:15101"]), true),
                client("open", said(None, &["127.0.0.1:15102", "127.0.0.1:5432"]), true),
                client("envoy", Some(OutboundReport::Unknown), true),
                client("control", said(None, &[]), true),
                client("app", None, true),
                client("gone", said(None, &["127.0.0.1:15103"]), false),
            ],
            narrowing: None,
            degraded: Vec::new(),
        };
        insta::assert_snapshot!(text(&report, SystemTime::UNIX_EPOCH));
    }
}
