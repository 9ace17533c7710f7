//! `proxy.yaml`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use alcazar_identity::SpiffeId;
use serde::{Deserialize, Deserializer};

/// What a proxy is told at its start. Everything else comes from the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// In front of whom it stands: `<namespace>/<workload>`.
    pub workload: WorkloadName,
    /// The node agent's socket for this workload.
    pub sds_socket: PathBuf,
    /// Where the control plane is.
    pub control: ControlPlane,
    /// The mesh port: mutual TLS from other proxies.
    pub inbound: SocketAddr,
    /// The application's proxy into the mesh; without it the application makes no calls.
    #[serde(default)]
    pub outbound: Option<SocketAddr>,
    /// The number of the user who runs the application: `outbound` and `forwards` serve his processes of this host and nobody
    /// else. Default: whoever can connect.
    #[serde(default)]
    pub outbound_user: Option<u32>,
    /// Listeners that each lead to one TCP service.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// Where each decision is written as a line of JSON; `-` is standard output. Default: nowhere.
    #[serde(default)]
    pub decision_log: Option<PathBuf>,
    /// Threads that move bytes. Default: one for each core.
    #[serde(default)]
    pub workers: Option<usize>,
    /// `/healthz` and `/readyz`. Default: not served.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// How long open requests may take to complete at the end (`30s`, `500ms`, `2m`). Default: `10s`.
    #[serde(default = "default_drain", deserialize_with = "duration")]
    pub drain: Duration,
}

/// Where the control plane is, and who it must prove to be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ControlPlane {
    /// `host:port`.
    pub address: String,
    /// Default: `spiffe://<own trust domain>/ns/alcazar-system/sa/alcazar-control`.
    #[serde(default, deserialize_with = "identity")]
    pub identity: Option<SpiffeId>,
}

/// A listener whose connections all go to one TCP service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Forward {
    /// Where the application connects to.
    pub listen: SocketAddr,
    /// The service: `db.shop:5432`.
    pub to: String,
}

/// `<namespace>/<workload>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadName {
    text: String,
    slash: usize,
}

impl WorkloadName {
    /// Before the slash.
    pub fn namespace(&self) -> &str {
        self.text.get(..self.slash).unwrap_or_default()
    }

    /// After the slash.
    pub fn name(&self) -> &str {
        self.text.get(self.slash + 1..).unwrap_or_default()
    }

    /// Both.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl std::fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for WorkloadName {
    type Err = ParseWorkloadNameError;

    fn from_str(text: &str) -> Result<Self, ParseWorkloadNameError> {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { text: text.to_owned(), slash: namespace.len() })
            }
            _ => Err(ParseWorkloadNameError(text.to_owned())),
        }
    }
}

/// Not the name of a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not <namespace>/<workload>, in lower case")]
pub struct ParseWorkloadNameError(String);

impl<'de> Deserialize<'de> for WorkloadName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `10s`, `500ms`, `2m`, `1h`.
///
/// # Errors
/// When the text is not a whole number and one of these units.
pub fn parse_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let wrong = || ParseDurationError(text.to_owned());
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs).ok_or_else(wrong);
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => Err(wrong()),
    }
}

/// Not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration such as 30s, 500ms or 2m")]
pub struct ParseDurationError(String);

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn identity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SpiffeId>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

fn default_drain() -> Duration {
    DEFAULT_DRAIN
}

/// How long a drain may take unless the configuration says otherwise.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        let check = |text, expected| assert_eq!(parse_duration(text).ok(), expected, "{text:?}");
        check("10s", Some(Duration::from_secs(10)));
        check("500ms", Some(Duration::from_millis(500)));
        check("2m", Some(Duration::from_secs(120)));
        check("1h", Some(Duration::from_secs(3600)));
        for bad in ["", "10", "s", "1.5s", "-1s", "10 s", "10d", "99999999999999999999s", "9999999999999999999h"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_workload_has_a_namespace_and_a_name() {
        let name: WorkloadName = "shop/reviews-v1".parse().unwrap();
        assert_eq!((name.namespace(), name.name(), name.as_str()), ("shop", "reviews-v1", "shop/reviews-v1"));
        for bad in ["", "shop", "shop/", "/reviews", "a/b/c", "Shop/reviews", "shop/re views"] {
            assert!(bad.parse::<WorkloadName>().is_err(), "{bad:?}");
        }
    }
}
