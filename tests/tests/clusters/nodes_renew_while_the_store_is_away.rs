//! A real etcd goes away while nodes renew: nobody is refused who is known, nothing is lost, and a stolen key shows itself when
//! the store is back.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use alcazar_api::{
    ca::v1::{
        self, administration_client::AdministrationClient, attest_node_request::Evidence,
        certificate_authority_client::CertificateAuthorityClient, issue_workload_result::Outcome,
    },
    istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};
use alcazar_identity::{
    CertificateDer, Credentials, Fingerprint, SpiffeId, SvidKey, TrustBundles, TrustDomain, X509Svid,
};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::clock;
use alcazar_store::{EtcdStore, Store, etcd::EtcdConfig};
use alcazar_testkit::{Curl, DEADLINE, Etcd, Process, free_port, until};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// How long a replica waits for an answer of the store.
const STORE_DEADLINE: Duration = Duration::from_secs(2);

/// A replica as a process.
struct Replica {
    process: Process,
    home: PathBuf,
    name: &'static str,
    port: u16,
    admin: u16,
}

impl Replica {
    fn start(home: &Path, etcd: &Etcd, name: &'static str) -> Self {
        let (port, admin) = (free_port().unwrap(), free_port().unwrap());
        let text = format!(
            "dataDir: {}\nlisten: 127.0.0.1:{port}\nadmin: 127.0.0.1:{admin}\nstore: {{etcd: {{endpoints: ['{}'], deadline: {}s}}}}\n\
             replicas: {{secretFile: {}}}\nregistrations:\n- {{id: shop.web, node: n0, identity: shop/web, selectors: ['socket:web']}}\n",
            home.join(name).display(),
            etcd.endpoint(),
            STORE_DEADLINE.as_secs(),
            home.join("secret").display(),
        );
        fs::write(home.join(format!("{name}.yaml")), text).unwrap();
        let process = Self::run(home, name);
        let replica = Self { process, home: home.into(), name, port, admin };
        replica.wait_ready();
        replica
    }

    fn run(home: &Path, name: &str) -> Process {
        Process::component("alcazar-ca", home, name).unwrap()
    }

    fn start_again(&mut self) {
        self.process = Self::run(&self.home, self.name);
        self.wait_ready();
    }

    fn wait_ready(&self) {
        self.process.wait_ready(self.admin).unwrap();
    }

    fn metric(&self, name: &str) -> u64 {
        let page = Curl::default().get(&format!("http://127.0.0.1:{}/metrics", self.admin)).unwrap().text;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {page}")).trim().parse().unwrap()
    }

    /// What nodes were given that the store has not heard of.
    fn pending(&self) -> usize {
        fs::read_dir(self.home.join(self.name).join("renewals")).map_or(0, Iterator::count)
    }

    async fn operator(&self) -> AdministrationClient<Channel> {
        let socket = self.home.join(self.name).join("admin.sock");
        let channel = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap().connect().await.unwrap();
        AdministrationClient::new(channel)
    }

    async fn attest(&self, node: &str) -> Node {
        let mut operator = self.operator().await;
        let node_id = SpiffeId::node(&trust_domain(), "local", node).unwrap().to_string();
        let request = v1::CreateJoinTokenRequest { node_id, ttl: 0, kubernetes_node: false };
        // The store may be back for a moment only.
        let begun = Instant::now();
        let token = loop {
            match operator.create_join_token(request.clone()).await {
                Err(_) if begun.elapsed() < DEADLINE => tokio::time::sleep(Duration::from_millis(50)).await,
                token => break token.unwrap().into_inner().token,
            }
        };
        let hierarchy = operator.get_hierarchy(v1::GetHierarchyRequest {}).await.unwrap().into_inner();
        let pin = Fingerprint::of(&hierarchy.root.unwrap().certificate);
        let connector = Connector::pinned(trust_domain(), pin, grpc::ALPN, clock::system());
        let mut client = CertificateAuthorityClient::new(grpc::channel(target(self.port), connector, the_ca()));
        let key = KeyPair::generate().unwrap();
        let evidence = Some(Evidence::JoinToken(token));
        let request = v1::AttestNodeRequest { evidence, csr: csr(&key), ..Default::default() };
        let issued = client.attest_node(request).await.unwrap().into_inner();
        let bundles: TrustBundles = issued.bundles.clone().unwrap().try_into().unwrap();
        Node { name: node.into(), credentials: Arc::new(Credentials::new(svid(&issued.chain, &key), bundles)) }
    }
}

