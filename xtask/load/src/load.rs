//! The load itself: each client asks, gets its answer, and asks again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::task::JoinSet;

/// One client of a CA.
pub(crate) trait Client: Send + Sync + 'static {
    /// A connection of its own.
    type Connection: Send;

    /// Connects, or is ready to at the first question.
    fn connect(&self) -> impl Future<Output = anyhow::Result<Self::Connection>> + Send;

    /// Asks for so many certificates in one request, or for one. Who asked for `turn` before asks for others now.
    fn ask(
        &self,
        connection: &mut Self::Connection,
        call: Call,
        turn: usize,
        size: usize,
    ) -> impl Future<Output = anyhow::Result<Counts>> + Send;
}

/// How many were issued, and how many refused because of too much load; any other refusal is an error.
pub(crate) type Counts = (usize, usize);

/// How certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Call {
    /// One by one.
    One,
    /// Many in a request, of those that can.
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
    pub(crate) async fn run<C: Client>(self, clients: Vec<C>) -> anyhow::Result<Report> {
        let taken = Arc::new(AtomicUsize::new(0));
        let mut running = JoinSet::new();
        let start = Instant::now();
        for client in clients {
            let taken = Arc::clone(&taken);
            running.spawn(async move { self.one_client(&client, &taken).await });
        }
        let mut report = Report::default();
        while let Some(outcome) = running.join_next().await {
            report.add(outcome??);
        }
        report.elapsed = start.elapsed();
        report.latencies.sort_unstable();
        Ok(report)
    }

    async fn one_client<C: Client>(self, client: &C, taken: &AtomicUsize) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let mut connection = client.connect().await?;
        let size = if self.call == Call::Batch { self.batch.max(1) } else { 1 };
        let mut turn = 0;
        loop {
            let from = taken.fetch_add(size, Ordering::Relaxed);
            let size = size.min(self.count.saturating_sub(from));
            if size == 0 {
                return Ok(report);
            }
            let started = Instant::now();
            if self.reconnect {
                connection = client.connect().await?;
            }
            let (issued, refused) = client.ask(&mut connection, self.call, turn, size).await?;
            report.latencies.push(started.elapsed());
            report.issued += issued;
            report.refused += refused;
            turn += size;
        }
    }
}

/// Those who ask again and again take turns among what they have.
pub(crate) fn pick<T>(of: &[T], turn: usize) -> anyhow::Result<&T> {
    of.get(turn % of.len().max(1)).ok_or_else(|| anyhow::anyhow!("a client without identities"))
}
