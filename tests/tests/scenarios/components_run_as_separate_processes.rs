//! `alcazar up` is a convenience: the four binaries, each with a YAML file of its own, make the same mesh.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use alcazar_testkit::{Curl, HttpOrigin, Process, binary, curl, turn};

const POLICY: &str = "apiVersion: rbac.istio.io/v1alpha1
kind: ClusterRbacConfig
metadata: {name: default}
spec: {mode: 'ON'}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {name: reader, namespace: shop}
spec: {rules: [{services: ['reviews.shop.svc.cluster.local'], methods: [GET]}]}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {name: callers, namespace: shop}
spec:
  roleRef: {kind: ServiceRole, name: reader}
  subjects: [{user: 'example.org/ns/shop/sa/caller'}]
";

/// What each process listens on.
struct Ports {
    ca: u16,
    ca_admin: u16,
    agent_admin: u16,
    control: u16,
    control_admin: u16,
    reviews: u16,
    reviews_admin: u16,
    caller: u16,
    caller_outbound: u16,
    caller_admin: u16,
}

#[test]
fn components_run_as_separate_processes() {
    let _turn = turn();
    let home = tempfile::tempdir().unwrap();
    let origin = HttpOrigin::start("reviews").unwrap();
    let ports = free_ports();
    write_files(home.path(), &ports, origin.port());

    // Each finds out by itself when what it needs is there: the order does not matter, but for the token.
    let mut proxies = ["reviews", "caller"].map(|name| start(home.path(), "alcazar-proxy", name));
    let mut control = start(home.path(), "alcazar-control", "control");
    let mut ca = start(home.path(), "alcazar-ca", "ca");
    ca.wait_ready(ports.ca_admin).unwrap();
    let token = Command::new(binary("alcazar-ca").unwrap())
        .args(["token", "--node", "one", "--config"])
        .arg(home.path().join("ca.yaml"))
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(token.status.success(), "{token:?}");
    fs::write(home.path().join("token"), token.stdout.trim_ascii()).unwrap();
    let mut agent = start(home.path(), "alcazar-node-agent", "agent");
    for (process, port) in [(&agent, ports.agent_admin), (&control, ports.control_admin)] {
        process.wait_ready(port).unwrap();
    }
    for (process, port) in proxies.iter().zip([ports.reviews_admin, ports.caller_admin]) {
        process.wait_ready(port).unwrap();
    }

    let proxy = format!("127.0.0.1:{}", ports.caller_outbound);
    let url = format!("http://reviews.shop:{}/", origin.port());
    let answer = curl(&proxy, &url).unwrap();
    assert!(answer.code == 200 && answer.text.contains("URI=spiffe://example.org/ns/shop/sa/caller"), "{answer:?}");
    let denied = Curl::default().through(&proxy).with(&["-X", "DELETE"]).get(&url).unwrap();
    assert_eq!(denied.code, 403, "{denied:?}");
    proxies[0].wait_for_line("the reason", |line| line.contains("methods wants")).unwrap();

    // What is configured serves on while the control plane and the CA are away.
    assert!(control.terminate().unwrap().success(), "{}", control.log());
    assert!(ca.terminate().unwrap().success(), "{}", ca.log());
    assert_eq!(curl(&proxy, &url).unwrap().code, 200);
    for process in [&mut proxies[0], &mut agent] {
        let status = process.terminate().unwrap();
        assert!(status.success(), "{status}: {}", process.log());
    }
    assert_eq!(curl(&proxy, &url).unwrap().code, 503);
}

fn start(home: &Path, program: &str, name: &str) -> Process {
    Process::component(program, home, name).unwrap()
}

fn write_files(home: &Path, ports: &Ports, origin: u16) {
    let Ports { ca, ca_admin, agent_admin, control, control_admin, .. } = ports;
    let write = |name: &str, text: String| fs::write(home.join(name), text).unwrap();
    let registration = |id: &str, identity: &str| {
        format!("- {{id: {id}, node: one, identity: {identity}, selectors: ['socket:{id}']}}\n")
    };
    let registrations = [
        registration("alcazar-system.alcazar-control", "alcazar-system/alcazar-control"),
        registration("shop.reviews", "shop/reviews"),
        registration("shop.caller", "shop/caller"),
    ];
    write(
        "ca.yaml",
        format!(
            "trustDomain: example.org\ncluster: east\ndataDir: ca\nlisten: 127.0.0.1:{ca}\nadmin: 127.0.0.1:{ca_admin}\nregistrations:\n{}",
            registrations.concat()
        ),
    );
    write(
        "agent.yaml",
        format!(
            "trustDomain: example.org\ncluster: east\nnode: one\ncaAddress: 127.0.0.1:{ca}\njoinTokenFile: token\ndataDir: agent\nsocketsDir: sockets\nadmin: 127.0.0.1:{agent_admin}\n"
        ),
    );
    write(
        "control.yaml",
        format!(
            "mesh: mesh.yaml\nlisten: 127.0.0.1:{control}\nsdsSocket: sockets/alcazar-system.alcazar-control.sock\nadmin: 127.0.0.1:{control_admin}\n"
        ),
    );
    write(
        "mesh.yaml",
        format!(
            "trustDomain: example.org
cluster: east
policies: policy.yaml
workloads:
- {{name: reviews, namespace: shop, serviceAccount: reviews, address: 127.0.0.1, inbound: '127.0.0.1:{}', ports: [{{name: http, number: {origin}, protocol: HTTP}}]}}
- {{name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1, inbound: '127.0.0.1:{}', outbound: '127.0.0.1:{}'}}
",
            ports.reviews, ports.caller, ports.caller_outbound
        ),
    );
    write("policy.yaml", POLICY.to_owned());
    let proxy = |name: &str, inbound: u16, outbound: Option<u16>, admin: u16| {
        let outbound = outbound.map(|port| format!("outbound: 127.0.0.1:{port}\n")).unwrap_or_default();
        write(
            &format!("{name}.yaml"),
            format!(
                "workload: shop/{name}\nsdsSocket: sockets/shop.{name}.sock\ncontrol: {{address: '127.0.0.1:{control}'}}\ninbound: 127.0.0.1:{inbound}\n{outbound}admin: 127.0.0.1:{admin}\ndecisionLog: decisions.jsonl\nworkers: 2\n"
            ),
        );
    };
    proxy("reviews", ports.reviews, None, ports.reviews_admin);
    proxy("caller", ports.caller, Some(ports.caller_outbound), ports.caller_admin);
}

/// Ports that were free a moment ago.
fn free_ports() -> Ports {
    let listeners = [(); 10].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let [
        ca,
        ca_admin,
        agent_admin,
        control,
        control_admin,
        reviews,
        reviews_admin,
        caller,
        caller_outbound,
        caller_admin,
    ] = listeners.map(|listener| listener.local_addr().unwrap().port());
    Ports {
        ca,
        ca_admin,
        agent_admin,
        control,
        control_admin,
        reviews,
        reviews_admin,
        caller,
        caller_outbound,
        caller_admin,
    }
}
