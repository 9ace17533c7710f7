//! The control plane as proxies see it: files on disk, delta ADS over mutual TLS.

use std::fs;
use std::time::Duration;

use alcazar_api::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use alcazar_api::envoy::unpack;
use alcazar_api::mesh::{POLICY_URL, SERVICE_URL, WORKLOAD_URL, v1};
use alcazar_control::{Control, Kind, LoadError};
use alcazar_policy::{Activation, WorkloadPolicy};
use tonic::Code;

use crate::support::{Authority, Client, Mesh, Stopwatch, config, log, node, shown, soon, subscription};

const MESH: &str = "\
policies: ./policies
workloads:
- {name: reviews-v1, namespace: shop, serviceAccount: reviews, labels: {app: reviews}, address: 127.0.0.1, ports: [{name: http, number: 9080, protocol: HTTP}]}
- {name: reviews-v2, namespace: shop, serviceAccount: reviews, labels: {app: reviews}, address: 127.0.0.2, ports: [{name: http, number: 9080, protocol: HTTP}]}
- {name: payments, namespace: shop, serviceAccount: payments, labels: {app: payments}, address: 127.0.0.1, ports: [{name: http, number: 9090, protocol: HTTP}]}
services:
- {name: reviews, namespace: shop, selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080, protocol: HTTP}]}
- {name: payments, namespace: shop, selector: {app: payments}, ports: [{name: http, port: 80, targetPort: 9090, protocol: HTTP}]}
";
const ON: &str =
    "apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\nmetadata: {name: default}\nspec: {mode: 'ON'}\n";
const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
const PAYMENTS: &str = "spiffe://cluster.local/ns/shop/sa/payments";

/// RBAC on, and `GET` of the reviews for everybody who has an identity.
fn granting(method: &str) -> String {
    format!(
        "{ON}---\napiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRole\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{rules: [{{services: [reviews.shop.svc.cluster.local], methods: [{method}]}}]}}\n\
         ---\napiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRoleBinding\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{subjects: [{{user: allAuthenticatedUsers}}], roleRef: {{kind: ServiceRole, name: r}}}}\n"
    )
}

/// What a proxy subscribes to, taken and acknowledged.
async fn proxy(mesh: &Mesh, id: &str, key: &str) -> Client {
    let mut client = mesh.client(id).await;
    for (url, name) in [(WORKLOAD_URL, key), (POLICY_URL, key), (SERVICE_URL, "*")] {
        let mut request = subscription(url, &[name]);
        request.node = node(key);
        client.send(request).await;
    }
    for _ in 0..3 {
        client.take().await;
    }
    client
}

#[tokio::test]
async fn a_proxy_gets_its_workload_its_policy_and_all_services() {
    let mesh = Mesh::start(MESH, ON).await;
    let mut client = mesh.client(REVIEWS).await;
    client.subscribe(WORKLOAD_URL, &["shop/reviews-v1"]).await;
    let response = client.next().await.unwrap();
    let workload: v1::Workload = unpack(WORKLOAD_URL, response.resources[0].resource.as_ref().unwrap()).unwrap();
    assert_eq!((workload.spiffe_id.as_str(), workload.address.as_str()), (REVIEWS, "127.0.0.1"));
    assert_eq!(
        workload.services[0].hosts,
        ["reviews", "reviews.shop", "reviews.shop.svc", "reviews.shop.svc.cluster.local"]
    );
    assert_eq!((workload.services[0].ports[0].number, workload.services[0].ports[0].target_port), (80, 9080));
    client.answer(&response, None).await;

    client.subscribe(POLICY_URL, &["shop/reviews-v1"]).await;
    let response = client.next().await.unwrap();
    let policy: v1::Policy = unpack(POLICY_URL, response.resources[0].resource.as_ref().unwrap()).unwrap();
    assert_eq!(WorkloadPolicy::from(policy), WorkloadPolicy { activation: Activation::On, roles: vec![] });
    client.answer(&response, None).await;

    client.subscribe(SERVICE_URL, &["*"]).await;
    let response = client.next().await.unwrap();
    assert_eq!(shown(&response), "Service +shop/payments +shop/reviews");
    let service: v1::Service = unpack(SERVICE_URL, response.resources[1].resource.as_ref().unwrap()).unwrap();
    let world = mesh.world.borrow().clone();
    let inbound = |name: &str| world.workload("shop", name).unwrap().inbound.to_string();
    let ends: Vec<_> = service.endpoints.iter().map(|end| (end.mesh_address.clone(), end.spiffe_id.clone())).collect();
    assert_eq!(ends, [(inbound("reviews-v1"), REVIEWS.to_owned()), (inbound("reviews-v2"), REVIEWS.to_owned())]);
    mesh.stop().await;
}

