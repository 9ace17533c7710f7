//! A node of a real cluster hears from a real CA who is scheduled on it, and gets certificates and tokens for them, for nobody else
//! and for no longer; and a real agent does so by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use alcazar_api::ca::v1::{
    self, administration_client::AdministrationClient, attest_node_request::Evidence,
    certificate_authority_client::CertificateAuthorityClient, issue_jwt_svid_result, issue_workload_result::Outcome,
    jwt_client::JwtClient,
};
use alcazar_api::spiffe::validate_jwt_svid;
use alcazar_identity::{CertificateDer, Credentials, SvidKey, SvidLeaf, TrustBundles, X509Svid};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_node_agent::StatusReport;
use alcazar_service::clock;
use alcazar_testkit::{CaProcess, Curl, DEADLINE, Kubernetes, Process, binary, eventually, until};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};
use rcgen::{CertificateParams, KeyPair};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

const AGENT: &str = "k8s.alcazar-system.agent";
const WEB: &str = "k8s.shop.web";
const DB: &str = "k8s.shop.db";
const AUDIENCE: &str = "reports";

struct World {
    cluster: Kubernetes,
    ca: CaProcess,
    home: tempfile::TempDir,
}

impl World {
    /// A cluster of the nodes `a` with web and `b` with db, each with an agent, and its CA; both know the pods.
    async fn start() -> Option<Self> {
        let cluster = Kubernetes::start().await.unwrap()?;
        for namespace in ["shop", "alcazar-system"] {
            cluster.namespace(namespace, &[]).await.unwrap();
        }
        for account in ["web", "db", "a.b", "kept-out"] {
            cluster.service_account("shop", account).await.unwrap();
        }
        cluster.service_account("alcazar-system", "agent").await.unwrap();
        for (namespace, account, node) in [
            ("shop", "web", "a"),
            ("shop", "kept-out", "a"),
            ("shop", "db", "b"),
            ("alcazar-system", "agent", "a"),
            ("alcazar-system", "agent", "b"),
        ] {
            cluster.pod(namespace, &format!("{account}-{node}"), account, node).await.unwrap();
        }
        let home = tempfile::tempdir().unwrap();
        let more = format!(
            "kubernetes: {{kubeconfig: {}}}\n\
             callers: {{kubernetes: {{nodeAgents: [alcazar-system/agent], podsExcept: [shop/kept-out]}}}}\n",
            cluster.kubeconfig().display()
        );
        let ca = CaProcess::start(home.path(), &more).unwrap();
        ca.wait_ready().unwrap();
        Some(Self { cluster, ca, home })
    }

