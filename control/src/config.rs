//! `control.yaml`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// The configuration of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The mesh file.
    pub mesh: PathBuf,
    /// Where chosen addresses of proxies are remembered; made when it is not there. Without it every workload must
    /// state its `inbound`.
    #[serde(default)]
    pub addresses: Option<PathBuf>,
    /// Where proxies connect: delta ADS over mutual TLS.
    pub listen: SocketAddr,
    /// The node agent's socket for this process's own identity.
    pub sds_socket: PathBuf,
    /// Where `/healthz` and `/readyz` are served; not served by default.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
}