#[tokio::test]
async fn a_policy_edit_arrives_at_once_and_touches_nobody_else() {
    let mut mesh = Mesh::start(MESH, &granting("GET")).await;
    let mut reviews = proxy(&mesh, REVIEWS, "shop/reviews-v1").await;
    let mut payments = proxy(&mesh, PAYMENTS, "shop/payments").await;
    let all = ["shop/reviews-v1", "shop/payments"];
    mesh.status_becomes("all is taken", |status| all.iter().all(|node| status.is_up_to_date(node))).await;

    let stopwatch = Stopwatch::start();
    mesh.save("policies/rbac.yaml", &granting("POST"));
    let response = reviews.next().await.unwrap();
    let took = stopwatch.read();
    assert_eq!(shown(&response), "Policy +shop/reviews-v1");
    // Files are looked at every two seconds anyway: this came by itself.
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    println!("a policy edit reached the proxy after {took:?}");
    assert!(!mesh.status.borrow().is_up_to_date("shop/reviews-v1"), "before it is acknowledged");
    reviews.answer(&response, None).await;
    let status = mesh
        .status_becomes("both have taken the edit", |status| {
            status.generation == 2 && all.iter().all(|node| status.is_up_to_date(node))
        })
        .await;
    assert_eq!(status.proxy("shop/payments").unwrap().given[&Kind::Service], 2);

    // The next thing that payments hears is what comes now.
    mesh.save("mesh.yaml", &MESH.replace("port: 80, targetPort: 9080", "port: 81, targetPort: 9080"));
    assert_eq!(payments.take().await, "Service +shop/reviews");
    // The order of kinds is that of pushing.
    assert_eq!(reviews.take().await, "Workload +shop/reviews-v1");
    assert_eq!(reviews.take().await, "Service +shop/reviews");
    mesh.stop().await;
}

#[tokio::test]
async fn a_bad_edit_changes_nothing_and_the_next_good_one_does() {
    let mut log = log();
    let mut mesh = Mesh::start(MESH, ON).await;
    let mut client = proxy(&mesh, REVIEWS, "shop/reviews-v1").await;
    mesh.world.mark_unchanged();
    for (file, text, complaint) in [
        ("policies/rbac.yaml", ON.replace("kind:", "kid:"), "policies/rbac.yaml:"),
        ("mesh.yaml", MESH.replace("protocol: HTTP", "protocol: GRPC"), "`GRPC` is not a protocol"),
        // The policies are still wrong, and all that is wrong is said.
        ("mesh.yaml", MESH.replace("9080", "0"), "`0` is not a port number"),
        ("mesh.yaml", String::new(), "the mesh file is empty"),
        ("mesh.yaml", format!("trustDomain: elsewhere\n{MESH}"), "policies/rbac.yaml:"),
        ("policies/rbac.yaml", ON.to_owned(), "cannot change from `cluster.local` to `elsewhere`"),
    ] {
        let seen = log.borrow_and_update().len();
        mesh.save(file, &text);
        let folder = mesh.folder.path().display().to_string();
        let is_it =
            |entry: &String| entry.contains("refused an edit") && entry.contains(&folder) && entry.contains(complaint);
        soon(complaint, log.wait_for(|log| log.iter().skip(seen).any(is_it))).await.unwrap();
    }
    assert!(!mesh.world.has_changed().unwrap());
    mesh.save("mesh.yaml", MESH);
    mesh.save("policies/rbac.yaml", &granting("GET"));
    assert_eq!(client.take().await, "Policy +shop/reviews-v1");
    let status = mesh.status_becomes("it is taken", |status| status.is_up_to_date("shop/reviews-v1")).await;
    assert!(status.generation >= 2);
    mesh.stop().await;
}

