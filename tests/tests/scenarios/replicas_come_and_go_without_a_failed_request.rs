//! Replicas of a CA join, drain, die and lose their store while clients go on asking: no request fails, and nothing is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use alcazar_api::ca::v1::{
    self, administration_client::AdministrationClient, attest_node_request::Evidence,
    certificate_authority_client::CertificateAuthorityClient, issue_workload_result::Outcome,
    ledger_client::LedgerClient,
};
use alcazar_identity::{
    CertificateDer, Credentials, Fingerprint, SpiffeId, SvidKey, TrustBundles, TrustDomain, X509Svid,
};
use alcazar_mtls::{Connector, Expected, Side, grpc, verify_peer};
use alcazar_service::clock;
use alcazar_testkit::{DEADLINE, Etcd, Process, free_port, turn, until};
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

const CLIENTS: usize = 16;

/// A replica as a process.
struct Replica {
    process: Process,
    port: u16,
    admin: u16,
    folder: PathBuf,
}

impl Replica {
    fn start(home: &Path, etcd: &Etcd, name: &str) -> Self {
        let (port, admin) = (free_port().unwrap(), free_port().unwrap());
        let folder = home.join(name);
        let registrations: String = (0..CLIENTS)
            .map(|n| format!("- {{id: load.w{n}, node: n{n}, identity: load/w{n}, selectors: ['socket:w{n}']}}\n"))
            .collect();
        let text = format!(
            "dataDir: {}\nlisten: 127.0.0.1:{port}\nadmin: 127.0.0.1:{admin}\nstore: {{etcd: {{endpoints: ['{}']}}}}\nreplicas: {{secretFile: {}}}\nregistrations:\n{registrations}",
            folder.display(),
            etcd.endpoint(),
            home.join("secret").display(),
        );
        fs::write(home.join(format!("{name}.yaml")), text).unwrap();
        let process = Self::run(home, name);
        Self { process, port, admin, folder }
    }

    fn run(home: &Path, name: &str) -> Process {
        Process::component("alcazar-ca", home, name).unwrap()
    }

    fn wait_ready(&self) {
        self.process.wait_ready(self.admin).unwrap();
    }

    async fn operator(&self) -> Channel {
        let socket = self.folder.join("admin.sock");
        Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap().connect().await.unwrap()
    }

    /// The serial of everything in its ledger.
    async fn ledger(&self) -> BTreeSet<String> {
        let mut client = LedgerClient::new(self.operator().await);
        let (mut serials, mut before) = (BTreeSet::new(), None);
        loop {
            let request = v1::ListEntriesRequest { limit: 1000, before, ..v1::ListEntriesRequest::default() };
            let page = client.list_entries(request).await.unwrap().into_inner();
            serials.extend(page.entries.into_iter().map(|entry| entry.serial));
            match page.next {
                Some(next) => before = Some(next),
                None => return serials,
            }
        }
    }
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn the_ca() -> Expected {
    Expected::id(SpiffeId::workload(&trust_domain(), "alcazar-system", "alcazar-ca").unwrap())
}

async fn root(replica: &Replica) -> Fingerprint {
    let mut operator = AdministrationClient::new(replica.operator().await);
    let hierarchy = operator.get_hierarchy(v1::GetHierarchyRequest {}).await.unwrap().into_inner();
    Fingerprint::of(&hierarchy.root.unwrap().certificate)
}

async fn token(replica: &Replica, node: &str) -> String {
    let mut operator = AdministrationClient::new(replica.operator().await);
    let node_id = SpiffeId::node(&trust_domain(), "local", node).unwrap().to_string();
    let request = v1::CreateJoinTokenRequest { node_id, ttl: 0, kubernetes_node: false };
    operator.create_join_token(request).await.unwrap().into_inner().token
}

async fn attest(port: u16, pin: Fingerprint, token: &str, key: &KeyPair) -> Result<v1::IssuedSvid, tonic::Status> {
    let connector = Connector::pinned(trust_domain(), pin, grpc::ALPN, clock::system());
    let address: grpc::Target = format!("127.0.0.1:{port}").parse().unwrap();
    let mut client = CertificateAuthorityClient::new(grpc::channel(address, connector, the_ca()));
    let request = v1::AttestNodeRequest {
        evidence: Some(Evidence::JoinToken(token.to_owned())),
        csr: csr(key),
        ..Default::default()
    };
    Ok(client.attest_node(request).await?.into_inner())
}

/// A node that asks for its workload's certificate all the time.
struct Client {
    number: usize,
    credentials: Arc<Credentials>,
    request: Vec<u8>,
}

impl Client {
    async fn new(replica: &Replica, pin: Fingerprint, number: usize) -> Self {
        let (key, token) = (KeyPair::generate().unwrap(), token(replica, &format!("n{number}")).await);
        let issued = attest(replica.port, pin, &token, &key).await.unwrap();
        let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
        let bundles: TrustBundles = issued.bundles.unwrap().try_into().unwrap();
        let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
        let credentials = Arc::new(Credentials::new(svid, bundles));
        Self { number, credentials, request: csr(&KeyPair::generate().unwrap()) }
    }

