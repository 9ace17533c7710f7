//! A mesh of two: a frontend that calls, and reviews that is called.

pub(crate) mod app;
pub(crate) mod ca;
pub(crate) mod client;
pub(crate) mod policy;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::mesh::v1;
use alcazar_identity::Credentials;
use alcazar_mtls::install_default_provider;
use alcazar_policy::{Compiled, WorkloadPolicy};
use alcazar_proxy::{Addresses, DataPlane, DataPlaneError, Directory, Forward, Service, Snapshot, Sources, Workload};
use alcazar_service::{Shutdown, clock};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use ca::Ca;

pub(crate) const FRONTEND: &str = "spiffe://td/ns/shop/sa/frontend";
pub(crate) const REVIEWS: &str = "spiffe://td/ns/shop/sa/reviews";

/// Nothing in these tests takes longer, unless it hangs.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// What a test wants to be different.
pub(crate) struct Wanted {
    pub(crate) policy: WorkloadPolicy,
    /// Where the application of reviews listens, by protocol.
    pub(crate) http: SocketAddr,
    pub(crate) grpc: Option<SocketAddr>,
    pub(crate) tcp: Option<SocketAddr>,
    /// Whom the frontend expects at reviews.
    pub(crate) expected: String,
    pub(crate) forward: bool,
    pub(crate) decision_log: Option<PathBuf>,
    pub(crate) workers: usize,
    /// Whose the frontend's connections must be.
    pub(crate) user: Option<u32>,
}

impl Wanted {
    pub(crate) fn new(http: SocketAddr) -> Self {
        Self {
            policy: policy::allow(FRONTEND, "/*"),
            http,
            grpc: None,
            tcp: None,
            expected: REVIEWS.to_owned(),
            forward: false,
            decision_log: None,
            workers: 1,
            user: None,
        }
    }

    fn ports(&self) -> Vec<(&'static str, u32, SocketAddr, v1::Protocol)> {
        let http = [("http", 80, self.http, v1::Protocol::Http)];
        let grpc = self.grpc.map(|grpc| ("rpc", 9000, grpc, v1::Protocol::Http));
        let tcp = self.tcp.map(|tcp| ("db", 5432, tcp, v1::Protocol::Tcp));
        http.into_iter().chain(grpc).chain(tcp).collect()
    }

    fn service_ports(&self) -> Vec<v1::ServicePort> {
        let port = |(name, number, target, protocol): &(&str, u32, SocketAddr, v1::Protocol)| v1::ServicePort {
            name: (*name).to_owned(),
            number: *number,
            target_port: target.port().into(),
            protocol: (*protocol).into(),
        };
        self.ports().iter().map(port).collect()
    }

    pub(crate) fn reviews(&self) -> v1::Workload {
        let port = |(name, _, target, protocol): &(&str, u32, SocketAddr, v1::Protocol)| v1::WorkloadPort {
            name: (*name).to_owned(),
            number: target.port().into(),
            protocol: (*protocol).into(),
        };
        let hosts = ["reviews", "reviews.shop", "reviews.shop.svc", "reviews.shop.svc.td"];
        v1::Workload {
            name: "reviews-v1".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "reviews".to_owned(),
            spiffe_id: REVIEWS.to_owned(),
            address: "127.0.0.1".to_owned(),
            ports: self.ports().iter().map(port).collect(),
            services: vec![v1::LocalService { hosts: hosts.map(str::to_owned).to_vec(), ports: self.service_ports() }],
            ..v1::Workload::default()
        }
    }

    pub(crate) fn service(&self, mesh_addresses: &[SocketAddr]) -> v1::Service {
        let endpoint = |mesh_address: &SocketAddr| v1::Endpoint {
            workload: "shop/reviews-v1".to_owned(),
            mesh_address: mesh_address.to_string(),
            address: "127.0.0.1".to_owned(),
            spiffe_id: self.expected.clone(),
            ports: self.service_ports().iter().map(|port| port.number).collect(),
        };
        v1::Service {
            name: "reviews".to_owned(),
            namespace: "shop".to_owned(),
            hosts: ["reviews.shop", "reviews.shop.svc", "reviews.shop.svc.td"].map(str::to_owned).to_vec(),
            ports: self.service_ports(),
            endpoints: mesh_addresses.iter().map(endpoint).collect(),
        }
    }
}