#[tokio::test]
async fn a_workload_that_comes_and_goes_is_told_so() {
    let mesh = Mesh::start(MESH, ON).await;
    let mut client = mesh.client("spiffe://cluster.local/ns/shop/sa/late").await;
    client.subscribe(WORKLOAD_URL, &["shop/late"]).await;
    assert_eq!(client.take().await, "Workload -shop/late");
    let late = "- {name: late, namespace: shop, serviceAccount: late, address: 10.0.0.9}\nservices:";
    mesh.save("mesh.yaml", &MESH.replace("services:", late));
    assert_eq!(client.take().await, "Workload +shop/late");
    // The name goes to another identity: that is not for this client.
    mesh.save("mesh.yaml", &MESH.replace("services:", &late.replace("serviceAccount: late", "serviceAccount: other")));
    assert_eq!(client.take().await, "Workload -shop/late");
    mesh.stop().await;
}

#[tokio::test]
async fn nobody_gets_what_is_another_s() {
    let mesh = Mesh::start(MESH, ON).await;
    let cases = [
        ("another's policy", POLICY_URL, "shop/reviews-v1", "", Code::PermissionDenied),
        ("another's workload", WORKLOAD_URL, "shop/reviews-v1", "", Code::PermissionDenied),
        ("another's node", SERVICE_URL, "*", "shop/reviews-v1", Code::PermissionDenied),
        ("another kind", "type.googleapis.com/envoy.config.cluster.v3.Cluster", "*", "", Code::InvalidArgument),
    ];
    for (what, url, name, claimed, code) in cases {
        let mut client = mesh.client(PAYMENTS).await;
        let mut request = subscription(url, &[name]);
        request.node = node(claimed);
        client.send(request).await;
        assert_eq!(client.next().await.unwrap_err().code(), code, "{what}");
    }
    // Everything is everything of one's own; an account may have several workloads.
    let mut client = mesh.client(REVIEWS).await;
    client.subscribe(POLICY_URL, &["*"]).await;
    assert_eq!(client.take().await, "Policy +shop/reviews-v1 +shop/reviews-v2");
    // An identity without a workload has none.
    let mut client = mesh.client("spiffe://cluster.local/node/local/vm-1").await;
    client.subscribe(WORKLOAD_URL, &["*"]).await;
    assert_eq!(client.take().await, "Workload");
    mesh.stop().await;
}

#[tokio::test]
async fn strangers_are_not_served() {
    let mesh = Mesh::start(MESH, ON).await;
    let stranger = Authority::new().credentials(REVIEWS);
    assert!(Client::connect(mesh.address, stranger).await.is_err());
    // Known by our root, of another trust domain: the root does not vouch for that one.
    let foreign = mesh.authority.credentials("spiffe://elsewhere/ns/shop/sa/reviews");
    assert!(Client::connect(mesh.address, foreign).await.is_err());
    let channel = Client::channel(mesh.address, mesh.authority.credentials(REVIEWS));
    let whole_state =
        AggregatedDiscoveryServiceClient::new(channel).stream_aggregated_resources(tokio_stream::empty()).await;
    assert_eq!(whole_state.unwrap_err().code(), Code::Unimplemented);
    mesh.stop().await;
}

