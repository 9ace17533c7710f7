use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{Process, free_port, tool};

/// A stock Envoy.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    admin: u16,
}

impl Envoy {
    /// Starts one by what a configuration has beside `node` and `admin`; its files are in `folder`, under `name`. `None` when there is
    /// no Envoy here.
    ///
    /// # Errors
    /// When it cannot be started, does not take its configuration, or is missing in CI.
    pub fn start(folder: &Path, name: &str, configuration: &str) -> Result<Option<Self>> {
        let Some(binary) = tool("envoy", "envoy")? else { return Ok(None) };
        let (config, admin) = (folder.join(format!("{name}.yaml")), free_port()?);
        let head = format!(
            "node: {{id: {name}, cluster: test}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n"
        );
        fs::write(&config, head + configuration)?;
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config);
        command.args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "info"]);
        let process = Process::start(command, &folder.join(format!("{name}.log")))?;
        let envoy = Self { process, admin };
        envoy.process.wait_for_line("Envoy's start", |line| line.contains("starting main dispatch loop"))?;
        Ok(Some(envoy))
    }

    /// Where its administration is: `127.0.0.1:port`.
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin)
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// The cluster `agent`, by which an Envoy asks an agent at this socket.
pub fn agent_cluster(socket: &Path) -> String {
    format!(
        r#"
  - name: agent
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: agent
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: "{}"}}}}}}}}]}}]
"#,
        socket.display()
    )
}

/// A secret by its name, asked of the cluster `agent` over `GRPC` (state of the world) or `DELTA_GRPC`.
pub fn sds(name: &str, api: &str) -> String {
    format!(
        "{{name: \"{name}\", sds_config: {{resource_api_version: V3, api_config_source: {{api_type: {api}, transport_api_version: V3, \
         grpc_services: [{{envoy_grpc: {{cluster_name: agent}}}}]}}}}}}"
    )
}
