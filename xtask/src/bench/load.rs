//! A load of HTTP/1.1 requests over kept-alive connections, and the origin that answers them: threads and sockets
//! of the standard library, bounded in count and time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Serves 1 KiB to every request, until the process ends.
pub(super) fn origin() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // A connection that breaks is the load's to report.
            thread::spawn(move || drop(answer(connection)));
        }
    });
    Ok(address)
}

fn answer(connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    let response = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{}", "x".repeat(1024));
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if line == "\r\n" {
            writer.write_all(response.as_bytes())?;
        }
        line.clear();
    }
    Ok(())
}

/// What to send, where, and how fast.
pub(super) struct Load<'a> {
    /// The outbound proxy.
    pub(super) proxy: SocketAddr,
    /// The absolute URL.
    pub(super) url: &'a str,
    pub(super) connections: usize,
    pub(super) duration: Duration,
    /// Requests a second, started by the clock whether or not earlier ones have ended; `None`: as fast as they end.
    pub(super) rate: Option<f64>,
}

/// What came of a load.
pub(super) struct Outcome {
    /// Sorted; from the moment at which a request should have started.
    latencies: Vec<Duration>,
    elapsed: Duration,
}

impl Outcome {
    pub(super) fn requests(&self) -> usize {
        self.latencies.len()
    }

    pub(super) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// In nanoseconds; `quantile` from 0 to 1.
    pub(super) fn latency(&self, quantile: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (last as f64 * quantile) as usize;
        self.latencies.get(index).map_or(0.0, |latency| latency.as_nanos() as f64)
    }
}

impl Load<'_> {
    /// Sends requests until the time is over. Any answer but 200 fails the run: a fast error is no throughput.
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        let next = AtomicU64::new(0);
        let start = Instant::now();
        let results = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.connections).map(|_| scope.spawn(|| self.one_connection(start, &next))).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        let elapsed = start.elapsed();
        let mut latencies = Vec::new();
        for result in results {
            match result {
                Ok(found) => latencies.extend(found?),
                Err(_) => bail!("a thread of the load panicked"),
            }
        }
        latencies.sort();
        ensure!(!latencies.is_empty(), "no request was answered");
        Ok(Outcome { latencies, elapsed })
    }

    fn one_connection(&self, start: Instant, next: &AtomicU64) -> anyhow::Result<Vec<Duration>> {
        let stream = TcpStream::connect(self.proxy).with_context(|| format!("cannot connect to {}", self.proxy))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        let host = self.url.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let request = format!("GET {} HTTP/1.1\r\nhost: {host}\r\n\r\n", self.url);
        let mut latencies = Vec::new();
        loop {
            let intended = match self.rate {
                Some(rate) => {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let at = start + Duration::from_secs_f64(index as f64 / rate);
                    thread::sleep(at.saturating_duration_since(Instant::now()));
                    at
                }
                None => Instant::now(),
            };
            if intended.saturating_duration_since(start) >= self.duration || start.elapsed() >= self.duration * 2 {
                return Ok(latencies);
            }
            writer.write_all(request.as_bytes())?;
            read_response(&mut reader)?;
            latencies.push(intended.elapsed());
        }
    }
}

fn read_response(reader: &mut BufReader<TcpStream>) -> anyhow::Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line).context("no answer")?;
    let status = line.trim_end().to_owned();
    let mut length = 0;
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the connection ended within a head");
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    ensure!(status.starts_with("HTTP/1.1 200"), "answered {status:?}: {}", String::from_utf8_lossy(&body));
    Ok(())
}
