//! A mesh file that cannot be understood is shown with its place, and nothing is started; a port that is taken is named.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use alcazar_testkit::binary;
use tempfile::TempDir;

#[test]
fn bad_mesh_starts_nothing() {
    let workload = "- name: reviews\n  namespace: shop\n  serviceAccount: reviews\n  address: 127.0.0.1\n";
    for (mesh, says) in [
        (format!("workloads:\n{workload}  prots: []\n"), ["mesh.yaml:6:3", "`ports`"]),
        (
            format!("workloads:\n{workload}  ports: [{{name: http, number: 9080, protocol: HTTP2}}]\n"),
            ["mesh.yaml:6:48", "HTTP"],
        ),
        (
            format!("workloads:\n{workload}  ports: [{{name: http, number: 99999, protocol: HTTP}}]\n"),
            ["mesh.yaml:6:32", "65535"],
        ),
        ("workload: []\n".to_owned(), ["mesh.yaml:1:1", "`workloads`"]),
        ("workloads: [\n".to_owned(), ["mesh.yaml:", ""]),
    ] {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("mesh.yaml"), &mesh).unwrap();
        let output = up(&home);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{mesh}{said}");
        for text in says {
            assert!(said.contains(text), "{text} is not in:\n{said}");
        }
        assert!(!home.path().join("data/ca").exists(), "something was started for:\n{mesh}");
    }
}

#[test]
fn a_bad_policy_starts_nothing() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("mesh.yaml"), "policies: ./p.yaml\nworkloads: []\n").unwrap();
    let role = "apiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRole\nmetadata: {name: r, namespace: shop}\nspec: {ruls: []}\n";
    fs::write(home.path().join("p.yaml"), role).unwrap();
    let output = up(&home);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("p.yaml:4:8") && said.contains("`rules`"), "{said}");
}

#[test]
fn a_mesh_file_that_is_not_there_is_named() {
    let home = tempfile::tempdir().unwrap();
    let output = up(&home);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("mesh.yaml"), "{said}");
}

#[test]
fn a_port_that_is_taken_is_named_with_what_needs_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (line, what) in [
        (format!("  address: 127.0.0.1\n  inbound: 127.0.0.1:{port}\n"), "inbound"),
        (format!("  address: 127.0.0.1\n  outbound: 127.0.0.1:{port}\n"), "outbound"),
        (
            format!("  command: [alcazar, app, reviews]\n  ports: [{{name: web, number: {port}, protocol: HTTP}}]\n"),
            "`web`",
        ),
    ] {
        let home = tempfile::tempdir().unwrap();
        let mesh = format!("workloads:\n- name: reviews-v1\n  namespace: shop\n  serviceAccount: reviews\n{line}");
        fs::write(home.path().join("mesh.yaml"), &mesh).unwrap();
        let output = up(&home);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{mesh}{said}");
        for text in [format!("127.0.0.1:{port}"), "shop/reviews-v1".to_owned(), what.to_owned()] {
            assert!(said.contains(&text), "{text} is not in:\n{said}");
        }
    }
}

fn up(home: &TempDir) -> Output {
    let mut command = Command::new("timeout");
    command.arg("30").arg(binary("alcazar").unwrap()).args(["up", "--mesh", "mesh.yaml", "--data-dir", "data"]);
    command.current_dir(home.path()).output().unwrap()
}
