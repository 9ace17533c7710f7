//! What is printed once the mesh is ready: the workloads, and calls to try.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use crate::status::{Status, Workload, left};
use crate::table::Table;

/// A call worth trying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Try {
    /// What to expect.
    pub(crate) expect: &'static str,
    /// The line to copy.
    pub(crate) line: String,
}

/// The whole banner.
pub(crate) fn banner(status: &Status, tries: &[Try], took: Duration, mesh: &str, now: SystemTime) -> String {
    let mut table = Table::new(["WORKLOAD", "SPIFFE ID", "LIVES", "OUTBOUND", "INBOUND"]);
    for workload in &status.workloads {
        table.row([
            format!("{}/{}", workload.namespace, workload.name),
            workload.spiffe_id.clone(),
            workload.not_after.map_or("-".to_owned(), |at| left(at, now)),
            workload.outbound.clone().unwrap_or("-".to_owned()),
            workload.inbound.clone(),
        ]);
    }
    let mut text = format!("\n{table}\n");
    let width = tries.iter().map(|one| one.expect.len()).max().unwrap_or_default();
    for one in tries {
        // Writing to a string cannot fail.
        writeln!(text, "{:width$}  {}", one.expect, one.line).unwrap_or_default();
    }
    if !tries.is_empty() {
        text.push('\n');
    }
    let root = &status.root.fingerprint;
    text += &format!("{mesh}: {} workloads, root {}\n", status.workloads.len(), root.get(..16).unwrap_or(root));
    text + &format!("ready in {} ms; Ctrl-C ends it\n", took.as_millis())
}

/// The calls of the sample, with the addresses it has got.
///
/// Left out is a call whose workloads are not there any more: the sample is the user's to edit.
pub(crate) fn sample(status: &Status) -> Vec<Try> {
    let find = |namespace: &str, name: &str| {
        status.workloads.iter().find(move |workload| workload.namespace == namespace && workload.name == name)
    };
    let outbound = |workload: Option<&Workload>| workload.and_then(|workload| workload.outbound.clone());
    let mut tries = Vec::new();
    if let Some(proxy) = outbound(find("shop", "frontend-v1")) {
        tries.push(Try { expect: "allowed", line: format!("curl -x http://{proxy} http://reviews.shop/ratings") });
    }
    if let Some(proxy) = outbound(find("reports", "nightly")) {
        tries.push(Try { expect: "denied", line: format!("curl -x http://{proxy} http://reviews.shop/ratings") });
    }
    if let Some(reviews) = find("shop", "reviews-v1") {
        tries.push(Try { expect: "refused", line: format!("curl http://{}/ratings", reviews.inbound) });
    }
    tries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Authority;

    fn workload(namespace: &str, name: &str, port: u16) -> Workload {
        Workload {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            spiffe_id: format!("spiffe://cluster.local/ns/{namespace}/sa/{name}"),
            serial: Some("aabb".to_owned()),
            not_after: Some(90),
            next_rotation: None,
            outbound: Some(format!("127.0.0.1:{port}")),
            inbound: format!("127.0.0.1:{}", port + 1),
            address: "127.0.0.1".to_owned(),
            pid: None,
            error: None,
        }
    }

    #[test]
    fn the_banner_has_a_table_and_lines_to_copy() {
        let authority = Authority { fingerprint: "0123456789abcdef0123".to_owned(), not_after: 0 };
        let status = Status {
            trust_domain: "cluster.local".to_owned(),
            cluster: "local".to_owned(),
            pid: 1,
            ready: true,
            pending: Vec::new(),
            root: authority.clone(),
            intermediate: authority,
            crls: None,
            workloads: vec![workload("shop", "frontend-v1", 15100), workload("shop", "reviews-v1", 15102)],
        };
        let text = banner(&status, &sample(&status), Duration::from_millis(412), "the sample", SystemTime::UNIX_EPOCH);
        let expected = [
            "",
            "WORKLOAD          SPIFFE ID                                      LIVES  OUTBOUND         INBOUND",
            "shop/frontend-v1  spiffe://cluster.local/ns/shop/sa/frontend-v1  90 s   127.0.0.1:15100  127.0.0.1:15101",
            "shop/reviews-v1   spiffe://cluster.local/ns/shop/sa/reviews-v1   90 s   127.0.0.1:15102  127.0.0.1:15103",
            "",
            "allowed  curl -x http://127.0.0.1:15100 http://reviews.shop/ratings",
            "refused  curl http://127.0.0.1:15103/ratings",
            "",
            "the sample: 2 workloads, root 0123456789abcdef",
            "ready in 412 ms; Ctrl-C ends it",
            "",
        ];
        assert_eq!(text, expected.join("\n"));
    }
}
