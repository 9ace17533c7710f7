//! What a mesh file means, once it is right.

use std::time::Duration;

use alcazar_control::{AddressBook, Addresses, Protocol, World};
use alcazar_yaml::{SourceFile, Style, render_all};
use proptest::prelude::*;

fn build(text: &str) -> World {
    build_with(text, &mut AddressBook::default())
}

fn build_with(text: &str, book: &mut AddressBook) -> World {
    let addresses = Addresses::Chosen { book, is_free: &|_| true };
    World::build(&SourceFile::new("mesh.yaml", text), &[], addresses).unwrap_or_else(|errors| panic!("{errors}"))
}

const EXAMPLE: &str = r#"
trustDomain: cluster.local        # default
cluster: east                     # default: local
policies: ./policies              # folder or file, watched; Istio YAML, many documents a file
certificates: {ttl: 1h}           # optional
workloads:
- name: reviews-v1
  namespace: shop
  serviceAccount: reviews
  labels: {app: reviews, version: v1}
  address: 127.0.0.1              # already running there, or:  command: [python3, -m, http.server, "9080"]
  ports:
  - {name: http, number: 9080, protocol: HTTP}
  - {name: db, number: 5432, protocol: TCP}
  outbound: 127.0.0.1:15101       # optional; chosen and remembered otherwise; `inbound` likewise
services:                         # optional; default: one per `app` label (else per name), ports as the workloads have them
- name: reviews
  namespace: shop
  selector: {app: reviews}
  ports: [{name: http, port: 80, targetPort: 9080, protocol: HTTP}]
"#;

#[test]
fn the_example_is_understood() {
    let world = build(EXAMPLE);
    assert_eq!((world.trust_domain.as_str(), world.cluster.as_str()), ("cluster.local", "east"));
    assert_eq!(world.ttl, Some(Duration::from_secs(3600)));
    let workload = world.workload("shop", "reviews-v1").unwrap();
    assert_eq!(workload.spiffe_id.as_str(), "spiffe://cluster.local/ns/shop/sa/reviews");
    assert_eq!((workload.key().as_str(), workload.socket_name().as_str()), ("shop/reviews-v1", "shop.reviews-v1"));
    assert_eq!(workload.outbound, Some("127.0.0.1:15101".parse().unwrap()));
    // 15101 is taken by what is stated, and is not of the inbound range anyway.
    assert_eq!(workload.inbound, "127.0.0.1:17001".parse().unwrap());
    let service = world.service("shop", "reviews").unwrap();
    assert_eq!(service.hosts(), ["reviews.shop", "reviews.shop.svc", "reviews.shop.svc.cluster.local"]);
    assert_eq!((service.ports[0].number, service.ports[0].target), (80, 9080));
    assert_eq!(
        (service.endpoints[0].workload.as_str(), &service.endpoints[0].ports[..]),
        ("shop/reviews-v1", &[80][..])
    );
    assert!(world.warnings.is_empty(), "{}", world.warnings);
}

#[test]
fn defaults_are_as_documented() {
    let world = build(
        "workloads:\n- {name: a, namespace: n, serviceAccount: s, command: [x]}\n- {name: b, namespace: n, serviceAccount: s, address: localhost}\n",
    );
    assert_eq!((world.trust_domain.as_str(), world.cluster.as_str(), world.ttl), ("cluster.local", "local", None));
    assert_eq!(world.workload("n", "b").unwrap().address, "127.0.0.1".parse::<std::net::IpAddr>().unwrap());
    assert_eq!(world.workload("n", "a").unwrap().command.as_deref(), Some(&["x".to_owned()][..]));
    // What has no port cannot be called, and has no service.
    assert!(world.services.is_empty());
    assert!(build("workloads: []\n").workloads.is_empty());
}

#[test]
fn without_services_there_is_one_for_each_app_label_or_name() {
    let workload = |name: &str, labels: &str, address: &str, ports: &str| {
        format!(
            "- {{name: {name}, namespace: shop, serviceAccount: s, labels: {{{labels}}}, address: {address}, ports: [{ports}]}}\n"
        )
    };
    let http = "{name: http, number: 9080, protocol: HTTP}";
    let db = "{name: db, number: 5432, protocol: TCP}";
    let text = [
        "workloads:\n".to_owned(),
        workload("reviews-v1", "app: reviews", "10.0.0.1", http),
        workload("reviews-v2", "app: reviews", "10.0.0.2", &format!("{http}, {db}")),
        workload("lonely", "", "10.0.0.3", db),
    ]
    .concat();
    let world = build(&text);
    let shown: Vec<String> = world
        .services
        .iter()
        .map(|service| {
            let ports: Vec<_> =
                service.ports.iter().map(|p| format!("{}:{}:{}", p.name, p.number, p.protocol)).collect();
            let ends: Vec<_> = service.endpoints.iter().map(|e| format!("{}{:?}", e.workload, e.ports)).collect();
            format!("{} {} -> {}", service.key(), ports.join(","), ends.join(","))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "shop/lonely db:5432:TCP -> shop/lonely[5432]",
            "shop/reviews db:5432:TCP,http:9080:HTTP -> shop/reviews-v1[9080],shop/reviews-v2[9080, 5432]",
        ]
    );
}

