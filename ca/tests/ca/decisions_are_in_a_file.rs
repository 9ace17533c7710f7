//! The audit file of the real program: who did what, why it was refused, and which request and trace it was.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use alcazar_api::ca::v1::{
    self, administration_client::AdministrationClient, attest_node_request::Evidence,
    certificate_authority_client::CertificateAuthorityClient,
};
use alcazar_ca::JoinToken;
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::clock;
use serde_json::Value;
use tonic::{Code, Request, transport::Channel};

use crate::support::{csr, key, node, soon};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The program, which ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Program {
    /// Starts it; the log itself shows nothing.
    fn start(folder: &Path, listen: SocketAddr) -> Self {
        let (data, audit) = (folder.join("ca"), folder.join("audit.jsonl"));
        let config = format!("dataDir: {}\nlisten: {listen}\naudit: {{file: {}}}\n", data.display(), audit.display());
        std::fs::write(folder.join("ca.yaml"), config).unwrap();
        let program = Command::new(env!("CARGO_BIN_EXE_alcazar-ca"))
            .arg("--config")
            .arg(folder.join("ca.yaml"))
            .env("RUST_LOG", "off")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(program)
    }

    /// Asks it to end, and waits until it has.
    fn end(mut self) {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

/// The administration socket, once somebody answers there.
async fn operator(folder: &Path) -> AdministrationClient<Channel> {
    let socket = format!("unix:{}", folder.join("ca/admin.sock").display());
    soon("nobody answers", async || AdministrationClient::connect(socket.clone()).await).await
}

fn attest(token: &str) -> Request<v1::AttestNodeRequest> {
    let evidence = Some(Evidence::JoinToken(token.into()));
    let mut request = Request::new(v1::AttestNodeRequest { csr: csr(&key()), evidence, ..Default::default() });
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{SPAN}-01").parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn every_decision_has_a_line_with_who_what_why_and_which_request() {
    alcazar_mtls::install_default_provider();
    let folder = tempfile::tempdir().unwrap();
    // Free a moment ago.
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let program = Program::start(folder.path(), listen);
    let mut operator = operator(folder.path()).await;
    let ask = |id: String| v1::CreateJoinTokenRequest { node_id: id, ttl: 0, kubernetes_node: false };
    let made = operator.create_join_token(ask(node("n1").to_string())).await.unwrap();
    let by_operator = made.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let token = made.into_inner().token;
    operator.create_join_token(ask("spiffe://cluster.local/ns/a/sa/b".into())).await.unwrap_err();
    operator.list_registrations(v1::ListRegistrationsRequest::default()).await.unwrap();

    let pin = token.parse::<JoinToken>().unwrap().pin();
    let connector = Connector::pinned("cluster.local".parse().unwrap(), pin, grpc::ALPN, clock::system());
    let ca = "spiffe://cluster.local/ns/alcazar-system/sa/alcazar-ca".parse().unwrap();
    let mut client = CertificateAuthorityClient::new(grpc::channel(listen, connector, Expected::id(ca)));
    let issued = client.attest_node(attest(&token)).await.unwrap();
    let by_node = issued.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let refused = client.attest_node(attest(&token)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let again = refused.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    program.end();

    let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |request: &str| {
        let mut found = lines.iter().filter(|line| line["request_id"] == request);
        let one = found.next().unwrap_or_else(|| panic!("no line of {request}: {text}"));
        assert!(found.next().is_none(), "two lines of {request}: {text}");
        one
    };
    let line = of(&by_operator);
    for (name, value) in
        [("event", "audit"), ("act", "CreateJoinToken"), ("outcome", "done"), ("rpc", "CreateJoinToken")]
    {
        assert_eq!(line[name], value, "{line}");
    }
    assert_eq!(line["what"], node("n1").to_string());
    assert!(line["who"].as_str().unwrap().starts_with("uid "), "{line}");
    let line = of(&by_node);
    for (name, value) in [("event", "issued"), ("trace_id", TRACE), ("parent_id", SPAN), ("plug", "join-token")] {
        assert_eq!(line[name], value, "{line}");
    }
    assert_eq!(line["spiffe_id"], node("n1").to_string());
    let line = of(&again);
    for (name, value) in [("event", "refused"), ("trace_id", TRACE), ("code", "Unauthenticated"), ("rpc", "AttestNode")]
    {
        assert_eq!(line[name], value, "{line}");
    }
    assert!(line["reason"].as_str().unwrap().contains("join token"), "{line}");
    let acts: Vec<_> = lines.iter().filter(|line| line["event"] == "audit").collect();
    assert_eq!(acts.len(), 2, "what only looks is no act: {text}");
    assert_eq!((&acts[1]["outcome"], &acts[1]["code"]), (&"refused".into(), &"InvalidArgument".into()));
    assert!(lines.iter().any(|line| line["event"] == "rotation"), "the first key of JWT-SVIDs: {text}");
    assert!(!text.contains(&token), "a token is nobody's to read");
}

/// A file that cannot be written is told before anything is decided.
#[test]
fn without_the_file_it_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = (folder.path().join("ca"), folder.path().join("ca.yaml"));
    let text = format!("dataDir: {}\nlisten: 127.0.0.1:0\naudit: {{file: /nowhere/audit}}\n", data.display());
    std::fs::write(&config, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_alcazar-ca")).arg("--config").arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("the audit file /nowhere/audit cannot be written"), "{said}");
    assert!(!data.exists());
}
