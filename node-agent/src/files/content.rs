//! What the files of a workload hold.

use std::collections::BTreeMap;

use alcazar_identity::Credentials;
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::config::Roots;

/// The leaf and the intermediates above it.
pub(crate) const CHAIN: &str = "cert-chain.pem";
/// The private key, PKCS#8.
pub(crate) const KEY: &str = "key.pem";
/// The roots.
pub(crate) const ROOTS: &str = "root-cert.pem";

/// Every name that this program ever gives to a file.
pub(crate) const NAMES: [&str; 3] = [CHAIN, KEY, ROOTS];

/// The files of one moment, which belong together.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content {
    files: BTreeMap<&'static str, Zeroizing<Vec<u8>>>,
}

impl Content {
    /// The files of a workload that holds these credentials.
    pub(crate) fn of(credentials: &Credentials, roots: Roots) -> Self {
        let svid = credentials.svid();
        let believed = credentials.bundles().iter().filter(|bundle| match roots {
            Roots::Own => bundle.trust_domain() == svid.id().trust_domain(),
            Roots::All => true,
        });
        let believed: String = believed.map(|bundle| bundle.to_pem()).collect();
        let key = svid.key().to_pem();
        let files = [
            (CHAIN, Zeroizing::new(svid.chain_pem().into_bytes())),
            (KEY, Zeroizing::new(key.as_bytes().to_vec())),
            (ROOTS, Zeroizing::new(believed.into_bytes())),
        ];
        Self { files: BTreeMap::from(files) }
    }

    /// Each file, by its name, and whether it is secret.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &[u8], bool)> {
        self.files.iter().map(|(name, bytes)| (*name, bytes.as_slice(), *name == KEY))
    }

    /// The name of the folder for them: another one for other certificates. It says nothing of the key.
    pub(crate) fn generation(&self) -> String {
        let public: Vec<u8> =
            self.files().filter(|(.., secret)| !secret).flat_map(|(_, bytes, _)| bytes).copied().collect();
        let digest = digest(&SHA256, &public);
        let digits: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{GENERATION}{digits}")
    }
}

/// How the name of a folder begins that is ours.
pub(crate) const GENERATION: &str = "..alcazar.";