#[test]
fn a_selector_looks_only_into_its_own_namespace() {
    let text = "workloads:\n\
        - {name: a, namespace: one, serviceAccount: s, labels: {app: a}, address: 10.0.0.1, ports: [{name: p, number: 80, protocol: HTTP}]}\n\
        - {name: a, namespace: two, serviceAccount: s, labels: {app: a}, address: 10.0.0.2, ports: [{name: p, number: 80, protocol: HTTP}]}\n\
        services:\n- {name: a, namespace: one, selector: {app: a}, ports: [{name: p, port: 80, protocol: HTTP}]}\n";
    let world = build(text);
    let ends: Vec<&str> = world.services[0].endpoints.iter().map(|endpoint| endpoint.workload.as_str()).collect();
    assert_eq!(ends, ["one/a"]);
}

#[test]
fn a_forward_leads_to_a_tcp_service_by_any_of_its_names() {
    for to in ["db:5432", "db.shop:5432", "db.shop.svc:5432", "db.shop.svc.cluster.local:5432"] {
        let text = format!(
            "workloads:\n\
             - {{name: db, namespace: shop, serviceAccount: db, address: 10.0.0.1, ports: [{{name: db, number: 5432, protocol: TCP}}]}}\n\
             - {{name: api, namespace: shop, serviceAccount: api, address: 10.0.0.2, forwards: [{{listen: 127.0.0.1:15432, to: {to}}}]}}\n"
        );
        let world = build(&text);
        let forward = &world.workload("shop", "api").unwrap().forwards[0];
        assert_eq!((forward.host.as_str(), forward.port), ("db.shop", 5432), "{to}");
    }
}

#[test]
fn the_same_loopback_port_on_two_machines_is_no_conflict() {
    let workload = |name: &str, inbound: &str| {
        format!(
            "- {{name: {name}, namespace: n, serviceAccount: s, address: 127.0.0.1, inbound: '{inbound}', outbound: 127.0.0.1:15101, ports: [{{name: p, number: 80, protocol: HTTP}}]}}\n"
        )
    };
    let two_machines = format!("workloads:\n{}{}", workload("a", "10.0.0.1:15008"), workload("b", "10.0.0.2:15008"));
    assert_eq!(build(&two_machines).workloads.len(), 2);
    let one_machine = two_machines.replace("10.0.0.2:15008", "10.0.0.1:15009");
    let file = SourceFile::new("mesh.yaml", one_machine);
    assert_eq!(World::build(&file, &[], Addresses::Stated).unwrap_err().len(), 2);
}

#[test]
fn chosen_addresses_are_the_same_the_next_time() {
    let workload = |name: &str| format!("- {{name: {name}, namespace: n, serviceAccount: s, command: [x]}}\n");
    let mut book = AddressBook::default();
    let text = format!("workloads:\n{}{}", workload("a"), workload("b"));
    let first = build_with(&text, &mut book);
    let mut again = AddressBook::from_json(&book.to_json()).unwrap();
    let text = format!("workloads:\n{}{}{}", workload("c"), workload("b"), workload("a"));
    let second = build_with(&text, &mut again);
    for name in ["a", "b"] {
        assert_eq!(first.workload("n", name), second.workload("n", name));
    }
    let all: std::collections::BTreeSet<_> =
        second.workloads.iter().flat_map(|workload| [Some(workload.inbound), workload.outbound]).collect();
    assert_eq!(all.len(), 6);
}

#[test]
fn protocols_print_as_they_are_written() {
    assert_eq!([Protocol::Http, Protocol::Tcp].map(|protocol| protocol.to_string()), ["HTTP", "TCP"]);
}

proptest! {
    #[test]
    fn any_edit_of_the_example_is_understood_or_shown(
        edits in prop::collection::vec((0..EXAMPLE.len(), 0..30_usize, "[a-z0-9:{}\\[\\], \n-]{0,6}"), 1..4),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, length, new) in edits {
            let at = at.min(text.len());
            text.replace_range(at..(at + length).min(text.len()), &new);
        }
        let file = SourceFile::new("mesh.yaml", text);
        if let Err(errors) = World::build(&file, &[], Addresses::Stated) {
            prop_assert!(!errors.is_empty());
            prop_assert!(render_all(&errors, Style::Plain).contains("mesh.yaml"));
        }
    }
}

#[test]
fn the_sample_is_right() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/shop");
    let mesh = alcazar_control::read(&folder.join("mesh.yaml")).unwrap();
    let policies = alcazar_control::read_policies(&folder.join("policies")).unwrap();
    let addresses = Addresses::Chosen { book: &mut AddressBook::default(), is_free: &|_| true };
    let world = World::build(&mesh, &policies, addresses).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(world.warnings.is_empty(), "{}", world.warnings);
    assert_eq!(world.workloads.len(), world.services.len());
}
