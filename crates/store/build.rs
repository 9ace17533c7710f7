//! Compiles the part of etcd's API that the store calls, without protoc; nothing where the back end is not wanted.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    #[cfg(feature = "etcd")]
    tonic_prost_build::configure().build_server(false).compile_fds(protox::compile(["etcd.proto"], ["proto"])?)?;
    Ok(())
}
