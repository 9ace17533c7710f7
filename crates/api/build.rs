//! Compiles the protobuf definitions without protoc.

use std::{error::Error, fs, path::Path};

/// The folder of each package; every file in it is compiled.
const PACKAGES: &[&str] = &["alcazar/ca/v1", "alcazar/mesh/v1", "istio/v1/auth", "spiffe"];

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
    let mut build = tonic_prost_build::configure();
    // The control plane and the agent know by the bytes of what they push whether it is new, so a map must always encode in the
    // same order.
    for maps in [".alcazar.mesh.v1", ".X509SVIDResponse", ".X509BundlesResponse", ".JWTBundlesResponse"] {
        build = build.btree_map(maps);
    }
    build.compile_fds(files)?;
    Ok(())
}
