use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alcazar_policy::DecisionRecord;
use alcazar_service::Shutdown;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

/// Where every decision is written as one JSON line; never waits.
#[derive(Clone)]
pub(crate) struct DecisionLog {
    queue: mpsc::Sender<DecisionRecord>,
    dropped: Arc<AtomicU64>,
}

impl DecisionLog {
    /// Opens the file (`-`: standard output) and starts the task that writes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) async fn open(path: &Path, shutdown: &Shutdown) -> Result<Self, OpenLogError> {
        let target = match path.to_str() {
            Some("-") => Target::StandardOutput,
            _ => {
                let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path).await;
                Target::File(file.map_err(|source| OpenLogError { path: path.to_owned(), source })?)
            }
        };
        let (queue, records) = mpsc::channel(QUEUE);
        let log = Self { queue, dropped: Arc::default() };
        let dropped = log.dropped.clone();
        // It ends when the workers, which drain first, have dropped their ends of the queue.
        shutdown.spawn("decision log", async move { write_all(records, target, &dropped).await });
        Ok(log)
    }

    /// Hands a record to the writer; when that cannot follow, the record is counted and dropped.
    pub(crate) fn write(&self, record: DecisionRecord) {
        if self.queue.try_send(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The decision log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the decision log {} cannot be opened", path.display())]
pub struct OpenLogError {
    path: PathBuf,
    source: io::Error,
}

enum Target {
    File(File),
    StandardOutput,
}

impl Target {
    async fn write(&mut self, lines: Vec<u8>) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.write_all(&lines).await?;
                file.flush().await
            }
            Self::StandardOutput => {
                let written = tokio::task::spawn_blocking(move || {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(&lines)?;
                    stdout.flush()
                });
                written.await.map_err(io::Error::other)?
            }
        }
    }
}

async fn write_all(mut records: mpsc::Receiver<DecisionRecord>, mut target: Target, dropped: &AtomicU64) {
    let mut batch = Vec::with_capacity(BATCH);
    while records.recv_many(&mut batch, BATCH).await > 0 {
        let mut lines = Vec::with_capacity(batch.len() * USUAL_LINE);
        for record in batch.drain(..) {
            match serde_json::to_writer(&mut lines, &record) {
                Ok(()) => lines.push(b'\n'),
                Err(error) => tracing::error!(%error, "a decision cannot be written as JSON"),
            }
        }
        if let Err(error) = target.write(lines).await {
            tracing::error!(%error, "the decision log cannot be written; decisions are made all the same");
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            lost => tracing::warn!(lost, "the decision log could not follow: that many lines are missing"),
        }
    }
}

const QUEUE: usize = 16 * 1024;
const BATCH: usize = 512;
const USUAL_LINE: usize = 512;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alcazar_policy::{Compiled, LogContext, Protocol, Request, WorkloadPolicy};

    use super::*;

    fn record(id: &str) -> DecisionRecord {
        let policy = Compiled::new(WorkloadPolicy::deny_all());
        let request = Request {
            source: None,
            trust_domain: &"cluster.local".parse().unwrap(),
            source_ip: [10, 0, 0, 1].into(),
            destination: ([10, 0, 0, 2], 5432).into(),
            sni: None,
            protocol: Protocol::Tcp,
        };
        let decision = policy.decide(&request);
        let context =
            LogContext { time: "2026-01-01T00:00:00Z", id, workload: "w", namespace: "n", service_account: "s" };
        policy.record(&request, &decision, context)
    }

    #[tokio::test]
    async fn every_record_becomes_a_line_before_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("decisions.jsonl");
        let shutdown = Shutdown::new();
        let log = DecisionLog::open(&path, &shutdown).await.unwrap();
        for n in 0..1000 {
            log.write(record(&n.to_string()));
        }
        shutdown.trigger("test");
        drop(log);
        shutdown.finished(Duration::from_secs(10)).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let ids: Vec<_> = text.lines().map(|l| serde_json::from_str::<DecisionRecord>(l).unwrap().id).collect();
        assert_eq!(ids, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_record_too_many_is_counted_and_nobody_waits() {
        let (queue, records) = mpsc::channel(1);
        let log = DecisionLog { queue, dropped: Arc::default() };
        (0..5).for_each(|n| log.write(record(&n.to_string())));
        assert_eq!(log.dropped.load(Ordering::Relaxed), 4);
        drop(records);
    }
}
