//! Compiles the protobuf definitions without protoc.

use std::{error::Error, fs, path::Path};

/// The folder of each package; every file in it is compiled.
const PACKAGES: &[&str] = &["alcazar/ca/v1", "alcazar/mesh/v1", "istio/v1/auth"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut files = Vec::new();
    for package in PACKAGES {
        for file in fs::read_dir(Path::new("proto").join(package))? {
            files.push(format!("{package}/{}", file?.file_name().to_string_lossy()));
        }
    }
    // The order of a folder is nobody's; that of the generated code is always the same.
    files.sort();
    let files = protox::compile(files, ["proto"])?;
    // The control plane versions what it pushes by its bytes, so a map must always encode in the same order.
    tonic_prost_build::configure().btree_map(".alcazar.mesh.v1").compile_fds(files)?;
    Ok(())
}
