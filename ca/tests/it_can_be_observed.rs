//! What operators see: metrics under the names that dashboards know.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::time::Duration;

use alcazar_service::metrics::Format;
use support::{Hands, Served, csr, key, node};

/// The value of a sample.
fn sample(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn metrics_count_what_was_issued_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&folder.path().join("ca"), &Hands::new()).await;
    let (token, first) = (served.token(&node("n1")).await, key());
    let svid = support::svid(&served.attest(&token, &first).await.unwrap(), &first);
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
