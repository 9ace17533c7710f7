//! The decisions of a sample policy, with their reasons, as one table: a change of meaning is a diff that people read.

use std::fmt::Write;

use crate::support::{Call, Place, policy};

const SHOP: &str = include_str!("policies/shop.yaml");

fn calls() -> Vec<(&'static str, Call)> {
    let get = |source, path| Call::http(source, "GET", path);
    vec![
        ("the frontend reads items", get("shop/frontend", "/items/7")),
        ("the frontend reads drafts", get("shop/frontend", "/items/drafts/7")),
        ("the frontend reads drafts by a detour", get("shop/frontend", "/items/x/..//%64rafts/7?full")),
        ("the frontend writes", Call::http("shop/frontend", "POST", "/items/7")),
        ("a thumbnail", get("shop/frontend", "/x/thumbnail")),
        ("a report without its purpose", get("reports/nightly", "/items")),
        ("a report with its purpose", get("reports/nightly", "/items").header("X-Purpose", "audit-2026")),
        (
            "a report with two purposes",
            get("reports/nightly", "/items").header("x-purpose", "audit").header("x-purpose", "fun"),
        ),
        ("a caller without identity", get("-", "/items")),
        ("a probe without identity", get("-", "/ready")),
        ("an operator of any namespace", Call::http("ops/operator", "DELETE", "/items/7")),
        ("gold", get("shop/catalog", "/r").header("x-tier", "gold")),
        ("bronze", get("shop/catalog", "/r").header("x-tier", "bronze")),
        ("health", Call::http("shop/catalog", "POST", "/health")),
        ("health for the untrusted", get("untrusted-x/y", "/health")),
        ("a connection by the catalog", Call::tcp("shop/catalog", 5432)),
        ("a connection by the catalog from elsewhere", Call::tcp("shop/catalog", 5432).at_ip("192.168.0.1")),
        ("a connection to another port", Call::tcp("shop/catalog", 5433)),
        ("a connection by a report", Call::tcp("reports/nightly", 5432)),
        ("a connection without identity", Call::tcp("-", 5432)),
    ]
}

#[test]
fn every_call_to_every_workload_is_decided_as_written_down() {
    let policy = policy(SHOP);
    let mut table = String::new();
    for place in [
        Place::new("shop", "catalog", "v1"),
        Place::new("shop", "reviews", "v1"),
        Place::new("shop", "reviews", "v2"),
        Place::new("shop", "db", "v1"),
        Place::new("reports", "nightly", "v1"),
    ] {
        let compiled = place.compile(&policy);
        writeln!(table, "# to {} of {}", place.name, place.namespace).unwrap();
        for (what, call) in calls() {
            let explanation = call.with(|request| compiled.explain(request));
            writeln!(table, "{what}\n    {explanation}").unwrap();
        }
        table.push('\n');
    }
    insta::assert_snapshot!(table);
}