    fn channel(&self, port: u16) -> Channel {
        let connector = Connector::new(watch::channel(self.credentials.clone()).1, grpc::ALPN, clock::system());
        grpc::channel(format!("127.0.0.1:{port}").parse::<grpc::Target>().unwrap(), connector, the_ca())
    }

    /// Asks until it is told to stop: the replica that answered last, or else the others in turn.
    async fn run(self, shared: Arc<Shared>) {
        let mut channels = BTreeMap::new();
        let mut last = self.number;
        while !shared.stop.load(Ordering::Relaxed) {
            let ports = shared.ports.lock().unwrap().clone();
            let mut reasons = Vec::new();
            let mut answered = false;
            for turn in 0..ports.len() * ROUNDS {
                let place = (last + turn) % ports.len();
                let port = ports[place];
                let channel = channels.entry(port).or_insert_with(|| self.channel(port)).clone();
                match self.ask(channel).await {
                    Ok(chain) => {
                        last = place;
                        answered = true;
                        shared.answered.fetch_add(1, Ordering::Relaxed);
                        shared.issued.lock().unwrap().push(chain);
                        break;
                    }
                    Err(status) => {
                        shared.retried.fetch_add(1, Ordering::Relaxed);
                        reasons.push(format!("{port}: {status:?}"));
                    }
                }
            }
            if !answered {
                shared.failed.lock().unwrap().push(reasons);
            }
        }
    }

    async fn ask(&self, channel: Channel) -> Result<Vec<CertificateDer<'static>>, tonic::Status> {
        let registration_id = format!("load.w{}", self.number);
        let item = v1::IssueWorkload { registration_id, csr: self.request.clone(), ..v1::IssueWorkload::default() };
        let mut client = CertificateAuthorityClient::new(channel);
        let asked = client.issue_workloads(v1::IssueWorkloadsRequest { items: vec![item] });
        let late = |_| tonic::Status::deadline_exceeded("no answer");
        let reply = tokio::time::timeout(PATIENCE, asked).await.map_err(late)??.into_inner();
        match reply.results.into_iter().next().and_then(|result| result.outcome) {
            Some(Outcome::Svid(svid)) => Ok(svid.chain.into_iter().map(CertificateDer::from).collect()),
            Some(Outcome::Refusal(refusal)) => Err(tonic::Status::new(refusal.code.into(), refusal.message)),
            None => Err(tonic::Status::internal("no outcome")),
        }
    }
}

#[derive(Default)]
struct Shared {
    ports: Mutex<Vec<u16>>,
    answered: AtomicUsize,
    retried: AtomicUsize,
    failed: Mutex<Vec<Vec<String>>>,
    issued: Mutex<Vec<Vec<CertificateDer<'static>>>>,
    stop: AtomicBool,
}

