//! How long a rotation takes to a connected client: what the logs of the CA and of the agent say of a certificate, held against
//! the moment at which the client had it. All run on one machine, by one clock.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, ensure};
use serde_json::Value;

/// Microseconds since midnight.
type Moment = u64;

/// When a log speaks first of each serial, in lines that contain `what`.
pub(super) fn told(log: &Path, what: &str) -> anyhow::Result<HashMap<String, Moment>> {
    let text = fs::read_to_string(log)?;
    let mut told = HashMap::new();
    for line in text.lines().filter(|line| line.contains(what)) {
        let Some(serial) = serial(line) else { continue };
        let moment = moment(line).with_context(|| format!("no time in {line:?}"))?;
        told.entry(serial.to_owned()).or_insert(moment);
    }
    Ok(told)
}

/// From what was told to what came, in nanoseconds; sorted.
pub(super) fn latencies(told: &HashMap<String, Moment>, came: &Value) -> anyhow::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    for one in came.as_array().context("no rotations")? {
        let (serial, at) = (one.get(0).and_then(Value::as_str), one.get(1).and_then(Value::as_u64));
        let (serial, at) = serial.zip(at).context("no rotation")?;
        let since = told.get(serial).with_context(|| format!("the log has nothing of {serial}"))?;
        latencies.push(((at % DAY + DAY - since) % DAY) as f64 * 1e3);
    }
    ensure!(!latencies.is_empty(), "nothing was rotated");
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

/// What so large a part stays below.
pub(super) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part) as usize).copied().unwrap_or(f64::NAN)
}

/// `... serial="ab" ...` or `... serial=ab ...`.
fn serial(line: &str) -> Option<&str> {
    let (_, after) = line.split_once(" serial=")?;
    Some(after.split_whitespace().next()?.trim_matches('"'))
}

/// `2026-12-01T15:46:32.123456Z ...`
fn moment(line: &str) -> Option<Moment> {
    let (_, time) = line.split_whitespace().next()?.trim_end_matches('Z').split_once('T')?;
    let (seconds, micros) = time.split_once('.')?;
    let seconds = seconds.split(':').try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
    Some(seconds * 1_000_000 + micros.parse::<u64>().ok()?)
}

const DAY: Moment = 24 * 3600 * 1_000_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_latency_is_from_the_line_of_the_log_to_the_client() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let line = |time: &str, serial: &str| format!("2026-12-01T{time}Z  INFO x: rotated serial={serial} y=\"1\"\n");
        fs::write(&log, line("00:00:01.000500", "\"aa\"") + &line("23:59:59.999000", "bb") + "else serial=cc\n")
            .unwrap();
        let told = told(&log, "rotated").unwrap();
        let midnight = 1_796_083_200_000_000_u64;
        assert_eq!(midnight % DAY, 0);
        let came = json!([["aa", midnight + 1_002_500], ["bb", midnight + 500]]);
        assert_eq!(latencies(&told, &came).unwrap(), [1_500_000.0, 2_000_000.0]);
        assert!(latencies(&told, &json!([["cc", 1]])).is_err());
        assert_eq!([0.0, 0.5, 1.0].map(|part| quantile(&[1.0, 2.0, 3.0], part)), [1.0, 2.0, 3.0]);
    }
}