    /// The token of the agent's pod on this node.
    async fn token(&self, node: &str) -> String {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client().await.unwrap(), "alcazar-system");
        let pod = format!("agent-{node}");
        let uid = pods.get(&pod).await.unwrap().metadata.uid.unwrap();
        self.cluster.token("alcazar-system", "agent", &["istio-ca"], Some((&pod, &uid))).await.unwrap()
    }

    /// What the node of an agent's token gets.
    async fn attest(&self, token: &str) -> Result<Arc<Credentials>, Status> {
        let root = self.ca.root().await.unwrap();
        let connector = Connector::pinned("cluster.local".parse().unwrap(), root, grpc::ALPN, clock::system());
        let ca = "spiffe://cluster.local/ns/alcazar-system/sa/alcazar-ca".parse().unwrap();
        let target: grpc::Target = self.ca.address().parse().unwrap();
        let channel = grpc::channel(target, connector, Expected::id(ca));
        let (key, evidence) = (key(), Some(Evidence::BearerToken(token.to_owned())));
        let request = v1::AttestNodeRequest { evidence, csr: csr(&key), ..Default::default() };
        let issued = CertificateAuthorityClient::new(channel).attest_node(request).await?.into_inner();
        let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
        let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
        Ok(Arc::new(Credentials::new(svid, TrustBundles::try_from(issued.bundles.unwrap()).unwrap())))
    }

    async fn watch(&self, node: &Arc<Credentials>) -> Streaming<v1::Registrations> {
        let mut client = CertificateAuthorityClient::new(self.ca.channel(node).unwrap());
        client.watch_registrations(v1::WatchRegistrationsRequest {}).await.unwrap().into_inner()
    }

    /// Whom the certificate names that a node gets for a registration.
    async fn issue(&self, node: &Arc<Credentials>, registration: &str) -> Result<String, Code> {
        let item = v1::IssueWorkload { registration_id: registration.into(), csr: csr(&key()), ..Default::default() };
        let mut client = CertificateAuthorityClient::new(self.ca.channel(node).unwrap());
        let reply = client.issue_workloads(v1::IssueWorkloadsRequest { items: vec![item] }).await.unwrap().into_inner();
        match reply.results.into_iter().next().unwrap().outcome.unwrap() {
            Outcome::Svid(issued) => {
                let leaf = SvidLeaf::parse(&CertificateDer::from(issued.chain[0].clone())).unwrap();
                Ok(leaf.id().to_string())
            }
            Outcome::Refusal(refusal) => Err(Code::from_i32(refusal.code)),
        }
    }

    /// Whom the token names that a node gets for a registration, as whoever has its bundles reads it.
    async fn issue_jwt(&self, node: &Arc<Credentials>, registration: &str) -> Result<String, Code> {
        let (registration_id, audience) = (registration.to_owned(), vec![AUDIENCE.to_owned()]);
        let item = v1::IssueJwtSvid { registration_id, audience, ..Default::default() };
        let mut client = JwtClient::new(self.ca.channel(node).unwrap());
        let reply = client.issue_jwt_svids(v1::IssueJwtSvidsRequest { items: vec![item] }).await.unwrap().into_inner();
        match reply.results.into_iter().next().unwrap().outcome.unwrap() {
            issue_jwt_svid_result::Outcome::Svid(issued) => {
                let checked = validate_jwt_svid(&issued.token, AUDIENCE, node.bundles(), clock::system()()).unwrap();
                Ok(checked.id().to_string())
            }
            issue_jwt_svid_result::Outcome::Refusal(refusal) => Err(Code::from_i32(refusal.code)),
        }
    }

    async fn operator(&self) -> AdministrationClient<tonic::transport::Channel> {
        AdministrationClient::new(self.ca.operator().await.unwrap())
    }

    async fn delete(&self, pod: &str) {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client().await.unwrap(), "shop");
        pods.delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

/// What is pushed next.
async fn next(stream: &mut Streaming<v1::Registrations>) -> Vec<v1::Registration> {
    let message = timeout(4 * DEADLINE, stream.message()).await.expect("a push").unwrap().expect("a message");
    message.registrations
}

