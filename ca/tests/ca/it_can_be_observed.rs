//! What operators see: metrics under the names that dashboards know.

use std::time::Duration;

use alcazar_api::ca::v1::{self, issue_workload_result::Outcome};
use alcazar_ca::{Config, Limit};
use alcazar_service::metrics::Format;
use tonic::Code;

use crate::support::{Hands, Served, csr, key, node, registration, web};

/// The value of a sample.
fn sample(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn metrics_count_what_was_issued_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&folder.path().join("ca"), &Hands::new()).await;
    let (token, first) = (served.token(&node("n1")).await, key());
    let svid = crate::support::svid(&served.attest(&token, &first).await.unwrap(), &first);
    served.renew(&svid, &key()).await.unwrap();
    // A token's second use, by another key; and a request that is none.
    served.attest(&token, &key()).await.unwrap_err();
    let item = alcazar_api::ca::v1::RenewNodeRequest { csr: csr(&key())[1..].to_vec() };
    served.client(&svid).renew_node(item).await.unwrap_err();

    served.hands.advance(Duration::from_secs(60));
    let text = served.ca.metrics().encode(Format::Prometheus);
    let check = |name: &str, expected: i64| assert_eq!(sample(&text, name), Some(expected), "{name} in {text}");
    check("citadel_server_csr_count", 4);
    check("citadel_server_success_cert_issuance_count", 2);
    check("citadel_server_authentication_failure_count", 1);
    check("citadel_server_csr_parsing_err_count", 1);
    check("citadel_server_csr_sign_err_count", 0);
    check("alcazar_ca_refusals_total{code=\"INVALID_ARGUMENT\"}", 1);
    check("alcazar_ca_issuance_seconds_count", 2);
    let prints = served.ca.fingerprints();
    let seconds =
        |at: std::time::SystemTime| i64::try_from(at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap();
    check("citadel_server_root_cert_expiry_timestamp", seconds(prints.root.validity.not_after()));
    check("citadel_server_cert_chain_expiry_timestamp", seconds(prints.intermediate.validity.not_after()));
    let left = seconds(prints.intermediate.validity.not_after()) - seconds(served.hands.now());
    check("cert_expiry_seconds{resource_name=\"intermediate\"}", left);
    check("cert_expiry_seconds{resource_name=\"serving\"}", 3600 - 60);
    served.stop().await;
}

/// The names that dashboards and alerts are written with: one that is renamed breaks them in silence.
#[tokio::test]
async fn every_metric_is_there_under_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&folder.path().join("ca"), &Hands::new()).await;
    // What is told by code or plug is there once there is one.
    let token = served.token(&node("n1")).await;
    served.attest(&token, &key()).await.unwrap();
    served.attest(&token, &key()).await.unwrap_err();
    let text = served.ca.metrics().encode(Format::Prometheus);
    for (name, kind) in [
        ("citadel_server_csr_count", "counter"),
        ("citadel_server_authentication_failure_count", "counter"),
        ("citadel_server_success_cert_issuance_count", "counter"),
        ("citadel_server_csr_parsing_err_count", "counter"),
        ("citadel_server_csr_sign_err_count", "counter"),
        ("citadel_server_root_cert_expiry_timestamp", "gauge"),
        ("citadel_server_cert_chain_expiry_timestamp", "gauge"),
        ("cert_expiry_seconds", "gauge"),
        ("alcazar_ca_issuance_seconds", "histogram"),
        ("alcazar_ca_refusals_total", "counter"),
        ("alcazar_ca_jwt_svids_asked_total", "counter"),
        ("alcazar_ca_jwt_svids_issued_total", "counter"),
        ("alcazar_ca_jwt_issuance_seconds", "histogram"),
        ("alcazar_ca_authentication_failures_total", "counter"),
        ("alcazar_ca_queue_depth", "gauge"),
        ("alcazar_ca_ledger_entries", "gauge"),
        ("alcazar_ca_ledger_sync_seconds", "histogram"),
    ] {
        let line = format!("# TYPE {name} {kind}");
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
    served.stop().await;
}

#[tokio::test]
async fn who_asks_for_too_much_is_told_when_to_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path().join("ca"));
    // One of the three is for its attestation.
    config.limits.certificates = Limit { per_minute: 6, burst: 3 };
    let served = Served::start_with(config, &Hands::new()).await;
    let one = node("n1");
    let svid = served.attested(&one).await;
    served.ca.put_registration(registration("shop.web", &one, &web())).await.unwrap();
    let item = || v1::IssueWorkload { registration_id: "shop.web".into(), csr: csr(&key()), present_not_after: 0 };
    let request = v1::IssueWorkloadsRequest { items: vec![item(), item(), item()] };
    let results = served.client(&svid).issue_workloads(request).await.unwrap().into_inner().results;
    let refusals: Vec<_> = results
        .into_iter()
        .filter_map(|result| match result.outcome {
            Some(Outcome::Refusal(refusal)) => Some(refusal),
            _ => None,
        })
        .collect();
    let [refusal] = &*refusals else { panic!("{refusals:?}") };
    assert_eq!(refusal.code, i32::from(Code::ResourceExhausted));
    assert!((1..=10_000).contains(&refusal.retry_after_ms), "{refusal:?}");

    // One that comes alone finds the hint where clients of gRPC look.
    let status = served.renew(&svid, &key()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let wait: u64 = status.metadata().get("retry-after-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=10_000).contains(&wait), "{wait}");
    assert!(String::from_utf8_lossy(status.details()).contains("google.rpc.RetryInfo"));
    // Another caller has its own share.
    served.attested(&node("n2")).await;
    let text = served.ca.metrics().encode(Format::Prometheus);
    assert_eq!(sample(&text, "alcazar_ca_overload_refusals_total{reason=\"caller\"}"), Some(2), "{text}");
    served.stop().await;
}

#[tokio::test]
async fn the_operator_sees_how_far_the_certificates_reach_and_what_was_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(&folder.path().join("ca"), &hands).await;
    let svid = served.attested(&node("n1")).await;
    served.client(&svid).renew_node(v1::RenewNodeRequest { csr: vec![1] }).await.unwrap_err();
    let socket = format!("unix:{}", served.ca.admin_socket().display());
    let channel = tonic::transport::Endpoint::from_shared(socket).unwrap().connect().await.unwrap();
    let mut operator = v1::status_client::StatusClient::new(channel);
    let mut ask = async || operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    let status = ask().await;
    let names: Vec<_> = status.horizon.iter().map(|point| point.name.as_str()).collect();
    let leaf = "leaf of cluster.local/node/local/n1";
    assert_eq!(names, ["root", "intermediate", "serving", leaf]);
    assert!(status.horizon.iter().all(|point| point.percent_left >= 96), "{:?}", status.horizon);
    let issuance = status.issuance.unwrap();
    assert_eq!((issuance.asked, issuance.issued, issuance.waiting), (2, 1, 0));
    assert_eq!(issuance.refused_by_code[0].name, "INVALID_ARGUMENT");
    assert!(status.parts.iter().any(|part| (&*part.name, &*part.state) == ("issuance", "ready")), "{:?}", status.parts);
    // Nine years on: the root has a tenth left.
    hands.advance(Duration::from_secs(9 * 365 * 24 * 3600));
    let status = ask().await;
    assert!((9..=10).contains(&status.horizon[0].percent_left), "{:?}", status.horizon);
    served.stop().await;
}
