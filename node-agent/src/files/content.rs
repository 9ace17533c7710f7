//! What the files of a workload hold.

use std::collections::BTreeMap;

use alcazar_identity::{Credentials, TrustBundle};
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::config::Roots;
use super::pkcs12::{self, Password, Pkcs12Error};

/// The leaf and the intermediates above it.
pub(crate) const CHAIN: &str = "cert-chain.pem";
/// The private key, PKCS#8.
pub(crate) const KEY: &str = "key.pem";
/// The roots.
pub(crate) const ROOTS: &str = "root-cert.pem";

/// All of them in one file of PKCS#12.
pub(crate) const STORE: &str = "keystore.p12";

/// Every name that this program ever gives to a file.
pub(crate) const NAMES: [&str; 4] = [CHAIN, KEY, ROOTS, STORE];

/// The files of one moment, which belong together.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content {
    files: BTreeMap<&'static str, Zeroizing<Vec<u8>>>,
}

impl Content {
    /// The files of a workload that holds these credentials.
    pub(crate) fn of(credentials: &Credentials, roots: Roots) -> Self {
        let svid = credentials.svid();
        let believed: String = believed(credentials, roots).map(TrustBundle::to_pem).collect();
        let key = svid.key().to_pem();
        let files = [
            (CHAIN, Zeroizing::new(svid.chain_pem().into_bytes())),
            (KEY, Zeroizing::new(key.as_bytes().to_vec())),
            (ROOTS, Zeroizing::new(believed.into_bytes())),
        ];
        Self { files: BTreeMap::from(files) }
    }

    /// The same with a file of PKCS#12 that this password opens.
    pub(crate) fn with_store(
        mut self,
        credentials: &Credentials,
        roots: Roots,
        password: &Password,
    ) -> Result<Self, Pkcs12Error> {
        let roots = believed(credentials, roots).flat_map(TrustBundle::roots);
        let sealed = pkcs12::seal(credentials.svid(), roots, password)?;
        self.files.insert(STORE, Zeroizing::new(sealed));
        Ok(self)
    }

    /// Each file, by its name, and whether it is secret.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &[u8], bool)> {
        self.files.iter().map(|(name, bytes)| (*name, bytes.as_slice(), [KEY, STORE].contains(name)))
    }

    /// The name of the folder for them: another one for other certificates, and for other files. It says nothing of the key.
    pub(crate) fn generation(&self) -> String {
        let public = |(name, bytes, secret)| [str::as_bytes(name), if secret { b"" } else { bytes }].concat();
        let public: Vec<u8> = self.files().flat_map(public).collect();
        let digest = digest(&SHA256, &public);
        let digits: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{GENERATION}{digits}")
    }
}

fn believed(credentials: &Credentials, roots: Roots) -> impl Iterator<Item = &TrustBundle> {
    let own = credentials.svid().id().trust_domain();
    credentials.bundles().iter().filter(move |bundle| roots == Roots::All || bundle.trust_domain() == own)
}

/// How the name of a folder begins that is ours.
pub(crate) const GENERATION: &str = "..alcazar.";
