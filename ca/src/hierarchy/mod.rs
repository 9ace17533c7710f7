//! The CA's own certificates and keys on the disk: made once, found again, never silently replaced.
//!
//! ```text
//! <data>/hierarchy/root.pem                        the root
//! <data>/hierarchy/root-key.pem              0600  its key, PKCS#8
//! <data>/hierarchy/intermediate.pem                the intermediate in use
//! <data>/hierarchy/intermediate-<id>-key.pem 0600  its key; <id> is the front of the certificate's fingerprint
//! ```
//!
//! The folder appears by one rename once it is whole, so a set with a part missing is damage and never a start that was cut
//! short. The store holds the root's fingerprint: a folder that is gone or exchanged is noticed.

mod error;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use alcazar_identity::{CertificateDer, Fingerprint, TrustBundle, TrustBundles, TrustDomain};
use alcazar_service::files::{private_directory, write_atomic};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

pub use self::error::HierarchyError;
use crate::{
    authority::{Authority, AuthorityError, AuthorityInfo},
    serial::Serial,
    signer::{KeySigner, Signer},
};

/// The root's certificate and the intermediate that signs.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    root: AuthorityInfo,
    intermediate: Authority,
    bundles: TrustBundles,
}

impl Hierarchy {
    fn new(root: AuthorityInfo, intermediate: Authority, trust_domain: &TrustDomain) -> Result<Self, HierarchyError> {
        let bundle =
            TrustBundle::new(trust_domain.clone(), 1, [root.certificate.clone()]).map_err(HierarchyError::Bundle)?;
        Ok(Self { root, intermediate, bundles: bundle.into() })
    }

    pub(crate) fn root(&self) -> &AuthorityInfo {
        &self.root
    }

    pub(crate) fn intermediate(&self) -> &Authority {
        &self.intermediate
    }

    /// What everybody in the trust domain believes.
    pub(crate) fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// A leaf's whole chain: leaf first, root excluded.
    pub(crate) fn chain(&self, leaf: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        vec![leaf.clone(), self.intermediate.info().certificate.clone()]
    }
}

/// Where a hierarchy is kept.
#[derive(Clone, Debug)]
pub(crate) struct HierarchyFiles {
    folder: PathBuf,
    trust_domain: TrustDomain,
    cluster: String,
}

impl HierarchyFiles {
    pub(crate) fn new(data_dir: &Path, trust_domain: &TrustDomain, cluster: &str) -> Self {
        Self { folder: data_dir.join("hierarchy"), trust_domain: trust_domain.clone(), cluster: cluster.into() }
    }

    /// Finds the hierarchy again, or makes one where there has never been any; `known` is the root that the store remembers.
    pub(crate) fn open(&self, known: Option<Fingerprint>, now: SystemTime) -> Result<Hierarchy, HierarchyError> {
        let there = self.folder.try_exists().map_err(|source| self.io("look at", &self.folder, source))?;
        match (there, known) {
            (true, _) => {}
            (false, Some(fingerprint)) => {
                return Err(HierarchyError::Lost { folder: self.folder.clone(), fingerprint });
            }
            (false, None) => self.create(now)?,
        }
        let hierarchy = self.load()?;
        match known {
            Some(expected) if expected != hierarchy.root.fingerprint => Err(HierarchyError::Exchanged {
                folder: self.folder.clone(),
                expected,
                found: hierarchy.root.fingerprint,
            }),
            _ => self.renew_if_due(hierarchy, now),
        }
    }

    /// The same hierarchy, or one with a fresh intermediate once the present one is past half of its life.
    pub(crate) fn renew_if_due(&self, hierarchy: Hierarchy, now: SystemTime) -> Result<Hierarchy, HierarchyError> {
        let validity = hierarchy.intermediate.info().validity;
        if validity.remaining(now) > validity.lifetime() / 2 {
            return Ok(hierarchy);
        }
        // Bounded by its root, a new one may be no better.
        if hierarchy.root.validity.not_after() <= validity.not_after() {
            tracing::warn!(not_after = %alcazar_identity::rfc3339(validity.not_after()), "the intermediate cannot be renewed: its root ends with it");
            return Ok(hierarchy);
        }
        let root = self.root()?;
        let intermediate = self.write_intermediate(&self.folder, &root, now)?;
        tracing::info!(target: "alcazar::rotation", fingerprint = %intermediate.info().fingerprint, not_after = %alcazar_identity::rfc3339(intermediate.info().validity.not_after()), "the intermediate was renewed");
        Hierarchy::new(hierarchy.root, intermediate, &self.trust_domain)
    }

