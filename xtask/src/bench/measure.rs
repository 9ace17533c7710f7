//! Processes that are measured: started, waited for, what they spend, and their end.

use std::net::{SocketAddr, TcpStream};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// A process that ends with the round.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(super) fn wait_until_it_listens(address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = TcpStream::connect(address) {
        ensure!(Instant::now() < deadline, "nothing listens on {address}: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// User and system time of the processes so far.
pub(super) fn cpu_time(running: &[Running]) -> anyhow::Result<Duration> {
    running.iter().try_fold(Duration::ZERO, |sum, process| times(process).map(|(user, system)| sum + user + system))
}

/// User time and system time of a process so far.
pub(super) fn times(process: &Running) -> anyhow::Result<(Duration, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0.id()))?;
    // The second field is the program's name in parentheses and may hold anything; 14 and 15 are the times.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let mut ticks = after_name.split_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
    let (user, system) = ticks.next().zip(ticks.next()).context("no times")?;
    // Linux reports hundredths of a second on every platform that Rust runs on.
    Ok((Duration::from_millis(user * 10), Duration::from_millis(system * 10)))
}

/// Resident memory, in bytes.
pub(super) fn memory(running: &[Running]) -> anyhow::Result<f64> {
    let mut kilobytes = 0.0;
    for process in running {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        kilobytes += line.trim().trim_end_matches(" kB").parse::<f64>()?;
    }
    Ok(kilobytes * 1024.0)
}