/// What a node has, or somebody who stole it.
#[derive(Clone)]
struct Node {
    name: String,
    credentials: Arc<Credentials>,
}

impl Node {
    fn serial(&self) -> String {
        self.credentials.svid().serial().to_string()
    }

    fn channel(&self, replica: &Replica) -> Channel {
        let connector = Connector::new(watch::channel(self.credentials.clone()).1, grpc::ALPN, clock::system());
        grpc::channel(target(replica.port), connector, the_ca())
    }

    fn with(&self, chain: &[Vec<u8>], key: &KeyPair) -> Self {
        let credentials = Credentials::new(svid(chain, key), self.credentials.bundles().clone());
        Self { name: self.name.clone(), credentials: Arc::new(credentials) }
    }

    async fn renew_with(&self, replica: &Replica, key: &KeyPair) -> Result<Self, Status> {
        let mut client = CertificateAuthorityClient::new(self.channel(replica));
        let issued = client.renew_node(v1::RenewNodeRequest { csr: csr(key) }).await?.into_inner();
        Ok(self.with(&issued.chain, key))
    }

    async fn renew(&self, replica: &Replica) -> Result<Self, Status> {
        self.renew_with(replica, &KeyPair::generate().unwrap()).await
    }

    /// Waits until the replica refuses it for good.
    async fn is_refused(&self, replica: &Replica) {
        let begun = Instant::now();
        loop {
            match self.renew(replica).await.map(|node| node.serial()) {
                Err(status) if status.code() == Code::Unauthenticated => return,
                // It has not heard yet.
                Err(status) if status.code() == Code::Unavailable && begun.elapsed() < DEADLINE => {}
                outcome => panic!("{outcome:?}: {}", replica.process.log()),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The replica has looked at the node's lineage.
    async fn is_known_at(&self, replica: &Replica) {
        let mut client = CertificateAuthorityClient::new(self.channel(replica));
        client.watch_registrations(v1::WatchRegistrationsRequest {}).await.unwrap();
    }

    /// By Istio's API, as a client that never reports.
    async fn renew_as_istio_does(&self, replica: &Replica) -> Result<Self, Status> {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let request = IstioCertificateRequest { csr: request, validity_duration: 3600, ..Default::default() };
        let mut client = IstioCertificateServiceClient::new(self.channel(replica));
        let chain = client.create_certificate(request).await?.into_inner().cert_chain;
        let chain: Vec<_> = chain.iter().map(|pem| der(pem)).collect();
        Ok(self.with(&chain, &key))
    }

    async fn workload(&self, replica: &Replica) -> Result<(), Status> {
        let csr = csr(&KeyPair::generate().unwrap());
        let item = v1::IssueWorkload { registration_id: "shop.web".into(), csr, ..Default::default() };
        let mut client = CertificateAuthorityClient::new(self.channel(replica));
        let reply = client.issue_workloads(v1::IssueWorkloadsRequest { items: vec![item] }).await?.into_inner();
        match reply.results.into_iter().next().and_then(|result| result.outcome) {
            Some(Outcome::Svid(_)) => Ok(()),
            Some(Outcome::Refusal(refusal)) => Err(Status::new(refusal.code.into(), refusal.message)),
            None => Err(Status::internal("no outcome")),
        }
    }
}

/// The serial of the latest certificate of a node, as the store has it.
async fn in_the_store(etcd: &Etcd, node: &str) -> Option<String> {
    let prefix = "alcazar/cluster.local/local".parse().unwrap();
    let store = EtcdStore::open(EtcdConfig::new([etcd.endpoint()], prefix)).await.unwrap();
    let key = format!("ca/nodes/cluster.local/node/local/{node}").parse().unwrap();
    let found = store.get(&key).await.unwrap();
    store.close().await;
    let record: serde_json::Value = serde_json::from_slice(found?.value()).unwrap();
    Some(record["latest"]["serial"].as_str().unwrap().to_owned())
}

/// Waits until the store has this of a node.
async fn store_has(etcd: &Etcd, node: &str, serial: Option<&str>) {
    let start = Instant::now();
    loop {
        let found = in_the_store(etcd, node).await;
        if found.as_deref() == serial {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "{node}: the store has {found:?}, not {serial:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn hears_of(etcd: &Etcd, replica: &Replica, nodes: &[Node]) {
    for node in nodes {
        store_has(etcd, &node.name, Some(&node.serial())).await;
    }
    until("the files of what was pending are gone", DEADLINE, || (replica.pending() == 0).then_some(())).unwrap();
}

fn setup() -> Option<(Etcd, tempfile::TempDir)> {
    alcazar_mtls::install_default_provider();
    let etcd = Etcd::start().unwrap()?;
    let home = tempfile::tempdir().unwrap();
    let secret = home.path().join("secret");
    fs::write(&secret, "a secret of at least thirty-two bytes\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    Some((etcd, home))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_workloads_renew_however_etcd_is_away_and_it_hears_of_all_of_it() {
    let Some((mut etcd, home)) = setup() else { return };
    let mut replica = Replica::start(home.path(), &etcd, "one");
    let mut nodes = Vec::new();
    for number in 0..3 {
        nodes.push(replica.attest(&format!("n{number}")).await);
    }
    // A replica knows its nodes after a start too, and not only those that it has seen.
    assert!(replica.process.terminate().unwrap().success());
    replica.start_again();
    let knows = |line: &str| line.contains("the lineages of all nodes are known") && line.contains("nodes=3");
    replica.process.wait_for_line("it knows its nodes", knows).unwrap();
    let before = nodes[0].clone();

    for paused in [true, false] {
        if paused {
            etcd.process().pause().unwrap();
        } else {
            etcd.kill().unwrap();
        }
        // Whoever finds out waits for the deadline, and a second.
        let found_out = Instant::now();
        nodes[0] = nodes[0].renew(&replica).await.unwrap();
        assert!(found_out.elapsed() < STORE_DEADLINE + Duration::from_secs(3), "{:?}", found_out.elapsed());
        replica.process.wait_for_line("the store is away", |line| line.contains("the store is away; nobody")).unwrap();
        // Nobody else waits.
        let begun = Instant::now();
        let mut asked = 0;
        for round in 0..4 {
            for node in &mut nodes {
                *node = if round == 2 { node.renew_as_istio_does(&replica).await } else { node.renew(&replica).await }
                    .unwrap_or_else(|status| panic!("{status:?}: {}", replica.process.log()));
                asked += 1;
            }
            nodes[0].workload(&replica).await.unwrap();
            asked += 1;
        }
        let each = begun.elapsed() / asked;
        assert!(each < STORE_DEADLINE / 4, "{each:?} for each of {asked}");
        assert_eq!(replica.pending(), 3);
        // An older certificate renews no more than ever, and whoever is unknown waits.
        assert_eq!(before.renew(&replica).await.err().unwrap().code(), Code::Unauthenticated);
        // What was issued to clients that never report is noted here; the second time it is covered by the first.
        assert_eq!(home.path().join("one/unreported").exists(), paused);

        if paused {
            etcd.process().resume().unwrap();
        } else {
            // It dies in between, and loses nothing.
            replica.process.kill().unwrap();
            etcd.start_again().unwrap();
            replica.start_again();
        }
        hears_of(&etcd, &replica, &nodes).await;
        until("the note is in the store", DEADLINE, || {
            let noted =
                etcd.ctl(&["get", "--prefix", "alcazar/cluster.local/local/ca/rotation/unreported", "--keys-only"]);
            noted.is_ok_and(|noted| !noted.trim().is_empty()).then_some(())
        })
        .unwrap();
        for node in &mut nodes {
            *node = node.renew(&replica).await.unwrap();
            assert_eq!(in_the_store(&etcd, &node.name).await, Some(node.serial()));
        }
    }
    assert_eq!(replica.metric("alcazar_ca_forked_lineages_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_two_holders_renewed_ends_its_lineage() {
    let Some((mut etcd, home)) = setup() else { return };
    let one = Replica::start(home.path(), &etcd, "one");
    let two = Replica::start(home.path(), &etcd, "two");
    let node = one.attest("n1").await;
    let honest = one.attest("n2").await;
    let wanders = one.attest("n3").await;
    // Each replica has seen what the other wrote.
    let node = node.renew(&two).await.unwrap().renew(&one).await.unwrap();
    let honest = honest.renew(&two).await.unwrap().renew(&one).await.unwrap();
    let thief = node.clone();
    node.is_known_at(&two).await;
    honest.is_known_at(&two).await;
    wanders.is_known_at(&two).await;
    etcd.kill().unwrap();

    let node = node.renew(&one).await.unwrap().renew(&one).await.unwrap();
    let thief = thief.renew(&two).await.unwrap().renew(&two).await.unwrap();
    // Another node's reply is lost, and it asks the other replica with the same key.
    let key = KeyPair::generate().unwrap();
    let lost = honest.renew_with(&one, &key).await.unwrap();
    let honest = honest.renew_with(&two, &key).await.unwrap();
    assert_ne!(lost.serial(), honest.serial());
    let honest = honest.renew(&two).await.unwrap();
    // Something else is pending for it here, and that is no fault of the node's.
    assert_eq!(honest.renew(&one).await.err().unwrap().code(), Code::Unavailable);
    // A third node goes from one replica to the other.
    let wanders = wanders.renew(&one).await.unwrap().renew(&two).await.unwrap().renew(&two).await.unwrap();
    assert_eq!(one.metric("alcazar_ca_provisional_renewals_total"), 4);

    etcd.start_again().unwrap();
    store_has(&etcd, "n1", None).await;
    store_has(&etcd, "n2", Some(&honest.serial())).await;
    store_has(&etcd, "n3", Some(&wanders.serial())).await;
    let settled = || (one.pending() + two.pending() == 0).then_some(());
    until("all is settled", DEADLINE, settled).unwrap();
    let forks = || one.metric("alcazar_ca_forked_lineages_total") + two.metric("alcazar_ca_forked_lineages_total");
    assert_eq!(forks(), 1);
    let logs = format!("{}{}", one.process.log(), two.process.log());
    let said = logs.lines().find(|line| line.contains("its key was stolen") || line.contains("key was stolen"));
    let said = said.unwrap_or_else(|| panic!("{logs}"));
    assert!(said.contains("alcazar::refused") && said.contains("ERROR"), "{said}");
    assert!(said.contains(&node.serial()) && said.contains(&thief.serial()), "{said}");
    // Neither renews, wherever it asks; with a new token the node is in again, and the thief is not.
    for replica in [&one, &two] {
        for holder in [&node, &thief] {
            holder.is_refused(replica).await;
        }
    }
    let anew = one.attest("n1").await;
    anew.renew(&two).await.unwrap().renew(&one).await.unwrap();
    thief.is_refused(&one).await;
    for node in [honest, wanders] {
        node.renew(&one).await.unwrap().renew(&two).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_counts_for_more_than_what_is_pending() {
    let Some((mut etcd, home)) = setup() else { return };
    let mut one = Replica::start(home.path(), &etcd, "one");
    let two = Replica::start(home.path(), &etcd, "two");
    let node = one.attest("n1").await;
    etcd.kill().unwrap();
    let pending = node.renew(&one).await.unwrap();
    one.process.kill().unwrap();
    etcd.start_again().unwrap();
    two.wait_ready();
    let anew = two.attest("n1").await;
    one.start_again();
    one.process.wait_for_line("it is dropped", |line| line.contains("the node has attested anew")).unwrap();
    until("its file is gone", DEADLINE, || (one.pending() == 0).then_some(())).unwrap();
    assert_eq!(in_the_store(&etcd, "n1").await, Some(anew.serial()));
    pending.is_refused(&one).await;
    anew.renew(&one).await.unwrap().renew(&two).await.unwrap();
    assert_eq!(one.metric("alcazar_ca_forked_lineages_total"), 0);
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

fn svid(chain: &[Vec<u8>], key: &KeyPair) -> X509Svid {
    let chain: Vec<_> = chain.iter().take(2).cloned().map(CertificateDer::from).collect();
    X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap()
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn the_ca() -> Expected {
    Expected::id(SpiffeId::workload(&trust_domain(), "alcazar-system", "alcazar-ca").unwrap())
}

fn target(port: u16) -> grpc::Target {
    format!("127.0.0.1:{port}").parse().unwrap()
}