#[tokio::test]
async fn a_refusal_is_shown_until_it_is_mended() {
    let mut mesh = Mesh::start(MESH, ON).await;
    let mut client = mesh.client(REVIEWS).await;
    let mut request = subscription(SERVICE_URL, &["*"]);
    request.node = node("shop/reviews-v1");
    client.send(request).await;
    let response = client.next().await.unwrap();
    client.answer(&response, Some("shop/payments: I do not like it")).await;
    // One by one now.
    let response = client.next().await.unwrap();
    assert_eq!(shown(&response), "Service +shop/payments");
    client.answer(&response, Some("I do not like it")).await;
    assert_eq!(client.take().await, "Service +shop/reviews");
    let node = "shop/reviews-v1";
    let is_refused = |status: &std::sync::Arc<alcazar_control::Status>| {
        status.proxy(node).is_some_and(|proxy| proxy.answered == 1 && !proxy.refused.is_empty())
    };
    let status = mesh.status_becomes("the refusal shows", is_refused).await;
    let refused = &status.proxy(node).unwrap().refused;
    assert_eq!(
        refused.iter().map(|r| (r.kind, r.name.as_str(), r.reason.as_str())).collect::<Vec<_>>(),
        [(Kind::Service, "shop/payments", "I do not like it")]
    );
    assert!(!status.is_up_to_date(node));
    mesh.save("mesh.yaml", &MESH.replace("port: 80, targetPort: 9090", "port: 81, targetPort: 9090"));
    assert_eq!(client.take().await, "Service +shop/payments");
    mesh.status_becomes("it is mended", |status| status.is_up_to_date(node)).await;
    // Who goes is forgotten.
    drop(client);
    mesh.status_becomes("the client is gone", |status| status.proxies.is_empty()).await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_client_that_comes_back_is_sent_what_it_missed() {
    let mesh = Mesh::start(MESH, ON).await;
    let mut client = mesh.client(REVIEWS).await;
    client.subscribe(SERVICE_URL, &["*"]).await;
    let held = client.next().await.unwrap();
    drop(client);
    let come_back = || {
        let versions = held.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone()));
        let mut request = subscription(SERVICE_URL, &["*"]);
        request.initial_resource_versions = versions.collect();
        request
    };
    let mut client = mesh.client(REVIEWS).await;
    client.send(come_back()).await;
    assert_eq!(client.take().await, "Service");
    drop(client);
    let mut world = mesh.world.clone();
    world.mark_unchanged();
    mesh.save("mesh.yaml", &MESH.replace("port: 80, targetPort: 9080", "port: 81, targetPort: 9080"));
    soon("the edit", world.changed()).await.unwrap();
    let mut client = mesh.client(REVIEWS).await;
    client.send(come_back()).await;
    assert_eq!(client.take().await, "Service +shop/reviews");
    mesh.stop().await;
}

#[tokio::test]
async fn policies_may_move_to_another_folder() {
    let mesh = Mesh::start(MESH, ON).await;
    let mut client = proxy(&mesh, REVIEWS, "shop/reviews-v1").await;
    fs::create_dir(mesh.path("elsewhere")).unwrap();
    fs::write(mesh.path("elsewhere/rbac.yaml"), granting("GET")).unwrap();
    mesh.save("mesh.yaml", &MESH.replace("./policies", "./elsewhere"));
    assert_eq!(client.take().await, "Policy +shop/reviews-v1");
    mesh.save("elsewhere/rbac.yaml", &granting("POST"));
    assert_eq!(client.take().await, "Policy +shop/reviews-v1");
    mesh.stop().await;
}

#[tokio::test]
async fn what_was_chosen_is_the_same_after_a_restart() {
    let mesh = Mesh::start(MESH, ON).await;
    let before = mesh.world.borrow().clone();
    let again = Control::open(config(mesh.folder.path())).unwrap().world().borrow().clone();
    assert_eq!(before.workloads, again.workloads);
    mesh.stop().await;
}

#[test]
fn files_that_are_wrong_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let at = |file: &str| folder.path().join(file);
    let open = || Control::open(config(folder.path())).err().unwrap();
    assert!(matches!(open(), LoadError::Mesh(_)));
    fs::write(at("mesh.yaml"), MESH).unwrap();
    let LoadError::Refused(errors) = open() else { panic!("the policies are not there") };
    assert!(errors.to_string().contains("mesh.yaml:1:11: the policies cannot be read"), "{errors}");
    fs::create_dir(at("policies")).unwrap();
    fs::write(at("policies/rbac.yaml"), "kind: [").unwrap();
    fs::write(at("mesh.yaml"), MESH.replace("HTTP", "http")).unwrap();
    let LoadError::Refused(errors) = open() else { panic!("both are wrong") };
    assert_eq!(errors.len(), 6, "{errors}");
    fs::write(at("addresses.json"), "{").unwrap();
    assert!(matches!(open(), LoadError::Addresses(_)));
}
