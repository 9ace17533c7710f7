//! How long who asks waits: one after the other, over a connection that is kept.

use std::{path::Path, time::Duration};

use alcazar_api::{
    envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient,
    spiffe::workload::{X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient},
};
use anyhow::{Context, ensure};
use serde_json::json;
use tokio::time::Instant;
use tonic::Request;

use crate::{connect, streams::request};

pub(crate) async fn fetch(socket: &Path, count: usize) -> anyhow::Result<String> {
    let channel = connect::channel(socket, 0).await?;
    let mut sds = SecretDiscoveryServiceClient::new(channel.clone());
    let mut workload_api = SpiffeWorkloadApiClient::new(channel);
    let (mut secrets, mut svids) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        let begun = Instant::now();
        let response = sds.fetch_secrets(request(None)).await?.into_inner();
        secrets.push(begun.elapsed());
        ensure!(response.resources.len() == 2, "{} secrets", response.resources.len());

        let mut asked = Request::new(X509svidRequest {});
        asked.metadata_mut().insert("workload.spiffe.io", "true".parse()?);
        let begun = Instant::now();
        let mut stream = workload_api.fetch_x509svid(asked).await?.into_inner();
        let first = stream.message().await?.context("the agent ended a stream")?;
        svids.push(begun.elapsed());
        ensure!(first.svids.len() == 1, "{} SVIDs", first.svids.len());
    }
    let [sds_p50, sds_p99] = quantiles(secrets);
    let [svid_p50, svid_p99] = quantiles(svids);
    Ok(json!({
        "sds_p50_ns": sds_p50, "sds_p99_ns": sds_p99,
        "workload_api_p50_ns": svid_p50, "workload_api_p99_ns": svid_p99,
    })
    .to_string())
}

/// The middle, and what one in a hundred exceeds, in nanoseconds.
fn quantiles(mut times: Vec<Duration>) -> [u64; 2] {
    times.sort_unstable();
    [0.5, 0.99].map(|quantile| {
        let last = times.len().saturating_sub(1);
        let time = times.get((last as f64 * quantile) as usize).copied().unwrap_or_default();
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    })
}
