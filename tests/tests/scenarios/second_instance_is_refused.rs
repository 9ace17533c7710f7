//! One data directory has one mesh.

use std::process::Command;

use alcazar_testkit::{HttpOrigin, Mesh, binary, turn};

#[test]
fn second_instance_is_refused() {
    let _turn = turn();
    let origin = HttpOrigin::start("reviews").unwrap();
    let mesh = format!(
        "workloads:\n- name: reviews\n  namespace: shop\n  serviceAccount: reviews\n  address: 127.0.0.1\n  ports: [{{name: http, number: {}, protocol: HTTP}}]\n",
        origin.port()
    );
    let mut mesh = Mesh::of(&mesh, &[]).unwrap();
    let output = Command::new(binary("alcazar").unwrap())
        .args(["up", "--data-dir"])
        .arg(mesh.data_dir())
        .arg("--mesh")
        .arg(mesh.mesh_file())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let first = mesh.process().id();
    assert!(said.contains("in use by another") && said.contains(&format!("process {first}")), "{said}");
    // The first has noticed nothing.
    assert_eq!(mesh.status().unwrap()["ready"], true);
    let status = mesh.stop().unwrap();
    assert!(status.success(), "{status}");
    let after =
        Command::new(binary("alcazar").unwrap()).args(["status", "--data-dir"]).arg(mesh.data_dir()).output().unwrap();
    assert_eq!(after.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&after.stderr).contains("no mesh runs"), "{after:?}");
}
