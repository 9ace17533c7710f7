use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use alcazar_identity::{
    BundleError, JwtAuthority, JwtAuthorityError, ParseSvidError, SpiffeId, SvidKey, TrustBundle, TrustBundles,
    X509Svid,
};
use alcazar_service::files::write_atomic;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::issued::Issued;
use crate::schedule::Life;

/// What of the node's own identity survives a restart.
///
/// The next key is in it before the CA is asked for its certificate: whatever is lost after that, the reply, the
/// process or the machine's power, the next attempt is made with the same key, which is how the CA knows the same
/// caller again.
#[derive(Debug, Clone, Default)]
pub struct SavedNode {
    /// The certificate in use, its key, and the bundles that came with it.
    pub current: Option<Issued>,
    /// The key that a certificate has been, or is about to be, asked for.
    pub next_key: Option<SvidKey>,
}

impl SavedNode {
    /// The bytes of the state file.
    ///
    /// # Errors
    /// Never for a state that was made from certificates that parse; a full machine aside.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, SavedError> {
        let file = File {
            version: VERSION,
            next_key: self.next_key.as_ref().map(Secret::of),
            current: self.current.as_ref().map(CurrentFile::of),
        };
        // Sized beforehand: a growing buffer would leave copies of the keys behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT));
        serde_json::to_writer_pretty(&mut *bytes, &file)?;
        Ok(bytes)
    }

    /// Reads the bytes of a state file.
    ///
    /// # Errors
    /// When they are damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, SavedError> {
        let file: File = serde_json::from_slice(bytes)?;
        if file.version != VERSION {
            return Err(SavedError::Version(file.version));
        }
        let key = |secret: Secret| SvidKey::from_pkcs8(secret.0.as_slice()).map_err(|_| SavedError::Key);
        Ok(Self {
            current: file.current.map(CurrentFile::read).transpose()?,
            next_key: file.next_key.map(key).transpose()?,
        })
    }
}

/// The file in which the node's identity is kept: mode 0600, replaced whole.
#[derive(Debug, Clone)]
pub(crate) struct NodeFile(PathBuf);

impl NodeFile {
    pub(crate) fn within(data_dir: &Path) -> Self {
        Self(data_dir.join(FILE))
    }

    /// What was saved for this node. A file that cannot be understood, or is another node's, is set aside and says
    /// so in the log: the node can attest itself anew, and must not be stuck. One that others can read is refused:
    /// who knows who has read it.
    pub(crate) fn load(&self, node: &SpiffeId) -> Result<SavedNode, LoadError> {
        let failed = |source| LoadError::Read { file: self.0.clone(), source };
        let mode = match std::fs::metadata(&self.0) {
            Ok(found) => found.permissions().mode() & 0o777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SavedNode::default()),
            Err(error) => return Err(failed(error)),
        };
        if mode & 0o077 != 0 {
            return Err(LoadError::Exposed { file: self.0.clone(), mode });
        }
        let bytes = std::fs::read(&self.0).map(Zeroizing::new).map_err(failed)?;
        match SavedNode::decode(&bytes) {
            Ok(saved) => match saved.current.as_ref().map(|current| current.svid().id()) {
                Some(other) if other != node => self.set_aside(&format!("it is {other}'s, and this node is {node}")),
                _ => Ok(saved),
            },
            Err(error) => self.set_aside(&alcazar_service::process::chain(&error)),
        }
    }

    fn set_aside(&self, reason: &str) -> Result<SavedNode, LoadError> {
        let aside = self.0.with_extension("json.unusable");
        std::fs::rename(&self.0, &aside).map_err(|source| LoadError::Read { file: self.0.clone(), source })?;
        tracing::warn!(file = %self.0.display(), moved_to = %aside.display(), reason, "the saved node identity cannot be used");
        Ok(SavedNode::default())
    }

    /// Replaces the file; durable when it returns.
    pub(crate) async fn save(&self, saved: &SavedNode) -> Result<(), SavedError> {
        let bytes = saved.encode()?;
        let path = self.0.clone();
        let written = tokio::task::spawn_blocking(move || write_atomic(&path, &bytes, 0o600)).await;
        let written = written.map_err(io::Error::other).and_then(|written| written);
        written.map_err(|source| SavedError::Write { path: self.0.clone(), source })
    }
}