    fn create(&self, now: SystemTime) -> Result<(), HierarchyError> {
        let building = self.folder.with_extension("new");
        match fs::remove_dir_all(&building) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io("remove", &building, error)),
            _ => {}
        }
        private_directory(&building).map_err(|source| self.io("create", &building, source))?;
        let (signer, key) = fresh_key()?;
        let root = Authority::root(&self.trust_domain, signer, Serial::random()?, now).map_err(HierarchyError::Make)?;
        self.write(&building.join(ROOT_KEY), key.as_bytes(), 0o600)?;
        self.write(&building.join(ROOT), pem(&root.info().certificate).as_bytes(), 0o644)?;
        self.write_intermediate(&building, &root, now)?;
        fs::rename(&building, &self.folder).map_err(|source| self.io("rename", &building, source))?;
        let parent = self.folder.parent().unwrap_or(&self.folder);
        fs::File::open(parent)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| self.io("sync", parent, source))?;
        // Right on the first start of all; on any other, a data folder that was not there (a volume not mounted, a wrong path).
        tracing::warn!(target: "alcazar::rotation", fingerprint = %root.info().fingerprint, not_after = %alcazar_identity::rfc3339(root.info().validity.not_after()), folder = %self.folder.display(), "a new root was made: nothing that trusts another root trusts this one");
        Ok(())
    }

    /// The key first, then the certificate that names it: at each moment the folder holds one whole pair.
    fn write_intermediate(
        &self,
        folder: &Path,
        root: &Authority,
        now: SystemTime,
    ) -> Result<Authority, HierarchyError> {
        let (signer, key) = fresh_key()?;
        let made = Authority::intermediate(root, &self.trust_domain, &self.cluster, signer, Serial::random()?, now);
        let made = made.map_err(HierarchyError::Make)?;
        self.write(&folder.join(key_file(made.info())), key.as_bytes(), 0o600)?;
        self.write(&folder.join(INTERMEDIATE), pem(&made.info().certificate).as_bytes(), 0o644)?;
        self.remove_old_keys(folder, &key_file(made.info()))?;
        Ok(made)
    }

    fn remove_old_keys(&self, folder: &Path, current: &str) -> Result<(), HierarchyError> {
        for file in fs::read_dir(folder).map_err(|source| self.io("list", folder, source))? {
            let file = file.map_err(|source| self.io("list", folder, source))?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("intermediate-") && name.ends_with("-key.pem") && name != current {
                fs::remove_file(file.path()).map_err(|source| self.io("remove", &file.path(), source))?;
            }
        }
        Ok(())
    }

    fn load(&self) -> Result<Hierarchy, HierarchyError> {
        let root = self.root()?;
        let path = self.folder.join(INTERMEDIATE);
        let certificate = self.certificate(&path)?;
        let info = AuthorityInfo::parse(certificate.clone()).map_err(|source| self.wrong(&path, source))?;
        let wrong = |what| Err(HierarchyError::Mismatch { file: path.clone(), what });
        if !info.is_signed_by(root.info()) {
            return wrong(format!("it is not signed by the root {}", root.info().fingerprint));
        }
        if !info.is_of(&self.trust_domain) {
            return wrong(format!("it is not an intermediate of the trust domain {}", self.trust_domain));
        }
        let key = self.folder.join(key_file(&info));
        let intermediate = Authority::new(certificate, self.key(&key)?).map_err(|source| self.wrong(&key, source))?;
        Hierarchy::new(root.info().clone(), intermediate, &self.trust_domain)
    }

    fn root(&self) -> Result<Authority, HierarchyError> {
        let path = self.folder.join(ROOT);
        let certificate = self.certificate(&path)?;
        let signer = self.key(&self.folder.join(ROOT_KEY))?;
        Authority::new(certificate, signer).map_err(|source| self.wrong(&path, source))
    }

    fn certificate(&self, path: &Path) -> Result<CertificateDer<'static>, HierarchyError> {
        let pem = self.read(path)?;
        CertificateDer::from_pem_slice(&pem).map_err(|_reason| self.wrong(path, AuthorityError::Malformed))
    }

    fn key(&self, path: &Path) -> Result<Arc<dyn Signer>, HierarchyError> {
        let pem = self.read_private(path)?;
        let unreadable = |source| HierarchyError::Key { file: path.into(), source };
        let text = std::str::from_utf8(&pem).map_err(|_reason| unreadable(rcgen::Error::CouldNotParseKeyPair))?;
        let key = KeyPair::from_pem(text).map_err(unreadable)?;
        Ok(Arc::new(KeySigner::new(key)))
    }

    fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, HierarchyError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Zeroizing::new(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HierarchyError::Missing { file: path.into() }),
            Err(source) => Err(self.io("read", path, source)),
        }
    }

    /// A key that others can read is not signed with: who knows who has read it.
    fn read_private(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, HierarchyError> {
        match fs::metadata(path) {
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                let mode = found.permissions().mode() & 0o777;
                Err(HierarchyError::Exposed { file: path.into(), mode })
            }
            // Whatever else is to be said of the file is said by reading it.
            _ => self.read(path),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), HierarchyError> {
        write_atomic(path, bytes, mode).map_err(|source| self.io("write", path, source))
    }

    fn io(&self, doing: &'static str, path: &Path, source: io::Error) -> HierarchyError {
        HierarchyError::Io { doing, path: path.into(), source }
    }

    fn wrong(&self, path: &Path, source: AuthorityError) -> HierarchyError {
        HierarchyError::Wrong { file: path.into(), source }
    }
}

const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root-key.pem";
const INTERMEDIATE: &str = "intermediate.pem";

fn key_file(info: &AuthorityInfo) -> String {
    let id: String = info.fingerprint.to_string().chars().take(16).collect();
    format!("intermediate-{id}-key.pem")
}

/// P-256 throughout: every handshake in the mesh verifies these signatures, and P-384 would take several times as long.
fn fresh_key() -> Result<(Arc<dyn Signer>, Zeroizing<String>), HierarchyError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(HierarchyError::Generate)?;
    let pem = Zeroizing::new(key.serialize_pem());
    Ok((Arc::new(KeySigner::new(key)), pem))
}

/// A certificate as one PEM block.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(certificate);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
