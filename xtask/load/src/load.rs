//! The load itself: each node asks, gets its answer, and asks again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use alcazar_api::{
    ca::v1::{self, certificate_authority_client::CertificateAuthorityClient, issue_workload_result::Outcome},
    istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};
use anyhow::bail;
use prost_types::{Struct, Value, value::Kind};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::{Code, transport::Channel};

use crate::setup::Node;

/// How certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Call {
    /// One by one: Istio's `CreateCertificate`.
    One,
    /// Many in a request: `IssueWorkloads`.
    Batch,
}

/// What to ask for.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Certificates in all.
    pub(crate) count: usize,
    pub(crate) call: Call,
    pub(crate) batch: usize,
    /// A new connection for each request.
    pub(crate) reconnect: bool,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Report {
    issued: usize,
    refused: usize,
    elapsed: Duration,
    /// Of each request that was answered.
    latencies: Vec<Duration>,
}

impl Report {
    /// One line.
    pub(crate) fn json(&self) -> String {
        json!({
            "issued": self.issued,
            "refused": self.refused,
            "seconds": self.elapsed.as_secs_f64(),
            "p50_ns": self.latency(0.5),
            "p99_ns": self.latency(0.99),
        })
        .to_string()
    }

    fn latency(&self, quantile: f64) -> u64 {
        let last = self.latencies.len().saturating_sub(1);
        let latency = self.latencies.get((last as f64 * quantile) as usize).copied().unwrap_or_default();
        u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
    }

    fn add(&mut self, other: Self) {
        self.issued += other.issued;
        self.refused += other.refused;
        self.latencies.extend(other.latencies);
    }
}

impl Load {
    /// Asks until the count is reached. A refusal for too much load is counted; any other failure ends the run.
    pub(crate) async fn run(self, nodes: Vec<Node>) -> anyhow::Result<Report> {
        let taken = Arc::new(AtomicUsize::new(0));
        let mut running = JoinSet::new();
        let start = Instant::now();
        for node in nodes {
            let taken = Arc::clone(&taken);
            running.spawn(async move { self.one_node(&node, &taken).await });
        }
        let mut report = Report::default();
        while let Some(outcome) = running.join_next().await {
            report.add(outcome??);
        }
        report.elapsed = start.elapsed();
        report.latencies.sort_unstable();
        Ok(report)
    }

    async fn one_node(self, node: &Node, taken: &AtomicUsize) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let mut channel = node.channel();
        let size = if self.call == Call::Batch { self.batch.max(1) } else { 1 };
        let mut turn = 0;
        loop {
            let from = taken.fetch_add(size, Ordering::Relaxed);
            let size = size.min(self.count.saturating_sub(from));
            if size == 0 {
                return Ok(report);
            }
            if self.reconnect {
                channel = node.channel();
            }
            let started = Instant::now();
            let (issued, refused) = match self.call {
                Call::One => one(&channel, node, turn).await?,
                Call::Batch => many(&channel, node, turn, size).await?,
            };
            report.latencies.push(started.elapsed());
            report.issued += issued;
            report.refused += refused;
            turn += size;
        }
    }
}

/// How many were issued, and how many refused.
type Counts = (usize, usize);

async fn one(channel: &Channel, node: &Node, turn: usize) -> anyhow::Result<Counts> {
    let (_, identity) = pick(&node.workloads, turn)?;
    let identity = Value { kind: Some(Kind::StringValue(identity.clone())) };
    let metadata = Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), identity)]) };
    let request = IstioCertificateRequest {
        csr: pick(&node.requests, turn)?.pem.clone(),
        validity_duration: 0,
        metadata: Some(metadata),
    };
    match IstioCertificateServiceClient::new(channel.clone()).create_certificate(request).await {
        Ok(reply) if reply.get_ref().cert_chain.len() >= 2 => Ok((1, 0)),
        Ok(reply) => bail!("a chain of {} certificates", reply.get_ref().cert_chain.len()),
        Err(status) if status.code() == Code::ResourceExhausted => Ok((0, 1)),
        Err(status) => Err(status.into()),
    }
}

async fn many(channel: &Channel, node: &Node, turn: usize, size: usize) -> anyhow::Result<Counts> {
    let item = |number: usize| {
        let (registration, _) = pick(&node.workloads, turn + number)?;
        let csr = pick(&node.requests, turn + number)?.der.clone();
        anyhow::Ok(v1::IssueWorkload { registration_id: registration.clone(), csr, ..v1::IssueWorkload::default() })
    };
    let items = (0..size).map(item).collect::<anyhow::Result<Vec<_>>>()?;
    let mut client = CertificateAuthorityClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let reply = client.issue_workloads(v1::IssueWorkloadsRequest { items }).await?;
    let mut counts = (0, 0);
    for result in reply.into_inner().results {
        match result.outcome {
            Some(Outcome::Svid(_)) => counts.0 += 1,
            Some(Outcome::Refusal(refusal)) if refusal.code == i32::from(Code::ResourceExhausted) => counts.1 += 1,
            other => bail!("{}: {other:?}", result.registration_id),
        }
    }
    Ok(counts)
}

fn pick<T>(of: &[T], turn: usize) -> anyhow::Result<&T> {
    of.get(turn % of.len().max(1)).ok_or_else(|| anyhow::anyhow!("a node without workloads"))
}
