//! The decision log: what a line says, and that it reads back as what was written.

use alcazar_policy::{DECISION_SCHEMA, DecisionRecord, LogContext};

use crate::support::{Call, Place, policy};

const SHOP: &str = include_str!("policies/shop.yaml");

fn record(place: &Place, call: &Call) -> DecisionRecord {
    let compiled = place.compile(&policy(SHOP));
    let context = LogContext {
        time: "2026-11-21T15:30:00Z",
        id: "7f3a",
        workload: &place.name,
        namespace: &place.namespace,
        service_account: &place.account,
    };
    call.with(|request| compiled.record(request, &compiled.decide(request), context))
}

#[test]
fn every_kind_of_decision_reads_back_as_it_was_written() {
    let call = || Call::http("shop/frontend", "POST", "/items/7?secret=1");
    let lines: Vec<String> = [
        record(&Place::new("shop", "catalog", "v1"), &call().host("Catalog.shop:80").header("authorization", "x")),
        record(&Place::new("shop", "catalog", "v1"), &Call::http("-", "GET", "/ready")),
        record(&Place::new("shop", "reviews", "v2"), &call().header("X-Tier", "tin").header("X-Tier", "b\u{1b}[2J\n")),
        record(&Place::new("shop", "db", "v1"), &Call::tcp("reports/nightly", 5432).at_ip("::ffff:10.0.0.1")),
        record(&Place::new("reports", "nightly", "v1"), &call()),
    ]
    .iter()
    .map(|record| {
        let line = serde_json::to_string(record).unwrap();
        assert!(!line.contains('\n') && !line.contains("secret") && !line.contains("authorization"), "{line}");
        assert_eq!(&serde_json::from_str::<DecisionRecord>(&line).unwrap(), record);
        serde_json::to_string_pretty(record).unwrap()
    })
    .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_record_of_another_schema_is_refused_and_one_with_more_fields_is_read() {
    let record = record(&Place::new("shop", "catalog", "v1"), &Call::http("-", "GET", "/ready"));
    let line = serde_json::to_string(&record).unwrap();
    let other = line.replace(DECISION_SCHEMA, "alcazar.decision/v2");
    assert!(serde_json::from_str::<DecisionRecord>(&other).unwrap_err().to_string().contains("alcazar.decision/v1"));
    let more = line.replacen('{', "{\"colour\":\"blue\",", 1);
    assert_eq!(serde_json::from_str::<DecisionRecord>(&more).unwrap(), record);
}

#[test]
fn the_value_of_a_credential_never_gets_into_the_log() {
    let text = SHOP.replace("request.headers[X-Tier]", "request.headers[Authorization]");
    let place = Place::new("shop", "reviews", "v2");
    let compiled = place.compile(&policy(&text));
    let call = Call::http("shop/catalog", "GET", "/r").header("Authorization", "Bearer topsecret");
    let context = LogContext { time: "t", id: "i", workload: "w", namespace: "n", service_account: "s" };
    let line = call
        .with(|request| serde_json::to_string(&compiled.record(request, &compiled.decide(request), context)).unwrap());
    assert!(line.contains("<redacted>") && !line.contains("topsecret"), "{line}");
}
