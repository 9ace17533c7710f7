//! The sample shop, carried in the binary.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use alcazar_service::files::{private_directory, write_atomic};

/// Each file of the sample with its place. The mesh file comes last: once it is there, all is.
const FILES: [(&str, &str); 7] = [
    ("README.md", include_str!("../../../deploy/samples/shop/README.md")),
    ("policies/mesh.yaml", include_str!("../../../deploy/samples/shop/policies/mesh.yaml")),
    ("policies/frontend.yaml", include_str!("../../../deploy/samples/shop/policies/frontend.yaml")),
    ("policies/catalog.yaml", include_str!("../../../deploy/samples/shop/policies/catalog.yaml")),
    ("policies/reviews.yaml", include_str!("../../../deploy/samples/shop/policies/reviews.yaml")),
    ("policies/payments.yaml", include_str!("../../../deploy/samples/shop/policies/payments.yaml")),
    (MESH, include_str!("../../../deploy/samples/shop/mesh.yaml")),
];

const MESH: &str = "mesh.yaml";

/// Where the sample's applications listen, as the mesh file has it.
const PORTS: [u16; 5] = [9070, 9080, 9090, 9100, 9110];

/// Writes the sample where it is not there yet, and says where its mesh file is.
///
/// Once written the files are the user's: nothing is written over or brought back.
pub(crate) fn write(directory: &Path) -> io::Result<PathBuf> {
    let mesh = directory.join(MESH);
    if mesh.try_exists()? {
        return Ok(mesh);
    }
    private_directory(&directory.join("policies"))?;
    for (name, text) in FILES {
        let text = if name == MESH { with_free_ports(text)? } else { text.to_owned() };
        write_atomic(&directory.join(name), text.as_bytes(), 0o600)?;
    }
    Ok(mesh)
}

/// The mesh file, with another port in place of each that something else on this machine has taken.
fn with_free_ports(mesh: &str) -> io::Result<String> {
    let mut text = mesh.to_owned();
    for port in PORTS {
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            text = text.replace(&format!(": {port},"), &format!(": {free},"));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_the_user_edits_or_deletes_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let shop = directory.path().join("shop");
        assert_eq!(write(&shop).unwrap(), shop.join("mesh.yaml"));
        fs::write(shop.join("policies/mesh.yaml"), "edited").unwrap();
        fs::remove_file(shop.join("policies/catalog.yaml")).unwrap();
        write(&shop).unwrap();
        assert_eq!(fs::read_to_string(shop.join("policies/mesh.yaml")).unwrap(), "edited");
        assert!(!shop.join("policies/catalog.yaml").exists());
    }

    #[test]
    fn a_port_that_is_taken_is_replaced_wherever_it_stands() {
        let mesh = include_str!("../../../deploy/samples/shop/mesh.yaml");
        for port in PORTS {
            assert_eq!(mesh.matches(&format!(": {port},")).count(), 2, "a workload's and a service's {port}");
        }
        // Taken by this test, or by somebody else: either way not free.
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 9110));
        assert!(!with_free_ports(mesh).unwrap().contains("9110"));
        drop(taken);
    }

    #[test]
    fn every_file_of_the_sample_is_carried() {
        let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/shop");
        let count = |directory: &Path| {
            fs::read_dir(directory).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count()
        };
        assert_eq!(count(&shop) + count(&shop.join("policies")), FILES.len());
    }
}
