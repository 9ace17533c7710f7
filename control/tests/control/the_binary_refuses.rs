//! `alcazar-control` with files that are wrong: shown with their place, exit status 2, nothing started.

use std::fs;
use std::process::Command;

#[test]
fn files_that_are_wrong_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let at = |file: &str| folder.path().join(file);
    let config = format!(
        "mesh: {0}/mesh.yaml\nlisten: 127.0.0.1:0\nsdsSocket: {0}/control.sock\nadmin: 127.0.0.1:0\n",
        folder.path().display()
    );
    let check = |config: &str, mesh: &str, expected: &[&str]| {
        fs::write(at("control.yaml"), config).unwrap();
        fs::write(at("mesh.yaml"), mesh).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_alcazar-control"));
        let output = command.arg("--config").arg(at("control.yaml")).output().unwrap();
        let shown = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{shown}");
        for part in expected {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
    };
    check(&config.replace("listen", "listn"), "", &["control.yaml:2:1", "did you mean `listen`?"]);
    let two = "workloads:\n- {name: A, namespace: n, serviceAccount: s, address: 10.0.0.1, inbund: 10.0.0.1:15008}\n";
    check(&config, two, &["mesh.yaml:2:10", "did you mean `a`?", "mesh.yaml:2:65", "did you mean `inbound`?"]);
}
