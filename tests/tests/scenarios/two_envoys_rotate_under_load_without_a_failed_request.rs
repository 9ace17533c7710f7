//! Two stock Envoys that have all of their secrets from an agent, over SDS: client -> Envoy -> mutual TLS -> Envoy -> origin, with a
//! handshake for each request and no retries. Leaves, intermediate and root are exchanged, and the agent is killed: no request fails.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alcazar_api::ca::v1::{RotationKind, SetForeignBundleRequest, bundles_client::BundlesClient};
use alcazar_api::sds as agents;
use alcazar_identity::{Credentials, SpiffeId, SvidKey, X509Svid};
use alcazar_mtls::{Connector, Expected};
use alcazar_service::{Shutdown, clock};
use alcazar_testkit::{
    AgentProcess, CaProcess, Curl, DEADLINE, Envoy, HttpOrigin, Load, agent_cluster, eventually, free_port, sds, turn,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
pub(crate) const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/caller";
const PARTNER: &str = "spiffe://partner.example/ns/shop/sa/caller";
/// Envoy acknowledges, so a rotation is a matter of seconds; a busy machine gets more of them.
pub(crate) const ROTATION: Duration = Duration::from_secs(120);

/// A CA, and an agent that serves these workloads on sockets of their own.
pub(crate) async fn start(home: &Path, workloads: &[&str], life: Duration) -> (CaProcess, AgentProcess) {
    let ca = CaProcess::start(home, "").unwrap();
    ca.wait_ready().unwrap();
    for name in workloads {
        ca.register_as(name, "one", &format!("socket:shop.{name}"), life).await.unwrap();
    }
    let agent = AgentProcess::start(home, &ca, "one").await.unwrap();
    (ca, agent)
}

/// What is believed of a peer: the bundle under a name, and one URI in its certificate.
pub(crate) fn validation(bundle: &str, api: &str, peer: &str) -> String {
    format!(
        "combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"{peer}\"}}}}]}}, \
         validation_context_sds_secret_config: {}}}",
        sds(bundle, api)
    )
}

/// A listener of mutual TLS in front of the cluster `to`; nothing is resumed.
pub(crate) fn tls_listener(port: u16, api: &str, certificate: &str, validation: &str, to: &str) -> String {
    format!(
        r#"
  - name: tls-{port}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          disable_stateless_session_resumption: true
          disable_stateful_session_resumption: true
          common_tls_context:
            tls_certificate_sds_secret_configs: [{}]
            {validation}
      filters:
{}"#,
        sds(certificate, api),
        http(&format!("[{{match: {{prefix: /}}, route: {{cluster: {to}}}}}]"))
    )
}

fn http(routes: &str) -> String {
    format!(
        r#"
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: {routes}
"#
    )
}

pub(crate) fn cluster(name: &str, port: u16, more: &str) -> String {
    format!(
        r#"
  - name: {name}
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
{more}"#
    )
}

/// A cluster of mutual TLS, each request on a connection of its own, nothing resumed.
fn tls_cluster(name: &str, port: u16, peer: &str) -> String {
    let tls = format!(
        r#"
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{max_requests_per_connection: 1}}
        explicit_http_config: {{http_protocol_options: {{}}}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        max_session_keys: 0
        common_tls_context:
          tls_certificate_sds_secret_configs: [{}]
          {}
"#,
        sds("default", "DELTA_GRPC"),
        validation("ROOTCA", "DELTA_GRPC", peer)
    );
    cluster(name, port, &tls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_envoys_rotate_under_load_without_a_failed_request() {
    let _turn = turn();
    let home = tempfile::tempdir().unwrap();
    let (ca, mut agent) = start(home.path(), &["reviews", "caller"], Duration::from_secs(10)).await;
    let origin = HttpOrigin::start("reviews").unwrap();
    let (near, far) = (free_port().unwrap(), free_port().unwrap());
    let server = format!(
        "static_resources:\n  clusters:\n{}{}\n  listeners:\n{}",
        agent_cluster(&agent.socket("shop.reviews").unwrap()),
        cluster("origin", origin.port(), ""),
        tls_listener(far, "GRPC", "default", &validation("ROOTCA", "GRPC", CALLER), "origin"),
    );
    let Some(server) = Envoy::start(home.path(), "server", &server).unwrap() else { return };
    let routes =
        "[{match: {prefix: /wrong}, route: {cluster: wrong}}, {match: {prefix: /}, route: {cluster: reviews}}]";
    let client = format!(
        "static_resources:\n  clusters:\n{}{}{}\n  listeners:\n  - name: plain\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {near}}}}}\n    filter_chains:\n    - filters:\n{}",
        agent_cluster(&agent.socket("shop.caller").unwrap()),
        tls_cluster("reviews", far, REVIEWS),
        tls_cluster("wrong", far, "spiffe://cluster.local/ns/shop/sa/somebody-else"),
        http(routes),
    );
    let client = Envoy::start(home.path(), "client", &client).unwrap().unwrap();
    let address = format!("127.0.0.1:{near}");
    let get = |path: &str| Curl::default().get(&format!("http://{address}{path}")).map_or(0, |answer| answer.code);
    eventually("an answer through both", DEADLINE, async || get("/") == 200).await.unwrap();
    // The server is who it is, and not whom this cluster asks for.
    assert_eq!(get("/wrong"), 503);

    let load = Load::start(&address, &format!("http://{address}/"), 3, 50).unwrap();
    let handshakes = || stat(&server, &format!("listener.127.0.0.1_{far}.ssl.handshake"));
    let rotations = |envoy: &Envoy| stat(envoy, "sds.default.update_success");
    let begun = Instant::now();
    let rotated = || {
        let upstream = stat(&client, "cluster.reviews.client_ssl_socket_factory.ssl_context_update_by_sds");
        rotations(&server).max(upstream) >= 4
    };
    while !rotated() {
        assert!(begun.elapsed() < ROTATION, "{}", agent.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = load.answered();
    for kind in [RotationKind::Intermediate, RotationKind::Root] {
        ca.rotate(kind, ROTATION).await.unwrap_or_else(|error| panic!("{kind:?}: {error:#}\n{}", agent.log()));
    }
    // Envoy goes on with what it has, and takes the next from the agent that comes after.
    agent.kill_and_restart().unwrap();
    let after = load.answered();
    eventually("answers after the restart", DEADLINE, async || load.answered() > after + 200).await.unwrap();
    assert!(after > before, "no load during the rotations");
    let answered = load.finish().unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", client.log(), server.log()));
    assert!(answered > 500, "{answered}");
    assert!(handshakes() > 500, "connections were reused: {}", handshakes());
    assert_eq!(get("/wrong"), 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_decides_by_uri_and_believes_each_trust_domain_for_itself() {
    let home = tempfile::tempdir().unwrap();
    let (ca, agent) = start(home.path(), &["reviews", "caller", "stranger"], Duration::ZERO).await;
    let partner = Partner::new();
    let mut operator = BundlesClient::new(ca.operator().await.unwrap());
    let bundle = partner.root.pem().into_bytes();
    let request = SetForeignBundleRequest { trust_domain: "partner.example".into(), bundle };
    operator.set_foreign_bundle(request).await.unwrap();
    let origin = HttpOrigin::start("reviews").unwrap();
    let [own, all, partners] = [(); 3].map(|()| free_port().unwrap());
    let listeners = [
        tls_listener(own, "GRPC", "default", &validation("ROOTCA", "GRPC", CALLER), "origin"),
        tls_listener(
            all,
            "GRPC",
            "default",
            &format!("validation_context_sds_secret_config: {}", sds("ALL", "GRPC")),
            "origin",
        ),
        tls_listener(partners, "DELTA_GRPC", REVIEWS, &validation("ALL", "DELTA_GRPC", PARTNER), "origin"),
    ];
    let server = format!(
        "static_resources:\n  clusters:\n{}{}\n  listeners:\n{}",
        agent_cluster(&agent.socket("shop.reviews").unwrap()),
        cluster("origin", origin.port(), ""),
        listeners.concat(),
    );
    let Some(server) = Envoy::start(home.path(), "server", &server).unwrap() else { return };

    let end = Shutdown::new();
    let held = async |name: &str| {
        let connecting = agents::connect(agent.socket(&format!("shop.{name}")).unwrap(), clock::system());
        let (credentials, driver) = tokio::time::timeout(DEADLINE, connecting).await.unwrap();
        end.spawn("sds", driver);
        credentials.borrow().clone()
    };
    let (caller, stranger) = (held("caller").await, held("stranger").await);
    let bundles = caller.bundles();
    let by_partner = |id: &str| Arc::new(Credentials::new(partner.svid(id), bundles.clone()));
    let theirs = by_partner(PARTNER);
    // Somebody whom the partner's CA gave a name of ours.
    let forged = by_partner(CALLER);
    for (who, credentials, expected) in [
        ("the caller", &caller, [true, true, false]),
        ("a stranger of ours", &stranger, [false, true, false]),
        ("the partner's", &theirs, [false, true, true]),
        ("a forged name", &forged, [false, false, false]),
    ] {
        for (port, is_let_in) in [own, all, partners].into_iter().zip(expected) {
            let what = format!("{who} at {port} of {own}, {all}, {partners}: to be let in is {is_let_in}");
            let answer = async || answers(credentials, port).await == Some(is_let_in);
            eventually(&what, DEADLINE, answer).await.unwrap_or_else(|error| panic!("{error:#}\n{}", server.log()));
        }
    }
    end.trigger("the test is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_name_is_told_once_and_is_no_loop() {
    let home = tempfile::tempdir().unwrap();
    let (_ca, agent) = start(home.path(), &["reviews"], Duration::from_secs(4)).await;
    let origin = HttpOrigin::start("reviews").unwrap();
    let [good, sotw, delta] = [(); 3].map(|()| free_port().unwrap());
    let root = |api: &str| format!("validation_context_sds_secret_config: {}", sds("ROOTCA", api));
    let listeners = [
        tls_listener(good, "GRPC", "default", &root("GRPC"), "origin"),
        tls_listener(sotw, "GRPC", "defualt", &root("GRPC"), "origin"),
        tls_listener(delta, "DELTA_GRPC", "spiffe://cluster.local/ns/shop/sa/nobody", &root("DELTA_GRPC"), "origin"),
    ];
    let server = format!(
        "static_resources:\n  clusters:\n{}{}\n  listeners:\n{}",
        agent_cluster(&agent.socket("shop.reviews").unwrap()),
        cluster("origin", origin.port(), ""),
        listeners.concat(),
    );
    let Some(server) = Envoy::start(home.path(), "server", &server).unwrap() else { return };
    // What is spelt right is served and rotates meanwhile.
    let rotated = async || stat(&server, "sds.default.update_success") >= 4;
    eventually("three rotations", Duration::from_secs(60), rotated).await.unwrap();
    let log = agent.log();
    for name in ["defualt", "sa/nobody"] {
        let told =
            log.lines().filter(|line| line.contains("asks for a secret that there is not") && line.contains(name));
        assert_eq!(told.count(), 1, "{name}: {log}");
    }
    let refused = log.lines().filter(|line| line.contains("could not use a secret")).count();
    assert!(refused <= 1, "{refused}: {log}");
    let attempts = stat(&server, "sds.defualt.update_attempt");
    assert!((1..10).contains(&attempts), "Envoy and the agent talk in a loop: {attempts}");
}

/// One request over mutual TLS: whether it was answered; `None` where nobody listens yet.
pub(crate) async fn answers(credentials: &Arc<Credentials>, port: u16) -> Option<bool> {
    let connector = Connector::new(watch::channel(credentials.clone()).1, &[b"http/1.1"], clock::system());
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let io = TcpStream::connect(address).await.ok()?;
    let server: SpiffeId = REVIEWS.parse().unwrap();
    // A client hears of the refusal of its certificate after the handshake.
    let Ok(mut connected) = connector.connect(io, &Expected::id(server)).await else { return Some(false) };
    let request = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    if connected.stream.write_all(request).await.is_err() || connected.stream.read_to_string(&mut answer).await.is_err()
    {
        return Some(false);
    }
    Some(answer.starts_with("HTTP/1.1 200 OK"))
}

/// A number of an Envoy's statistics; zero while there is none.
fn stat(envoy: &Envoy, name: &str) -> u64 {
    let url = format!("http://{}/stats?filter=^{}$", envoy.admin(), name.replace('.', "%5C."));
    let Ok(answer) = Curl::default().get(&url) else { return 0 };
    let number = |line: &str| line.trim().strip_prefix(name)?.strip_prefix(": ")?.parse().ok();
    answer.text.lines().find_map(number).unwrap_or(0)
}

/// Another trust domain, whose CA signs what it likes.
struct Partner {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Partner {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self { root: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn svid(&self, id: &str) -> X509Svid {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.root).unwrap();
        X509Svid::new(vec![leaf.der().clone()], SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap()
    }
}
