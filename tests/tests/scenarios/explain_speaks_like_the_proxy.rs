//! `alcazar policy explain` gives the proxy's verdicts in the proxy's words.

use std::process::{Command, Output};

use alcazar_testkit::{Curl, DEADLINE, HttpOrigin, Mesh, binary, turn, until};

const POLICY: &str = "apiVersion: rbac.istio.io/v1alpha1
kind: ClusterRbacConfig
metadata: {name: default}
spec: {mode: 'ON'}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {name: reader, namespace: shop}
spec:
  rules:
  - services: ['reviews.shop.svc.cluster.local']
    methods: [GET]
    paths: ['/ratings/*']
    constraints: [{key: 'request.headers[x-plan]', values: [gold]}, {key: 'destination.labels[version]', values: [v1]}]
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {name: callers, namespace: shop}
spec:
  roleRef: {kind: ServiceRole, name: reader}
  subjects: [{user: 'cluster.local/ns/shop/sa/caller'}]
";

#[test]
fn explain_speaks_like_the_proxy() {
    let _turn = turn();
    let origin = HttpOrigin::start("reviews").unwrap();
    let mesh = format!(
        "policies: ./policies
workloads:
- name: reviews-v1
  namespace: shop
  serviceAccount: reviews
  labels: {{app: reviews, version: v1}}
  address: 127.0.0.1
  ports: [{{name: http, number: {}, protocol: HTTP}}]
- {{name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1}}
- {{name: other, namespace: shop, serviceAccount: other, address: 127.0.0.1}}
services:
- {{name: reviews, namespace: shop, selector: {{app: reviews}}, ports: [{{name: http, port: 80, targetPort: {}, protocol: HTTP}}]}}
",
        origin.port(),
        origin.port()
    );
    let mesh = Mesh::of(&mesh, &[("policy.yaml", POLICY)]).unwrap();
    for (from, method, path, header, expected) in [
        ("caller", "GET", "/ratings/7?full=1", Some(("x-plan", "gold")), 200),
        ("caller", "GET", "/ratings/7", Some(("x-plan", "tin")), 403),
        ("caller", "GET", "/ratings/7", None, 403),
        ("caller", "POST", "/ratings/7", Some(("x-plan", "gold")), 403),
        ("caller", "GET", "/ratings/../admin", Some(("x-plan", "gold")), 403),
        ("other", "GET", "/ratings/7", Some(("x-plan", "gold")), 403),
    ] {
        let proxy = mesh.workload(&format!("shop/{from}")).unwrap().outbound;
        let mut call = Curl::default().through(&proxy).with(&["-X", method, "--path-as-is"]);
        if let Some((name, value)) = header {
            call = call.with(&["-H", &format!("{name}: {value}")]);
        }
        let known = mesh.decisions().len();
        let answer = call.get(&format!("http://reviews.shop{path}")).unwrap();
        assert_eq!(answer.code, expected, "{from} {method} {path}: {}", answer.text);
        let record = until("the decision", DEADLINE, || mesh.decisions().into_iter().nth(known)).unwrap();
        let mut arguments =
            vec!["--from".to_owned(), format!("shop/{from}"), "--to".to_owned(), "reviews.shop".to_owned()];
        arguments.extend(["--method", method, "--path", path].map(str::to_owned));
        if let Some((name, value)) = header {
            arguments.extend(["--header".to_owned(), format!("{name}={value}")]);
        }
        let output = explain(&mesh, &arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(if expected == 200 { 0 } else { 1 }), "{output:?}");
        assert_eq!(said.trim(), record["explanation"].as_str().unwrap(), "{from} {method} {path}");
    }
}

#[test]
fn what_cannot_be_explained_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let policy = home.path().join("policy.yaml");
    std::fs::write(&policy, POLICY.replace("methods:", "method:")).unwrap();
    let ask = |policy: &str, more: &[&str]| {
        let mut command = Command::new(binary("alcazar").unwrap());
        command.args(["policy", "explain", "--policy", policy, "--from", "shop/a", "--to", "reviews.shop"]);
        let output = command.args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let request = ["--method", "GET", "--path", "/"];
    let (code, said) = ask(&policy.to_string_lossy(), &request);
    assert!(code == Some(2) && said.contains("policy.yaml:12:5") && said.contains("`methods`"), "{said}");
    let (code, said) = ask("nowhere", &request);
    assert!(code == Some(2) && said.contains("nowhere"), "{said}");
    std::fs::write(&policy, POLICY).unwrap();
    let (code, said) = ask(&policy.to_string_lossy(), &["--method", "GET", "--path", "/a%2fb"]);
    assert!(code == Some(2) && said.contains("path"), "{said}");
    let (code, _) = ask(&policy.to_string_lossy(), &["--method", "GET"]);
    assert_eq!(code, Some(2));
}

fn explain(mesh: &Mesh, arguments: &[String]) -> Output {
    let mut command = Command::new(binary("alcazar").unwrap());
    command.args(["policy", "explain", "--policy"]).arg(mesh.policies());
    command.arg("--mesh").arg(mesh.mesh_file()).args(arguments).output().unwrap()
}
