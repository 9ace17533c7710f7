//! Certificates as people make them, with OpenSSL.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl").current_dir(folder).args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A workshop with a root, an intermediate of it, and their keys, as `openssl` makes them.
pub struct Workshop(tempfile::TempDir);

impl Workshop {
    pub fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        workshop.root("root", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:2");
        workshop.authority("middle", "root", "pathlen:0", "subjectAltName=URI:spiffe://cluster.local", 365);
        workshop
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn key(&self, name: &str, kind: &str) {
        openssl(self.path(), &format!("genpkey -algorithm {kind} -out {name}.key"));
    }

    pub fn root(&self, name: &str, kind: &str, length: &str) {
        self.key(name, kind);
        openssl(
            self.path(),
            &format!(
                "req -x509 -new -key {name}.key -subj /CN={name} -days 3650 -out {name}.pem \
                 -addext basicConstraints=critical,CA:TRUE,{length} -addext keyUsage=critical,keyCertSign,cRLSign"
            )
            .replace("  ", " "),
        );
    }

    pub fn authority(&self, name: &str, by: &str, length: &str, more: &str, days: i32) {
        if !self.path().join(format!("{name}.key")).exists() {
            self.key(name, "EC -pkeyopt ec_paramgen_curve:P-256");
        }
        self.certificate(
            name,
            by,
            &format!("basicConstraints=critical,CA:TRUE,{length}\nkeyUsage=critical,keyCertSign,cRLSign\n{more}\n"),
            days,
            "",
        );
    }

    pub fn certificate(&self, name: &str, by: &str, extensions: &str, days: i32, more: &str) {
        fs::write(self.path().join("extensions"), extensions).unwrap();
        openssl(self.path(), &format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
        let line = format!(
            "x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial -days {days} -extfile extensions -out {name}.pem{more}"
        );
        openssl(self.path(), &line);
    }

    pub fn read(&self, names: &[&str]) -> Vec<u8> {
        names.iter().flat_map(|name| fs::read(self.path().join(name)).unwrap()).collect()
    }

    /// A set as Istio's documents describe it.
    pub fn set(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("ca-cert.pem", self.read(&["middle.pem"])),
            ("ca-key.pem", self.read(&["middle.key"])),
            ("cert-chain.pem", self.read(&["middle.pem", "root.pem"])),
            ("root-cert.pem", self.read(&["root.pem"])),
        ]
    }

    pub fn put(&self, name: &str, set: &[(&'static str, Vec<u8>)]) -> PathBuf {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        for (file, bytes) in set {
            fs::write(folder.join(file), bytes).unwrap();
        }
        folder
    }
}

pub fn with(set: &[(&'static str, Vec<u8>)], name: &'static str, bytes: Vec<u8>) -> Vec<(&'static str, Vec<u8>)> {
    let mut set: Vec<_> = set.iter().filter(|(file, _)| *file != name).cloned().collect();
    set.push((name, bytes));
    set
}
