//! Two trust domains, each with a CA, an agent and a proxy of its own, that hold each other's bundles: policy decides who of the
//! other may call what, and the other's root may be rotated.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::ca::v1::{
    ExportRevocationsRequest, RevokeRequest, SetForeignBundleRequest, bundles_client::BundlesClient,
    revocation_administration_client::RevocationAdministrationClient, revoke_request,
};
use alcazar_api::mesh::v1;
use alcazar_api::sds;
use alcazar_api::spiffe::write_bundle;
use alcazar_ca::{Ca, Registration};
use alcazar_identity::{Credentials, Fingerprint, RevocationReason, SpiffeId};
use alcazar_node_agent::Agent;
use alcazar_policy::{Activation, Attribute, Binding, Clause, Compiled, Matcher, Role, Rule, Subject, WorkloadPolicy};
use alcazar_proxy::{DataPlane, Directory, Service, Snapshot, Sources, Workload};
use alcazar_service::{Readiness, Shutdown, clock};
use alcazar_testkit::{DEADLINE, HttpOrigin, curl, turn};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Channel;

/// A trust domain on this machine: everything that makes certificates and hands them out.
struct Domain {
    name: &'static str,
    ca: Ca,
    sockets: PathBuf,
    shutdown: Shutdown,
}

impl Domain {
    async fn start(home: &Path, name: &'static str) -> Self {
        let home = home.join(name);
        let config =
            alcazar_ca::Config { trust_domain: name.parse().unwrap(), ..alcazar_ca::Config::new(home.join("ca")) };
        let ca = Ca::open(config, clock::system()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        let running = ca.run(listener, shutdown.clone(), readiness.clone());
        shutdown.spawn("ca", async move { running.await.unwrap() });
        readiness.wait().await;
        let node: SpiffeId = format!("spiffe://{name}/node/local/one").parse().unwrap();
        let (token, _) = ca.create_join_token(&node, None).await.unwrap();
        let config = alcazar_node_agent::Config {
            trust_domain: name.parse().unwrap(),
            cluster: "local".into(),
            node: "one".into(),
            ca_address: address.to_string(),
            join_token: Some(token.reveal().to_string()),
            join_token_file: None,
            attest: alcazar_node_agent::AttestConfig::default(),
            seal: None,
            data_dir: home.join("agent"),
            kubernetes: None,
            sockets_dir: home.join("sockets"),
            admin: None,
            files: Vec::new(),
            narrow: None,
            crls: alcazar_node_agent::CrlsConfig::Auto,
        };
        let sockets = config.sockets_dir.clone();
        let agent = Agent::open(config, clock::system()).await.unwrap();
        let end = shutdown.clone();
        shutdown.spawn("agent", async move { agent.run(end, Readiness::new()).await.unwrap() });
        Self { name, ca, sockets, shutdown }
    }

    fn id(&self, account: &str) -> SpiffeId {
        format!("spiffe://{}/ns/shop/sa/{account}", self.name).parse().unwrap()
    }

    async fn register(&self, account: &str, life: Duration) {
        let node = format!("spiffe://{}/node/local/one", self.name).parse().unwrap();
        let selector = format!("socket:shop.{account}").parse().unwrap();
        let name = format!("shop.{account}").parse().unwrap();
        let registration = Registration::new(name, node, self.id(account), [selector], Some(life)).unwrap();
        self.ca.put_registration(registration).await.unwrap();
    }

    /// What a proxy of this workload holds, live.
    async fn credentials(&self, account: &str) -> watch::Receiver<Arc<Credentials>> {
        self.register(account, Duration::from_secs(3600)).await;
        let socket = self.sockets.join(format!("shop.{account}.sock"));
        let connecting = sds::connect(socket, clock::system());
        let (credentials, driver) = tokio::time::timeout(DEADLINE, connecting).await.unwrap();
        self.shutdown.spawn("sds", driver);
        credentials
    }

    async fn operator(&self) -> Channel {
        let socket = format!("unix:{}", self.ca.admin_socket().display());
        tonic::transport::Endpoint::from_shared(socket).unwrap().connect().await.unwrap()
    }

    /// Takes over the other's bundle as it is now, as its bundle endpoint or an operator brings it.
    async fn believe(&self, other: &Self) {
        let bundle = write_bundle(&other.ca.own_bundle().unwrap()).unwrap();
        let request = SetForeignBundleRequest { trust_domain: other.name.into(), bundle: bundle.into() };
        BundlesClient::new(self.operator().await).set_foreign_bundle(request).await.unwrap();
    }
}

impl Drop for Domain {
    /// Also when the test fails: a data plane has threads that the runtime would wait for.
    fn drop(&mut self) {
        self.shutdown.trigger("the test is over");
    }
}

/// What a proxy says for a peer that is refused, or that refuses.
const NO_ANSWER: [u16; 2] = [502, 503];

/// Waits for credentials of which this holds.
async fn until(
    credentials: &watch::Receiver<Arc<Credentials>>,
    what: &str,
    holds: impl FnMut(&Arc<Credentials>) -> bool,
) {
    let mut credentials = credentials.clone();
    let waited = tokio::time::timeout(DEADLINE, credentials.wait_for(holds)).await;
    assert!(waited.is_ok_and(|found| found.is_ok()), "{what}");
}

/// A proxy; where it is reached by other proxies, and by its application.
fn proxy(
    domain: &Domain,
    credentials: watch::Receiver<Arc<Credentials>>,
    outbound: bool,
    snapshot: impl FnOnce(SocketAddr) -> Snapshot,
) -> (SocketAddr, Option<SocketAddr>) {
    let any = "127.0.0.1:0".parse().unwrap();
    let plane = DataPlane::bind(1, any, outbound.then_some(any), &[], Duration::from_secs(5)).unwrap();
    let addresses = plane.addresses().clone();
    let (_, snapshots) = watch::channel(Arc::new(snapshot(addresses.inbound)));
    let (sources, end) = (Sources { credentials, snapshots, clock: clock::system() }, domain.shutdown.clone());
    domain.shutdown.spawn("proxy", async move { plane.run(sources, None, end).await.unwrap() });
    (addresses.inbound, addresses.outbound)
}

fn workload(id: &SpiffeId, ports: &[v1::WorkloadPort], services: &[v1::LocalService]) -> v1::Workload {
    v1::Workload {
        name: id.service_account().unwrap().to_owned(),
        namespace: "shop".into(),
        service_account: id.service_account().unwrap().to_owned(),
        spiffe_id: id.to_string(),
        address: "127.0.0.1".into(),
        ports: ports.to_vec(),
        services: services.to_vec(),
        ..v1::Workload::default()
    }
}

fn snapshot(workload: v1::Workload, policy: WorkloadPolicy, services: &[v1::Service]) -> Snapshot {
    let services: Vec<Arc<Service>> =
        services.iter().map(|service| Arc::new(Service::try_from(service.clone()).unwrap())).collect();
    let workload = Workload::try_from(workload).unwrap();
    let services = Arc::new(Directory::new(&services, workload.namespace()));
    Snapshot { workload: Arc::new(workload), policy: Arc::new(Compiled::new(policy)), services }
}

/// Lets this one in, and whoever is of our own namespace `shop`.
fn policy(caller: &SpiffeId) -> WorkloadPolicy {
    let subject = |index, field: &str, attribute, value: &str| {
        let values = vec![Matcher::Exact(value.to_owned())];
        Subject { index, clauses: vec![Clause { field: field.to_owned(), attribute, negated: false, values }] }
    };
    let subjects = vec![
        subject(0, "user", Attribute::SourcePrincipal, caller.principal()),
        subject(1, "properties[source.namespace]", Attribute::SourceNamespace, "shop"),
    ];
    let binding = Binding { namespace: "shop".into(), name: "callers".into(), shadow: false, subjects };
    let rules = vec![Rule { index: 0, clauses: Vec::new() }];
    let role = Role { namespace: "shop".into(), name: "caller".into(), rules, bindings: vec![binding] };
    WorkloadPolicy { activation: Activation::On, roles: vec![role] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_federated_meshes_call_each_other() {
    let _turn = turn();
    alcazar_mtls::install_default_provider();
    let home = tempfile::tempdir().unwrap();
    let (one, two) = (Domain::start(home.path(), "one.example").await, Domain::start(home.path(), "two.example").await);
    let origin = HttpOrigin::start("reviews").unwrap();

    // Reviews are two's; the callers are one's.
    let (caller, other) = (one.credentials("caller").await, one.credentials("other").await);
    let reviews = two.credentials("reviews").await;
    let port = u32::from(origin.port());
    let service_port =
        v1::ServicePort { name: "http".into(), number: port, target_port: port, protocol: v1::Protocol::Http.into() };
    let hosts = vec!["reviews.two".to_owned()];
    let local = v1::LocalService { hosts: hosts.clone(), ports: vec![service_port.clone()] };
    let workload_port = v1::WorkloadPort { name: "http".into(), number: port, protocol: v1::Protocol::Http.into() };
    let (mesh, _) = proxy(&two, reviews.clone(), false, |_| {
        let policy = policy(&one.id("caller"));
        snapshot(workload(&two.id("reviews"), &[workload_port], &[local]), policy, &[])
    });
    let service = v1::Service {
        name: "reviews".into(),
        namespace: "two".into(),
        hosts,
        ports: vec![service_port],
        endpoints: vec![v1::Endpoint {
            workload: "shop/reviews".into(),
            mesh_address: mesh.to_string(),
            address: "127.0.0.1".into(),
            spiffe_id: two.id("reviews").to_string(),
            ports: vec![port],
        }],
    };
    let outbound = |account: &str, credentials: &watch::Receiver<Arc<Credentials>>| {
        let snapshot =
            snapshot(workload(&one.id(account), &[], &[]), WorkloadPolicy::deny_all(), std::slice::from_ref(&service));
        proxy(&one, credentials.clone(), true, |_| snapshot).1.unwrap().to_string()
    };
    let (caller_proxy, other_proxy) = (outbound("caller", &caller), outbound("other", &other));
    let url = format!("http://reviews.two:{port}/");
    let ask = async |proxy: &str| {
        let (proxy, url) = (proxy.to_owned(), url.clone());
        tokio::task::spawn_blocking(move || curl(&proxy, &url).unwrap().code).await.unwrap()
    };
    let eventually = async |what: &str, proxy: &str, expected: &[u16]| {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let mut code = ask(proxy).await;
        while !expected.contains(&code) {
            assert!(tokio::time::Instant::now() < deadline, "{what}: {code}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            code = ask(proxy).await;
        }
    };

    // Strangers, until each believes the other: no answer comes.
    assert!(NO_ANSWER.contains(&ask(&caller_proxy).await));
    one.believe(&two).await;
    two.believe(&one).await;
    let knows = |domain: &Domain| {
        let (domain, root) = (domain.name.parse().unwrap(), domain.ca.fingerprints().root.certificate);
        move |now: &Arc<Credentials>| {
            now.bundles().get(&domain).is_some_and(|bundle| bundle.roots().any(|known| *known == root))
        }
    };
    for credentials in [&caller, &other] {
        until(credentials, "the bundle of two", knows(&two)).await;
    }
    until(&reviews, "the bundle of one", knows(&one)).await;
    eventually("a call over the border", &caller_proxy, &[200]).await;
    // A namespace in a policy is one of the own trust domain, however the other names its own.
    assert_eq!(ask(&other_proxy).await, 403);

    // One takes somebody back. Somebody has its key, and does not hear of it: two, which is told by hand, believes it no more.
    let (_stolen, held) = watch::channel(one.credentials("gone").await.borrow().clone());
    let thief = outbound("gone", &held);
    eventually("a call by a stolen key", &thief, &[403]).await;
    let mut operator = RevocationAdministrationClient::new(one.operator().await);
    let subject = Some(revoke_request::Subject::SpiffeId(one.id("gone").to_string()));
    let request = RevokeRequest { subject, reason: RevocationReason::KeyCompromise.code().into(), force: false };
    operator.revoke(request).await.unwrap();
    assert_eq!(ask(&thief).await, 403, "two has not heard of it");
    let lists = operator.export_revocations(ExportRevocationsRequest {}).await.unwrap().into_inner();
    let mut operator = RevocationAdministrationClient::new(two.operator().await);
    let taken = operator.import_revocations(lists).await.unwrap().into_inner().taken;
    assert_eq!(taken, ["cluster:local of one.example"]);
    until(&reviews, "one's list of revocations", |now| {
        now.revocations().lists().any(|list| list.identity(&one.id("gone")).is_some())
    })
    .await;
    eventually("a call of one that was taken back", &thief, &NO_ANSWER).await;
    // Its neighbours are who they were.
    assert_eq!((ask(&caller_proxy).await, ask(&other_proxy).await), (200, 403));

    // Two rotates its root: the new one is told, signs, and the old one goes.
    let old = two.ca.fingerprints().root.fingerprint;
    let new = two.ca.make_root().await.unwrap();
    two.ca.set_trusted_roots(&[old, new.fingerprint]).await.unwrap();
    one.believe(&two).await;
    let certificate = new.certificate.clone();
    until(&caller, "two's next root", |now| {
        let bundle = now.bundles().get(&"two.example".parse().unwrap());
        bundle.is_some_and(|bundle| bundle.roots().any(|root| *root == certificate))
    })
    .await;
    let intermediate = two.ca.make_intermediate(new.fingerprint).await.unwrap().fingerprint;
    two.ca.activate(intermediate).await.unwrap();
    // Another life is asked for, so the agent asks at once.
    two.register("reviews", Duration::from_secs(1800)).await;
    until(&reviews, "a certificate under two's next root", |now| {
        now.svid().chain().get(1).is_some_and(|above| Fingerprint::of(above) == intermediate)
    })
    .await;
    assert_eq!(ask(&caller_proxy).await, 200);
    two.ca.set_trusted_roots(&[new.fingerprint]).await.unwrap();
    one.believe(&two).await;
    until(&caller, "two's new root alone", |now| {
        let bundle = now.bundles().get(&"two.example".parse().unwrap());
        bundle.is_some_and(|bundle| bundle.roots().eq([&certificate]))
    })
    .await;
    eventually("a call after the rotation", &caller_proxy, &[200]).await;
    assert_eq!(ask(&other_proxy).await, 403);
}
