//! The peer: two Envoys with mutual TLS between them and a hundred RBAC policies, configured like ours.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::measure::{Running, wait_until_it_listens};
use super::relay::POLICIES;
use crate::process::output;
use crate::tools;

/// Starts outbound and inbound on one core; returns them and the address of the outbound listener.
pub(super) fn start(folder: &Path, origin: SocketAddr) -> anyhow::Result<(Vec<Running>, SocketAddr)> {
    let binary = tools::envoy()?;
    certificates(folder)?;
    let (outbound, inbound) = (free_address()?, free_address()?);
    let configurations = [
        ("inbound", inbound_config(folder, inbound, origin)),
        ("outbound", outbound_config(folder, outbound, inbound)),
    ];
    let mut running = Vec::new();
    for (name, config) in configurations {
        let path = folder.join(format!("{name}.yaml"));
        std::fs::write(&path, config)?;
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(&binary).args([
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "--log-level",
            "error",
            "-c",
        ]);
        command.arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
        running.push(Running(command.spawn().context("cannot start Envoy")?));
    }
    wait_until_it_listens(inbound)?;
    wait_until_it_listens(outbound)?;
    Ok((running, outbound))
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn certificates(folder: &Path) -> anyhow::Result<()> {
    let openssl = |name: &str, subject: &str, extra: &[&str]| {
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        command.args(["-subj", subject, "-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]).args(extra);
        output(command.current_dir(folder)).map(drop)
    };
    openssl("root", "/CN=bench", &[])?;
    for account in ["client", "server"] {
        let name = format!("subjectAltName=URI:spiffe://cluster.local/ns/bench/sa/{account}");
        let leaf = ["-CA", "root.pem", "-CAkey", "root.key", "-addext", &name, "-addext", "basicConstraints=CA:FALSE"];
        openssl(account, "/O=bench", &leaf)?;
    }
    Ok(())
}

fn tls(folder: &Path, account: &str, context: &str, extra: &str) -> String {
    let at = |file: &str| folder.join(file).display().to_string();
    format!(
        r#"transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}
    {extra}
    common_tls_context:
      alpn_protocols: [h2]
      tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
      tls_certificates:
      - certificate_chain: {{filename: "{}"}}
        private_key: {{filename: "{}"}}
      validation_context:
        trusted_ca: {{filename: "{}"}}
        match_typed_subject_alt_names:
        - {{san_type: URI, matcher: {{prefix: "spiffe://cluster.local/"}}}}
"#,
        at(&format!("{account}.pem")),
        at(&format!("{account}.key")),
        at("root.pem"),
    )
}

fn indent(text: &str, by: usize) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        writeln!(all, "{:by$}{line}", "").unwrap_or_default();
        all
    })
}

fn listener(address: SocketAddr, connection_manager: &str, transport: &str) -> String {
    format!(
        r#"static_resources:
  listeners:
  - address: {{socket_address: {{address: {}, port_value: {}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
{}          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: upstream}}}}]}}
{}"#,
        address.ip(),
        address.port(),
        indent(connection_manager, 10),
        indent(transport, 6),
    )
}

fn cluster(address: SocketAddr, extra: &str) -> String {
    format!(
        r#"  clusters:
  - name: upstream
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}
{}"#,
        address.ip(),
        address.port(),
        indent(extra, 4),
    )
}

const ROUTER: &str = r#"- name: envoy.filters.http.router
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#;

fn outbound_config(folder: &Path, listen: SocketAddr, inbound: SocketAddr) -> String {
    let http2 = r#"typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}
"#;
    let upstream = format!("{http2}{}", tls(folder, "client", "UpstreamTlsContext", "max_session_keys: 0"));
    listener(listen, &format!("http_filters:\n{ROUTER}"), "") + &cluster(inbound, &upstream)
}

fn inbound_config(folder: &Path, listen: SocketAddr, origin: SocketAddr) -> String {
    let filters = format!(
        r#"forward_client_cert_details: SANITIZE_SET
set_current_client_cert_details: {{uri: true}}
http_filters:
- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: ALLOW
      policies:
{}{ROUTER}"#,
        indent(&policies(), 8)
    );
    let stateless = "require_client_certificate: true\n    disable_stateless_session_resumption: true";
    listener(listen, &filters, &tls(folder, "server", "DownstreamTlsContext", stateless)) + &cluster(origin, "")
}

/// As many as ours, of the same kind; the one that matches comes last.
fn policies() -> String {
    let policy = |name: &str, account: &str, path: &str| {
        format!(
            r#"{name}:
  permissions:
  - and_rules:
      rules:
      - {{url_path: {{path: {{prefix: "{path}"}}}}}}
      - {{header: {{name: ":method", string_match: {{exact: GET}}}}}}
  principals:
  - authenticated: {{principal_name: {{exact: "spiffe://cluster.local/ns/bench/sa/{account}"}}}}
"#
        )
    };
    let mut all: String =
        (1..POLICIES).map(|i| policy(&format!("p{i:04}"), &format!("caller-{i}"), &format!("/api-{i}/"))).collect();
    all += &policy("zlast", "client", "/bench");
    all
}
