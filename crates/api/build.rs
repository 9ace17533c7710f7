//! Compiles the protobuf definitions without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files =
        protox::compile(["alcazar/ca/v1/ca.proto", "alcazar/mesh/v1/mesh.proto", "istio/v1/auth/ca.proto"], ["proto"])?;
    // The control plane versions what it pushes by its bytes, so a map must always encode in the same order.
    tonic_prost_build::configure().btree_map(".alcazar.mesh.v1").compile_fds(files)?;
    Ok(())
}