/// One proxy.
pub(crate) struct Node {
    pub(crate) addresses: Addresses,
    pub(crate) credentials: watch::Sender<Arc<Credentials>>,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) shutdown: Shutdown,
    pub(crate) running: JoinHandle<Result<(), DataPlaneError>>,
}

impl Node {
    pub(crate) fn start(
        data_plane: DataPlane,
        credentials: Credentials,
        snapshot: Snapshot,
        log: Option<PathBuf>,
    ) -> Self {
        let addresses = data_plane.addresses().clone();
        let (credentials, live) = watch::channel(Arc::new(credentials));
        let (snapshots, snapshots_live) = watch::channel(Arc::new(snapshot));
        let shutdown = Shutdown::new();
        let sources = Sources { credentials: live, snapshots: snapshots_live, clock: clock::system() };
        let end = shutdown.clone();
        let running = tokio::spawn(async move { data_plane.run(sources, log.as_deref(), end).await });
        Self { addresses, credentials, snapshots, shutdown, running }
    }

    /// Another policy from now on.
    pub(crate) fn enforce(&self, policy: WorkloadPolicy) {
        let policy = Arc::new(Compiled::new(policy));
        self.snapshots.send_modify(|snapshot| {
            *snapshot = Arc::new(Snapshot { policy, ..Snapshot::clone(snapshot) });
        });
    }

    pub(crate) async fn stop(self) {
        self.shutdown.trigger("the test ends");
        tokio::time::timeout(SOON, self.running).await.unwrap().unwrap().unwrap();
        self.shutdown.finished(SOON).await.unwrap();
    }
}

pub(crate) struct Mesh {
    pub(crate) ca: Ca,
    pub(crate) frontend: Node,
    pub(crate) reviews: Node,
}

impl Mesh {
    pub(crate) fn start(wanted: &Wanted) -> Self {
        install_default_provider();
        let ca = Ca::new();
        let drain = Duration::from_secs(10);
        let reviews = DataPlane::bind(wanted.workers, any(), None, &[], drain).unwrap();
        let mesh_address = reviews.addresses().inbound;
        let reviews = Node::start(
            reviews,
            ca.credentials(REVIEWS),
            snapshot(wanted.reviews(), wanted.policy.clone(), &[]),
            wanted.decision_log.clone(),
        );
        let forward = Forward { listen: any(), to: "reviews.shop:5432".to_owned() };
        let forwards = if wanted.forward { vec![forward] } else { vec![] };
        let frontend = DataPlane::bind(wanted.workers, any(), Some(any()), &forwards, drain).unwrap();
        let frontend = match wanted.user {
            Some(uid) => frontend.of_user(uid).unwrap(),
            None => frontend,
        };
        let services = [wanted.service(&[mesh_address])];
        let frontend = Node::start(frontend, ca.credentials(FRONTEND), frontend_snapshot(&services), None);
        Self { ca, frontend, reviews }
    }

    pub(crate) fn outbound(&self) -> SocketAddr {
        self.frontend.addresses.outbound.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.frontend.stop().await;
        self.reviews.stop().await;
    }
}

pub(crate) fn frontend_snapshot(services: &[v1::Service]) -> Snapshot {
    let frontend = v1::Workload {
        name: "frontend-v1".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "frontend".to_owned(),
        spiffe_id: FRONTEND.to_owned(),
        address: "127.0.0.1".to_owned(),
        ..v1::Workload::default()
    };
    snapshot(frontend, WorkloadPolicy::deny_all(), services)
}

pub(crate) fn snapshot(workload: v1::Workload, policy: WorkloadPolicy, services: &[v1::Service]) -> Snapshot {
    let services: Vec<Arc<Service>> =
        services.iter().map(|service| Arc::new(Service::try_from(service.clone()).unwrap())).collect();
    let workload = Workload::try_from(workload).unwrap();
    let services = Arc::new(Directory::new(&services, workload.namespace()));
    Snapshot { workload: Arc::new(workload), policy: Arc::new(Compiled::new(policy)), services }
}

/// Waits for something that must come true.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