/// Follows what is pushed until it is this.
async fn until_pushed(stream: &mut Streaming<v1::Registrations>, wanted: &[&str]) {
    loop {
        let names: Vec<_> = next(stream).await.into_iter().map(|one| one.id).collect();
        if names == wanted {
            return;
        }
        println!("pushed {names:?}, and not yet {wanted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_what_is_scheduled_on_it_for_as_long_as_it_is() {
    let Some(mut world) = World::start().await else { return };
    let token = world.token("a").await;
    let mut node = None;
    eventually("the pods are known", 4 * DEADLINE, async || match world.attest(&token).await {
        Ok(attested) => node.replace(attested).is_none(),
        Err(status) => status.code() != Code::Unavailable,
    })
    .await
    .unwrap();
    let node = node.unwrap();
    assert_eq!(node.svid().id().as_str(), "spiffe://cluster.local/node/local/a");

    // Its own, as if somebody had registered them, and nobody's of the other node.
    let mut pushed = world.watch(&node).await;
    let first = next(&mut pushed).await;
    assert_eq!(first.iter().map(|one| &*one.id).collect::<Vec<_>>(), [AGENT, WEB]);
    let web = first[1].clone();
    assert_eq!(web.spiffe_id, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(
        (web.node_id.as_str(), web.selectors.join(" ")),
        (node.svid().id().as_str(), "k8s:ns:shop k8s:sa:web".into())
    );
    assert_eq!(world.issue(&node, WEB).await.as_ref(), Ok(&web.spiffe_id));
    assert_eq!(world.issue_jwt(&node, WEB).await, Ok(web.spiffe_id.clone()));
    for other in [DB, "k8s.shop.kept-out", "k8s.shop.nobody", "k8s.alcazar-system.alcazar-ca", "k8s."] {
        assert_eq!(world.issue(&node, other).await, Err(Code::PermissionDenied), "{other}");
        assert_eq!(world.issue_jwt(&node, other).await, Err(Code::PermissionDenied), "{other}");
    }
    // Who looks at what was decided reads by what.
    assert!(world.ca.process().log().contains(WEB), "{}", world.ca.process().log());

    // Those names are nobody's to take; the operator hears of what follows from pods.
    let mut operator = world.operator().await;
    let refused = operator.put_registration(web.clone()).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("kept for the pods"), "{refused}");
    let listed = operator.list_registrations(v1::ListRegistrationsRequest::default()).await.unwrap().into_inner();
    assert_eq!((listed.registrations.len(), listed.of_pods), (0, Some(4)));
    let of_it = v1::ListRegistrationsRequest { pods: true, node_id: web.node_id.clone() };
    let listed = operator.list_registrations(of_it).await.unwrap().into_inner();
    assert_eq!((listed.registrations, listed.of_pods), (first, Some(2)));

    // What is put in for the very same pods stands in their place, while it is there.
    let own = v1::Registration { id: "shop.web".into(), ttl: 60, ..web.clone() };
    operator.put_registration(own).await.unwrap();
    until_pushed(&mut pushed, &["shop.web", AGENT]).await;
    assert_eq!(world.issue(&node, WEB).await, Err(Code::PermissionDenied));
    assert_eq!(world.issue(&node, "shop.web").await.as_ref(), Ok(&web.spiffe_id));
    operator.delete_registration(v1::DeleteRegistrationRequest { id: "shop.web".into() }).await.unwrap();
    until_pushed(&mut pushed, &[AGENT, WEB]).await;

    // Others come, several together.
    for number in 0..5 {
        world.cluster.pod("shop", &format!("ab-{number}"), "a.b", "a").await.unwrap();
    }
    until_pushed(&mut pushed, &[AGENT, "k8s.shop.a.b", WEB]).await;
    assert_eq!(world.issue(&node, "k8s.shop.a.b").await, Ok("spiffe://cluster.local/ns/shop/sa/a.b".into()));

    // A machine that is called as a node would get all of that: nobody makes it a token by mistake.
    let token = async |name: &str, kubernetes_node| {
        let node_id = format!("spiffe://cluster.local/node/local/{name}");
        let wanted = v1::CreateJoinTokenRequest { node_id, ttl: 0, kubernetes_node };
        world.operator().await.create_join_token(wanted).await.map(drop)
    };
    let refused = token("a", false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is the name of a node of Kubernetes"), "{refused}");
    token("a", true).await.unwrap();
    token("vm-1", false).await.unwrap();

    // The API server goes: what was known goes on, also for whoever comes anew.
    world.cluster.kill().unwrap();
    until("the CA says that it does not follow the pods", 4 * DEADLINE, || {
        world.ca.readiness().ok().filter(|answer| answer.text.contains("are not followed since"))
    })
    .unwrap();
    assert_eq!(world.issue(&node, WEB).await.as_ref(), Ok(&web.spiffe_id));
    assert_eq!(world.issue_jwt(&node, WEB).await.as_ref(), Ok(&web.spiffe_id));
    until_pushed(&mut world.watch(&node).await, &[AGENT, "k8s.shop.a.b", WEB]).await;

    // Nor does a CA that starts meanwhile take anything from a node by what it does not know.
    assert!(world.ca.process().terminate().unwrap().success());
    world.ca.start_again().unwrap();
    world.ca.wait_ready().unwrap();
    assert!(world.ca.readiness().unwrap().text.contains("pods of the cluster"));
    world.ca.register("jobs", "a").await.unwrap();
    let mut pushed = world.watch(&node).await;
    let half = timeout(4 * DEADLINE, pushed.message()).await.unwrap().unwrap().unwrap();
    let names: Vec<_> = half.registrations.iter().map(|one| &*one.id).collect();
    assert_eq!((names, half.pods_unknown), (vec!["shop.jobs"], true), "the rest goes on as it was");
    assert_eq!(world.issue(&node, WEB).await, Err(Code::Unavailable));
    assert_eq!(world.issue(&node, "shop.jobs").await, Ok("spiffe://cluster.local/ns/shop/sa/jobs".into()));
    world.cluster.start_again().await.unwrap();
    let whole = timeout(4 * DEADLINE, pushed.message()).await.unwrap().unwrap().unwrap();
    let names: Vec<_> = whole.registrations.iter().map(|one| &*one.id).collect();
    assert_eq!((names, whole.pods_unknown), (vec!["shop.jobs", AGENT, "k8s.shop.a.b", WEB], false));

    // The last pod of an account goes, and with it what its node has of it.
    world.delete("web-a").await;
    until_pushed(&mut pushed, &["shop.jobs", AGENT, "k8s.shop.a.b"]).await;
    assert_eq!(world.issue(&node, WEB).await, Err(Code::PermissionDenied));
    assert_eq!(world.issue_jwt(&node, WEB).await, Err(Code::PermissionDenied));
    // One of five is not the last; what came after it has been heard.
    world.delete("ab-0").await;
    world.cluster.pod("shop", "db-a", "db", "a").await.unwrap();
    until_pushed(&mut pushed, &["shop.jobs", AGENT, "k8s.shop.a.b", DB]).await;
    assert_eq!(world.issue(&node, "k8s.shop.a.b").await, Ok("spiffe://cluster.local/ns/shop/sa/a.b".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_holds_certificates_for_the_pods_of_its_node() {
    let Some(world) = World::start().await else { return };
    let home = world.home.path();
    let agent = Agent::start(&world, home, "b").await;
    agent.until_it_holds(&[AGENT, DB]);
    world.cluster.pod("shop", "web-b", "web", "b").await.unwrap();
    agent.until_it_holds(&[AGENT, DB, WEB]);
    world.delete("db-b").await;
    agent.until_it_holds(&[AGENT, WEB]);
}

/// A node agent that attests by the token of its pod.
struct Agent {
    process: Process,
    socket: PathBuf,
}

impl Agent {
    async fn start(world: &World, home: &Path, node: &str) -> Self {
        fs::write(home.join("token"), world.token(node).await).unwrap();
        let hierarchy = world.operator().await.get_hierarchy(v1::GetHierarchyRequest {}).await.unwrap().into_inner();
        fs::write(home.join("root.der"), hierarchy.root.unwrap().certificate).unwrap();
        let pem = Command::new("openssl").args(["x509", "-inform", "der", "-in"]).arg(home.join("root.der")).output();
        fs::write(home.join("root.pem"), pem.unwrap().stdout).unwrap();
        let path = home.display();
        let text = format!(
            "trustDomain: cluster.local\ncluster: local\nnode: {node}\ncaAddress: {}\ndataDir: {path}/agent\nsocketsDir: {path}/s\n\
             attest: {{bearerTokenFile: {path}/token, rootFile: {path}/root.pem}}\n",
            world.ca.address()
        );
        fs::write(home.join("agent.yaml"), text).unwrap();
        let mut command = Command::new(binary("alcazar-node-agent").unwrap());
        command.arg("--config").arg(home.join("agent.yaml"));
        let process = Process::start(command, &home.join("agent.log")).unwrap();
        Self { process, socket: home.join("agent/admin.sock") }
    }

    fn until_it_holds(&self, wanted: &[&str]) {
        let holds = || (self.holds() == wanted).then_some(());
        until(&format!("the agent holds {wanted:?}"), 4 * DEADLINE, holds)
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.holds(), self.process.log()));
    }

    /// The registrations whose certificates it holds, by name.
    fn holds(&self) -> Vec<String> {
        let by_socket = Curl::default().with(&["--unix-socket", self.socket.to_str().unwrap()]);
        let answer = by_socket.get("http://agent/status").ok().filter(|answer| answer.code == 200);
        let Some((_, body)) = answer.as_ref().and_then(|answer| answer.text.split_once("\r\n\r\n")) else {
            return Vec::new();
        };
        let status: StatusReport = serde_json::from_str(body).unwrap();
        let held = status.registrations.into_iter().filter(|registration| registration.certificate.is_some());
        held.map(|registration| registration.id).collect()
    }
}
