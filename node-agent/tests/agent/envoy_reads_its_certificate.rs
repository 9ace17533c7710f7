//! A real Envoy takes its certificate and its bundle from the agent's socket, and follows their rotation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::{Credentials, SpiffeId};
use alcazar_mtls::{Connector, Expected};
use alcazar_service::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::support::{CaServer, Home, soon};

const REVIEWS: &str = "spiffe://td.example/ns/shop/sa/reviews";

#[tokio::test]
async fn envoy_serves_by_the_agents_certificate_and_follows_its_rotation() {
    let Some(binary) = envoy() else { return };
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(token)).await;
    agent.registration("shop.reviews", |r| r.certificate.is_some()).await;
    let client = {
        let svid = ca.ca().svid("spiffe://td.example/ns/shop/sa/frontend", Duration::from_secs(3600), clock::now());
        let bundles = ca.ca().bundles();
        Connector::new(watch::channel(Arc::new(Credentials::new(svid, bundles))).1, &[b"http/1.1"], clock::system())
    };

    let folder = tempfile::tempdir().unwrap();
    let listeners =
        [("GRPC", "default", folder.path().join("sotw")), ("DELTA_GRPC", REVIEWS, folder.path().join("delta"))];
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, bootstrap(&home.socket("shop.reviews"), &listeners)).unwrap();
    let _envoy = Running::start(&binary, &config, folder.path());

    let mut serials = Vec::new();
    for (_, _, listener) in &listeners {
        serials.push(soon(serial_of(&client, listener, |_| true)).await);
    }
    // Another life is asked for: the agent gets a new certificate at once, and Envoy takes it.
    ca.change(|ca| ca.registrations[0].ttl = 600);
    for ((_, _, listener), before) in listeners.iter().zip(&serials) {
        soon(serial_of(&client, listener, |serial| serial != before)).await;
    }
    agent.stop().await;
    // The agent is away; what Envoy has is good.
    for (_, _, listener) in &listeners {
        soon(serial_of(&client, listener, |_| true)).await;
    }
}

/// The serial by which the server of a listener proves itself, once it is such; a whole request is made each time. Envoy tells
/// nobody when it has taken a new certificate: whoever connects sees it.
async fn serial_of(client: &Connector, listener: &Path, such: impl Fn(&str) -> bool) -> String {
    let server: SpiffeId = REVIEWS.parse().unwrap();
    loop {
        if let Some(serial) = ask(client, listener, server.clone()).await
            && such(&serial)
        {
            return serial;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One request; `None` while the listener is not there.
async fn ask(client: &Connector, listener: &Path, server: SpiffeId) -> Option<String> {
    let io = UnixStream::connect(listener).await.ok()?;
    // Until its secrets have come, Envoy closes connections.
    let mut connected = client.connect(io, &Expected::id(server)).await.ok()?;
    connected.stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connected.stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("it is me"), "{answer}");
    Some(connected.peer.serial().to_owned())
}

/// Envoy's configuration: a listener for each way of asking the agent.
fn bootstrap(agent: &Path, listeners: &[(&str, &str, PathBuf)]) -> String {
    let listeners: String = listeners.iter().map(|(api, name, path)| listener(api, name, path)).collect();
    format!(
        r#"
node: {{id: test, cluster: test}}
static_resources:
  clusters:
  - name: agent
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: agent
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: "{}"}}}}}}}}]}}]
  listeners:
{listeners}"#,
        agent.display()
    )
}

fn listener(api: &str, certificate: &str, path: &Path) -> String {
    let sds = format!(
        "sds_config: {{resource_api_version: V3, api_config_source: {{api_type: {api}, transport_api_version: V3, \
         grpc_services: [{{envoy_grpc: {{cluster_name: agent}}}}]}}}}"
    );
    format!(
        r#"
  - name: {api}
    address: {{pipe: {{path: "{}"}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs: [{{name: "{certificate}", {sds}}}]
            validation_context_sds_secret_config: {{name: ROOTCA, {sds}}}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {api}
          delayed_close_timeout: 0s
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: it is me}}}}}}]
"#,
        path.display()
    )
}

struct Running(Child);

impl Running {
    fn start(binary: &Path, config: &Path, folder: &Path) -> Self {
        let log = fs::File::create(folder.join("envoy.log")).unwrap();
        let child = Command::new(binary)
            .arg("-c")
            .arg(config)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Where Envoy is. Without it the test passes over and says so; in CI that is a failure.
#[allow(clippy::disallowed_methods, reason = "where tools are, is told by the environment")]
fn envoy() -> Option<PathBuf> {
    let home = std::env::var("HOME").unwrap_or_default();
    let tools =
        std::env::var("ALCAZAR_TOOLS").map_or_else(|_| Path::new(&home).join(".cache/alcazar/tools"), PathBuf::from);
    let found = fs::read_dir(&tools).into_iter().flatten().flatten().map(|entry| entry.path().join("envoy"));
    let is_envoys = |path: &PathBuf| {
        path.is_file() && path.parent().unwrap().file_name().unwrap().to_str().unwrap().starts_with("envoy-")
    };
    let found = found.filter(is_envoys).max();
    if found.is_none() {
        let missing = format!("needs {}/envoy-<version>/envoy; `cargo xtask tools` brings it", tools.display());
        assert!(std::env::var("CI").is_err(), "{missing}");
        eprintln!("passed over: {missing}");
    }
    found
}