/// Why the file of the saved identity cannot be used, nor be done without.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The key in it is not the node's alone.
    #[error(
        "the node's key in {} is open to others (mode {mode:04o}); if nobody else has had it, run: chmod 600 {}; otherwise remove the file and join with a new token",
        file.display(), file.display()
    )]
    Exposed {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The disk refused.
    #[error("cannot read, or set aside, the node's saved identity in {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a saved identity cannot be read, or one cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// Not the JSON that was written.
    #[error("the saved node identity is damaged")]
    Json(#[from] serde_json::Error),
    /// Written by another version of this program.
    #[error("the saved node identity has version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// A key that is none.
    #[error("a key in the saved node identity is damaged")]
    Key,
    /// A certificate that is none, or not the key's.
    #[error("the certificate in the saved node identity is damaged")]
    Svid(#[from] ParseSvidError),
    /// Bundles that are none.
    #[error("the trust bundles in the saved node identity are damaged")]
    Bundle(#[from] BundleError),
    /// A JWT authority that is none.
    #[error("the trust bundles in the saved node identity are damaged")]
    JwtAuthority(#[from] JwtAuthorityError),
    /// A trust domain that is none.
    #[error("the trust bundles in the saved node identity are damaged")]
    TrustDomain(#[from] alcazar_identity::ParseTrustDomainError),
    /// Times that make no life.
    #[error("the times in the saved node identity make no sense")]
    Times,
    /// The disk did not take it.
    #[error("cannot save the node's identity in {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    next_key: Option<Secret>,
    current: Option<CurrentFile>,
}

/// Times are milliseconds since the Unix epoch.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CurrentFile {
    issued: u64,
    expires: u64,
    received: u64,
    chain: String,
    key: Secret,
    bundles: Vec<BundleFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleFile {
    trust_domain: String,
    sequence: u64,
    roots: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    jwt_authorities: Vec<JwtAuthorityFile>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_hint: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtAuthorityFile {
    key_id: String,
    /// Base64 of DER.
    public_key: String,
}

impl BundleFile {
    fn of(bundle: &TrustBundle) -> Self {
        let authority = |authority: &JwtAuthority| JwtAuthorityFile {
            key_id: authority.key_id().to_owned(),
            public_key: STANDARD.encode(authority.public_key()),
        };
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            sequence: bundle.sequence(),
            roots: bundle.to_pem(),
            jwt_authorities: bundle.jwt_authorities().map(authority).collect(),
            refresh_hint: bundle.refresh_hint().map(|hint| hint.as_secs()),
        }
    }

    fn read(self) -> Result<TrustBundle, SavedError> {
        let authority = |file: JwtAuthorityFile| {
            let key = STANDARD.decode(file.public_key).map_err(|_| SavedError::Key)?;
            Ok::<_, SavedError>(JwtAuthority::new(file.key_id, key)?)
        };
        let authorities = self.jwt_authorities.into_iter().map(authority).collect::<Result<Vec<_>, _>>()?;
        let bundle = TrustBundle::from_pem(self.trust_domain.parse()?, self.sequence, self.roots.as_bytes())?;
        let bundle = bundle.with_jwt_authorities(authorities)?;
        Ok(bundle.with_refresh_hint(self.refresh_hint.map(Duration::from_secs)))
    }
}

impl CurrentFile {
    fn of(issued: &Issued) -> Self {
        let life = issued.life();
        Self {
            issued: milliseconds(life.issued()),
            expires: milliseconds(life.expires()),
            received: milliseconds(life.received()),
            chain: issued.svid().chain_pem(),
            key: Secret::of(issued.svid().key()),
            bundles: issued.bundles().iter().map(BundleFile::of).collect(),
        }
    }

    fn read(self) -> Result<Issued, SavedError> {
        let key = SvidKey::from_pkcs8(self.key.0.as_slice()).map_err(|_| SavedError::Key)?;
        let svid = X509Svid::from_pem(self.chain.as_bytes(), key.to_pem().as_bytes())?;
        let bundles = self.bundles.into_iter().map(BundleFile::read).collect::<Result<TrustBundles, _>>()?;
        let [issued, expires, received] = [self.issued, self.expires, self.received].map(time);
        let life = match (issued, expires, received) {
            (Some(issued), Some(expires), Some(received)) => Life::new(issued, expires, received),
            _ => None,
        };
        Ok(Issued::restored(svid, bundles, life.ok_or(SavedError::Times)?))
    }
}

pub(crate) fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn time(milliseconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))
}

/// PKCS#8 DER that reads and writes as base64 and leaves no copies: base64 needs no escapes, so JSON lends it.
pub(crate) struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub(crate) fn of(key: &SvidKey) -> Self {
        Self(Zeroizing::new(key.secret_pkcs8_der().to_vec()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new(String::with_capacity(self.0.len() * 4 / 3 + 4));
        STANDARD.encode_string(&*self.0, &mut text);
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        // No limit below can be passed by what this program wrote.
        let mut bytes = Zeroizing::new(vec![0; text.len()]);
        let length = STANDARD.decode_slice(text, &mut bytes).map_err(|_| serde::de::Error::custom("not base64"))?;
        bytes.truncate(length);
        Ok(Self(bytes))
    }
}

/// The file's name in the data directory.
pub(crate) const FILE: &str = "node.json";

const VERSION: u32 = 1;
/// Room for two keys, a chain and the bundles of a few trust domains.
const LIMIT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use alcazar_identity::Fingerprint;
    use proptest::prelude::*;
    use rcgen::PublicKeyData;

    use super::*;
    use crate::issued::Trust;
    use crate::keys;
    use crate::testing::ca::{Ca, NODE, node};

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn saved() -> SavedNode {
        let mut ca = Ca::new(noon());
        let key = keys::generate().unwrap();
        let reply = ca.issue_one(&keys::request(&key).unwrap(), NODE, Duration::from_secs(3600), noon());
        let pin = Trust::Pinned(Fingerprint::of(&ca.root_der()));
        let issued = Issued::accept(&reply, key, &node(), pin, noon()).unwrap();
        SavedNode { current: Some(issued), next_key: Some(keys::generate().unwrap()) }
    }

    #[test]
    fn what_is_saved_comes_back() {
        let before = saved();
        let after = SavedNode::decode(&before.encode().unwrap()).unwrap();
        let der = |key: &Option<SvidKey>| key.as_ref().unwrap().secret_pkcs8_der().to_vec();
        assert_eq!(der(&before.next_key), der(&after.next_key));
        let (before, after) = (before.current.unwrap(), after.current.unwrap());
        assert_eq!(before.svid().chain(), after.svid().chain());
        assert_eq!((before.bundles(), before.life()), (after.bundles(), after.life()));
        assert_eq!(before.svid().key().secret_pkcs8_der(), after.svid().key().secret_pkcs8_der());
        let full = before.bundles().get(node().trust_domain()).unwrap().clone();
        let authority =
            JwtAuthority::new("one", rcgen::KeyPair::generate().unwrap().subject_public_key_info()).unwrap();
        let full = full.with_jwt_authorities([authority]).unwrap().with_refresh_hint(Some(Duration::from_secs(60)));
        assert_eq!(BundleFile::of(&full).read().unwrap(), full);
        assert!(SavedNode::decode(&SavedNode::default().encode().unwrap()).unwrap().current.is_none());
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_set_aside_and_not_in_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let file = NodeFile::within(directory.path());
        let path = directory.path().join("node.json");
        assert!(file.load(&node()).unwrap().current.is_none(), "none is no error");

        file.save(&saved()).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(file.load(&node()).unwrap().current.is_some());

        let other: SpiffeId = "spiffe://td.example/node/east/vm-2".parse().unwrap();
        assert!(file.load(&other).unwrap().current.is_none(), "another node's");
        assert!(directory.path().join("node.json.unusable").exists() && !path.exists());

        for bad in
            ["", "{", "[]", r#"{"version":2,"next_key":null,"current":null}"#, r#"{"version":1,"next_key":"eA=="}"#]
        {
            write_atomic(&path, bad.as_bytes(), 0o600).unwrap();
            assert!(file.load(&node()).unwrap().current.is_none(), "{bad}");
            assert!(!path.exists(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let (file, path) = (NodeFile::within(directory.path()), directory.path().join("node.json"));
        file.save(&saved()).await.unwrap();
        let allow = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o644, 0o640, 0o602] {
            allow(mode);
            let refused = file.load(&node()).unwrap_err().to_string();
            assert!(refused.contains(&format!("chmod 600 {}", path.display())), "{refused}");
            assert!(path.exists(), "it is not set aside: a person must look");
        }
        allow(0o400);
        assert!(file.load(&node()).unwrap().current.is_some());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_and_never_a_panic(at: prop::sample::Index, byte: u8) {
            let mut bytes = saved().encode().unwrap().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            // A changed letter in a name may still read; what reads must write again.
            if let Ok(read) = SavedNode::decode(&bytes) {
                prop_assert!(read.encode().is_ok());
            }
        }
    }
}
