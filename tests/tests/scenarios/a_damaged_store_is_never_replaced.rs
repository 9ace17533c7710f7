//! When the CA cannot read what it has kept, the mesh says so and starts nothing: no new root takes the old one's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alcazar_testkit::{Mesh, binary, turn};

const MESH: &str = "workloads:
- {name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1}
";

#[test]
fn a_damaged_store_is_never_replaced() {
    let _turn = turn();
    let mut mesh = Mesh::of(MESH, &[]).unwrap();
    let root = mesh.root().unwrap();
    mesh.stop().unwrap();
    let ca = mesh.data_dir().join("ca");
    // What only keeps room on the disk has nothing to say.
    for damaged in files(&ca).into_iter().filter(|file| !file.ends_with("reserve")) {
        let whole = fs::read(&damaged).unwrap();
        if whole.len() < 16 {
            continue;
        }
        let mut torn = whole.clone();
        for byte in torn.iter_mut() {
            *byte = !*byte;
        }
        fs::write(&damaged, &torn).unwrap();
        // Without the keys of JWT-SVIDs the CA does everything else, and says so.
        let goes_on = damaged.file_name().is_some_and(|name| name.to_string_lossy().starts_with("jwt-"));
        let (patience, ended) = if goes_on { ("5", 124) } else { ("30", 1) };
        let output = Command::new("timeout")
            .arg(patience)
            .arg(binary("alcazar").unwrap())
            .args(["up", "--data-dir"])
            .arg(mesh.data_dir())
            .arg("--mesh")
            .arg(mesh.mesh_file())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(ended), "{}: {said}", damaged.display());
        assert!(!said.contains("panicked"), "{}: {said}", damaged.display());
        let name = damaged.file_name().unwrap().to_string_lossy().into_owned();
        let advice = ["restore", "remove", "backup", "replace"].iter().any(|word| said.contains(word));
        assert!(said.contains("data/ca") && advice, "{name} is damaged, and this is said:\n{said}");
        fs::write(&damaged, &whole).unwrap();
    }
    // Put back as it was, it is the same mesh.
    let mesh = mesh.kill_and_restart().unwrap();
    assert_eq!(mesh.root().unwrap(), root);
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}
