//! What a person sees who makes a mistake in `mesh.yaml`: the whole table, as one snapshot.

use std::fmt::Write;

use alcazar_control::{Addresses, World};
use alcazar_yaml::{SourceFile, Style, render_all};

/// A workload that is right but for what is put in.
fn workload(name: &str, extra: &str) -> String {
    format!(
        "- name: {name}\n  namespace: shop\n  serviceAccount: {name}\n  labels: {{app: {name}}}\n  inbound: 127.0.0.1:{port}\n{extra}",
        port = 20000 + name.len(),
    )
}

const PORT: &str = "  address: 127.0.0.1\n  ports: [{name: http, number: 9080, protocol: HTTP}]\n";

#[test]
fn every_mistake_is_shown_with_its_place() {
    let mesh = |rest: &str| format!("policies: ./policies\nworkloads:\n{rest}");
    let one = |extra: &str| mesh(&workload("reviews", extra));
    let with_services = |services: &str| format!("{}services:\n{services}", one(PORT));
    let top = |field: &str| format!("{field}\n{}", one(PORT));
    let cases: Vec<(&str, String)> = vec![
        ("an empty file", String::new()),
        ("not YAML", "workloads: [".to_owned()),
        ("not a mapping", "- a\n- b\n".to_owned()),
        ("two documents", format!("{}---\nkind: ServiceRole\n", one(PORT))),
        ("no workloads", "policies: ./policies\n".to_owned()),
        ("an unknown field", top("trustdomain: x")),
        ("a bad trust domain", top("trustDomain: spiffe://Cluster.Local")),
        ("a bad cluster", top("cluster: East_1")),
        ("a ttl that is a number", top("certificates: {ttl: 3600}")),
        ("a ttl that is too short", top("certificates: {ttl: 5s}")),
        ("a ttl that is too long", top("certificates: {ttl: 48h}")),
        ("a workload without anything", mesh("- {}\n")),
        ("a name that is no label", mesh(&workload("Reviews_v1", PORT))),
        ("the reserved namespace", one(PORT).replace("namespace: shop", "namespace: alcazar-system")),
        ("an account that is no name", one(PORT).replace("serviceAccount: reviews", "serviceAccount: a/b")),
        ("the same name twice", mesh(&(workload("reviews", PORT) + &workload("reviews", PORT)))),
        ("both address and command", one(&format!("{PORT}  command: [sleep, inf]\n"))),
        ("neither address nor command", one("  ports: []\n")),
        ("a command that is a text", one("  command: sleep inf\n")),
        ("an empty command", one("  command: []\n")),
        ("an address with a port", one("  address: 127.0.0.1:9080\n")),
        ("an address that is a name", one("  address: reviews.example\n")),
        ("an address that is everywhere", one("  address: 0.0.0.0\n")),
        ("a port out of range", one(&PORT.replace("9080", "70000"))),
        ("a port without a protocol", one(&PORT.replace(", protocol: HTTP", ""))),
        ("gRPC as protocol", one(&PORT.replace("HTTP", "GRPC"))),
        ("https as protocol", one(&PORT.replace("HTTP", "https"))),
        ("http in lower case", one(&PORT.replace("HTTP", "http"))),
        (
            "a number twice and a name twice",
            one(
                "  address: 127.0.0.1\n  ports:\n  - {name: a, number: 1, protocol: TCP}\n  - {name: b, number: 1, protocol: TCP}\n  - {name: a, number: 2, protocol: TCP}\n",
            ),
        ),
        ("a label that cannot be", one(PORT).replace("labels: {app: reviews}", "labels: {app: -x, /y: z}")),
        ("an inbound address for everywhere", one(PORT).replace("inbound: 127.0.0.1:", "inbound: 0.0.0.0:")),
        ("an outbound address without a port", one(&format!("{PORT}  outbound: 127.0.0.1\n"))),
        ("an outbound port of 0", one(&format!("{PORT}  outbound: 127.0.0.1:0\n"))),
        ("an address that is taken", one(&format!("{PORT}  outbound: 127.0.0.1:20007\n"))),
        ("two applications on one port", mesh(&(workload("reviews", PORT) + &workload("catalog-v1", PORT)))),
        (
            "no inbound where none is chosen",
            one(PORT).lines().filter(|line| !line.contains("inbound")).collect::<Vec<_>>().join("\n"),
        ),
        (
            "two default services of one name",
            mesh(
                &(workload("reviews", PORT)
                    + &workload("ratings", &PORT.replace("9080", "9081"))
                        .replace("labels: {app: ratings}", "labels: {}")
                    + &workload("ratings-v2", &PORT.replace("9080", "9082"))
                        .replace("app: ratings-v2", "app: ratings")),
            ),
        ),
        ("an app label that cannot name a service", one(PORT).replace("app: reviews", "app: My_App")),
        (
            "a service that is wrong in several ways",
            with_services(
                "- name: reviews\n  namespace: shop\n  selectr: {app: reviews}\n  ports: [{name: http, port: 80, targetport: 9080, protocol: HTTP}]\n",
            ),
        ),
        (
            "a service with an empty selector",
            with_services(
                "- name: reviews\n  namespace: shop\n  selector: {}\n  ports: [{name: http, port: 9080, protocol: HTTP}]\n",
            ),
        ),
        (
            "a service whose target is not there",
            with_services(
                "- name: reviews\n  namespace: shop\n  selector: {app: reviews}\n  ports: [{name: http, port: 80, protocol: HTTP}]\n",
            ),
        ),
        (
            "a service of another protocol",
            with_services(
                "- name: reviews\n  namespace: shop\n  selector: {app: reviews}\n  ports: [{name: tcp, port: 9080, protocol: TCP}]\n",
            ),
        ),
        (
            "a service twice, and a port twice",
            with_services(
                "- &s\n  name: reviews\n  namespace: shop\n  selector: {app: reviews}\n  ports: [{name: a, port: 9080, protocol: HTTP}, {name: b, port: 9080, protocol: HTTP}]\n- *s\n",
            ),
        ),
        (
            "a service without ports",
            with_services("- {name: reviews, namespace: shop, selector: {app: reviews}, ports: []}\n"),
        ),
        ("a forward to nothing", one(&format!("{PORT}  forwards: [{{listen: 127.0.0.1:15432, to: db}}]\n"))),
        (
            "a forward to a service that is not there",
            one(&format!("{PORT}  forwards: [{{listen: 127.0.0.1:15432, to: review.shop:9080}}]\n")),
        ),
        (
            "a forward to an HTTP port",
            one(&format!("{PORT}  forwards: [{{listen: 127.0.0.1:15432, to: reviews.shop:9080}}]\n")),
        ),
        (
            "a forward to a port that is not there",
            one(&format!("{PORT}  forwards: [{{listen: 127.0.0.1:15432, to: reviews:5432}}]\n")),
        ),
    ];
    let mut table = String::new();
    for (title, text) in cases {
        let file = SourceFile::new("mesh.yaml", text);
        match World::build(&file, &[], Addresses::Stated) {
            Ok(_) => panic!("{title}: taken for right"),
            Err(errors) => write!(table, "# {title}\n\n{}\n", render_all(&errors, Style::Plain)).unwrap(),
        }
    }
    insta::assert_snapshot!("mistakes", table);
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let text = "workloads:\n- name: reviews\n  namespace: shop\n  serviceAccount: reviews\n  address: 127.0.0.1\n  inbound: 10.0.0.1:15008\n  outbound: 0.0.0.0:15101\nservices:\n- {name: reviews, namespace: shop, selector: {app: review}, ports: [{name: http, port: 80, protocol: HTTP}]}\n";
    let world = World::build(&SourceFile::new("mesh.yaml", text), &[], Addresses::Stated).unwrap();
    insta::assert_snapshot!("warnings", render_all(&world.warnings, Style::Plain));
}

#[test]
fn mistakes_in_the_mesh_and_in_the_policies_are_shown_together() {
    let mesh = SourceFile::new("mesh.yaml", "workloads: {}\n");
    let policy = SourceFile::new(
        "policies/a.yaml",
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRol\nmetadata: {name: a, namespace: shop}\n",
    );
    let errors = World::build(&mesh, &[policy], Addresses::Stated).unwrap_err();
    let files: Vec<&str> = errors.iter().map(|error| error.file().name()).collect();
    assert_eq!(files, ["mesh.yaml", "policies/a.yaml"]);
}