impl Shared {
    /// Waits until so many more requests were answered.
    fn wait_for(&self, more: usize) {
        let from = self.answered.load(Ordering::Relaxed);
        let enough = || (self.answered.load(Ordering::Relaxed) >= from + more).then_some(());
        until("more certificates", DEADLINE, enough).unwrap();
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{} requests failed: {:#?}", failed.len(), failed.first());
    }
}

#[test]
fn replicas_come_and_go_without_a_failed_request() {
    let _turn = turn();
    alcazar_mtls::install_default_provider();
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let secret = home.path().join("secret");
    fs::write(&secret, "a secret of at least thirty-two bytes\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();

    let mut one = Replica::start(home.path(), &etcd, "one");
    one.wait_ready();
    let mut two = Replica::start(home.path(), &etcd, "two");
    two.wait_ready();
    let pin = runtime.block_on(root(&one));
    assert_eq!(pin, runtime.block_on(root(&two)), "there is one root");

    // A join token admits once, whichever replica is asked.
    for round in 0..4 {
        let outcomes = runtime.block_on(async {
            let token = token(&one, &format!("once{round}")).await;
            let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
            tokio::join!(attest(one.port, pin, &token, &a), attest(two.port, pin, &token, &b))
        });
        let admitted = [outcomes.0.is_ok(), outcomes.1.is_ok()];
        assert_eq!(admitted.iter().filter(|admitted| **admitted).count(), 1, "{outcomes:?}");
    }

    let shared = Arc::new(Shared::default());
    *shared.ports.lock().unwrap() = vec![one.port, two.port];
    for number in 0..CLIENTS {
        let client = runtime.block_on(Client::new(if number % 2 == 0 { &one } else { &two }, pin, number));
        runtime.spawn(client.run(shared.clone()));
    }
    shared.wait_for(200);

    // One joins.
    let three = Replica::start(home.path(), &etcd, "three");
    three.wait_ready();
    *shared.ports.lock().unwrap() = vec![one.port, two.port, three.port];
    shared.wait_for(200);

    // One drains.
    let in_two = runtime.block_on(two.ledger());
    let status = two.process.terminate().unwrap();
    assert!(status.success(), "{status}: {}", two.process.log());
    shared.wait_for(200);
    two.process = Replica::run(home.path(), "two");
    two.wait_ready();
    shared.wait_for(100);

    // One dies.
    one.process.kill().unwrap();
    shared.wait_for(200);
    one.process = Replica::run(home.path(), "one");
    one.wait_ready();
    shared.wait_for(100);

    // The store is away for some seconds: what is known is issued all the same.
    etcd.process().pause().unwrap();
    let paused = Instant::now();
    while paused.elapsed() < Duration::from_secs(4) {
        shared.wait_for(20);
    }
    etcd.process().resume().unwrap();
    shared.wait_for(200);
    shared.stop.store(true, Ordering::Relaxed);

    for replica in [&one, &two, &three] {
        replica.wait_ready();
    }
    let ledgers = runtime.block_on(async {
        [one.ledger().await, two.ledger().await, three.ledger().await].into_iter().flatten().collect::<BTreeSet<_>>()
    });
    assert!(in_two.is_subset(&ledgers));
    let issued = shared.issued.lock().unwrap();
    let bundles = runtime.block_on(Client::new(&three, pin, CLIENTS)).credentials.bundles().clone();
    let mut issuers = BTreeSet::new();
    for chain in issued.iter() {
        let svid = verify_peer(chain, &bundles, Side::Client, clock::now());
        assert!(svid.is_ok(), "{:?}", svid.err());
        issuers.insert(Fingerprint::of(&chain[1]));
        let serial = serial(&chain[0]);
        assert!(ledgers.contains(&serial), "{serial} was given out and is in no ledger");
    }
    assert_eq!(issuers.len(), 3, "each replica signs with an intermediate of its own");
    println!("{} certificates, {} requests tried again", issued.len(), shared.retried.load(Ordering::Relaxed));
}

/// The serial number of a certificate, as a ledger has it: version 3, then 16 bytes.
fn serial(der: &[u8]) -> String {
    let version = [0xa0, 3, 2, 1, 2, 2, 16];
    let at = der.windows(version.len()).position(|window| window == version).unwrap() + version.len();
    der[at..at + 16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How long an answer may take. Longer than a replica waits for a store that is silent.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often each replica is tried before a request counts as failed.
const ROUNDS: usize = 2;
