//! `alcazar status`: asks the running `up` and prints what it says.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use alcazar_service::process::chain;
use serde::{Deserialize, Serialize};

use crate::args::StatusArgs;
use crate::ask::{AskError, ask};
use crate::span;
use crate::table::Table;
use crate::up::Paths;

/// What the running mesh looks like: the JSON of `alcazar status --json`.
///
/// Fields are added, never renamed or dropped. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) trust_domain: String,
    pub(crate) cluster: String,
    /// The process that runs the mesh.
    pub(crate) pid: u32,
    /// Whether every part has what it needs.
    pub(crate) ready: bool,
    /// The parts that have not, by name.
    pub(crate) pending: Vec<String>,
    pub(crate) root: Authority,
    pub(crate) intermediate: Authority,
    /// Where the CRLs are: `<this>/root.crl`, `<this>/<SHA-256 of the intermediate>.crl`.
    #[serde(default)]
    pub(crate) crls: Option<String>,
    pub(crate) workloads: Vec<Workload>,
}

/// A certificate of the hierarchy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Authority {
    /// SHA-256 of the certificate, in hexadecimal.
    pub(crate) fingerprint: String,
    pub(crate) not_after: u64,
}

/// A workload with its certificate and addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) spiffe_id: String,
    /// Absent until the first certificate is there, as are the times.
    pub(crate) serial: Option<String>,
    pub(crate) not_after: Option<u64>,
    pub(crate) next_rotation: Option<u64>,
    /// Where the workload reaches others: its `http_proxy`.
    pub(crate) outbound: Option<String>,
    /// Where others reach it: the mesh port of its proxy.
    pub(crate) inbound: String,
    /// Where the application itself listens.
    pub(crate) address: String,
    /// The process of its `command`, while it runs.
    pub(crate) pid: Option<u32>,
    /// Why its certificate could not be renewed, while that is so.
    pub(crate) error: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> ExitCode {
    let path = Paths::of(&args.data.path).status_socket();
    let status: Status = match ask(&path) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("alcazar: no mesh runs on {}: {}", args.data.path.display(), chain(&error));
            if matches!(error, AskError::Nobody(_)) {
                eprintln!("start it with `alcazar up`, or name its directory with --data-dir");
            }
            return ExitCode::FAILURE;
        }
    };
    let text = if args.json { json(&status) } else { table(&status, alcazar_service::clock::now()) };
    // Whoever closed the pipe has read enough.
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn json(status: &Status) -> String {
    serde_json::to_string_pretty(status).unwrap_or_default() + "\n"
}

/// The status as people read it.
fn table(status: &Status, now: SystemTime) -> String {
    let mut workloads = Table::new(["WORKLOAD", "SPIFFE ID", "SERIAL", "LIVES", "OUTBOUND", "INBOUND", "PROCESS"]);
    for workload in &status.workloads {
        workloads.row([
            format!("{}/{}", workload.namespace, workload.name),
            workload.spiffe_id.clone(),
            workload.serial.as_deref().map_or("-", short_serial).to_owned(),
            workload.not_after.map_or("-".to_owned(), |at| left(at, now)),
            workload.outbound.clone().unwrap_or("-".to_owned()),
            workload.inbound.clone(),
            workload.pid.map_or("-".to_owned(), |pid| pid.to_string()),
        ]);
    }
    let authority = |name: &str, authority: &Authority| {
        format!("{name:<13} {} ({} left)\n", authority.fingerprint, left(authority.not_after, now))
    };
    let mut text = format!("{:<13} {}, cluster {}\n", "trust domain", status.trust_domain, status.cluster);
    text += &authority("root", &status.root);
    text += &authority("intermediate", &status.intermediate);
    if let Some(crls) = &status.crls {
        text += &format!("{:<13} {crls}\n", "CRLs");
    }
    text += &if status.ready {
        format!("{:<13} ready, process {}\n", "mesh", status.pid)
    } else {
        format!("{:<13} process {}, waiting for {}\n", "mesh", status.pid, status.pending.join(", "))
    };
    text += &format!("\n{workloads}");
    for workload in &status.workloads {
        if let Some(error) = &workload.error {
            text += &format!("\n{}/{}: {error}\n", workload.namespace, workload.name);
        }
    }
    text
}

/// The first digits of a serial: enough to see that it changed.
pub(crate) fn short_serial(serial: &str) -> &str {
    serial.get(..12).unwrap_or(serial)
}

/// How long until a moment, in words.
pub(crate) fn left(at: u64, now: SystemTime) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
    at.duration_since(now).map_or("expired".to_owned(), span::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Status {
        let authority = |fingerprint: &str| Authority { fingerprint: fingerprint.to_owned(), not_after: 86_400 * 3 };
        Status {
            trust_domain: "cluster.local".to_owned(),
            cluster: "east".to_owned(),
            pid: 7,
            ready: true,
            pending: Vec::new(),
            root: authority("aa"),
            intermediate: authority("bb"),
            crls: Some("http://127.0.0.1:15080/crl".to_owned()),
            workloads: vec![Workload {
                name: "reviews-v1".to_owned(),
                namespace: "shop".to_owned(),
                spiffe_id: "spiffe://cluster.local/ns/shop/sa/reviews".to_owned(),
                serial: Some("00112233445566778899".to_owned()),
                not_after: Some(90),
                next_rotation: Some(45),
                outbound: Some("127.0.0.1:15101".to_owned()),
                inbound: "127.0.0.1:15102".to_owned(),
                address: "127.0.0.1".to_owned(),
                pid: None,
                error: None,
            }],
        }
    }

    #[test]
    fn the_table_reads_well() {
        let expected = "\
trust domain  cluster.local, cluster east
root          aa (3 days left)
intermediate  bb (3 days left)
CRLs          http://127.0.0.1:15080/crl
mesh          ready, process 7

WORKLOAD         SPIFFE ID                                  SERIAL        LIVES  OUTBOUND         INBOUND          PROCESS
shop/reviews-v1  spiffe://cluster.local/ns/shop/sa/reviews  001122334455  60 s   127.0.0.1:15101  127.0.0.1:15102  -
";
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(30);
        let text = table(&Status { root: authority_at(30), intermediate: authority_bb(), ..example() }, now);
        assert_eq!(text, expected);
    }

    fn authority_at(extra: u64) -> Authority {
        Authority { fingerprint: "aa".to_owned(), not_after: 86_400 * 3 + extra }
    }

    fn authority_bb() -> Authority {
        Authority { fingerprint: "bb".to_owned(), not_after: 86_400 * 3 + 60 }
    }

    #[test]
    fn the_json_has_the_names_that_scripts_read() {
        let value: serde_json::Value = serde_json::from_str(&json(&example())).unwrap();
        let workload = value.pointer("/workloads/0").unwrap();
        for name in ["name", "namespace", "spiffe_id", "serial", "not_after", "outbound", "inbound"] {
            assert!(!workload.get(name).unwrap().is_null(), "{name}");
        }
        for pointer in ["/root/fingerprint", "/root/not_after", "/intermediate/fingerprint", "/intermediate/not_after"]
        {
            assert!(value.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
