//! What is configured that proves this node, read anew at every use: it may have been replaced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alcazar_identity::{
    BundleError, CertificateDer, Credentials, Fingerprint, KeyError, SvidKey, TrustBundle, TrustBundles, TrustDomain,
};
use alcazar_mtls::has_signed;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::proof::Way;
use crate::token::{JoinToken, ReadTokenError, TokenSource};

/// Where it is.
pub(crate) struct Sources {
    pub(crate) join_token: TokenSource,
    pub(crate) bearer_token: Option<PathBuf>,
    pub(crate) machine: Option<MachineFiles>,
    /// Roots by which the CA is known, in PEM.
    pub(crate) roots: Option<PathBuf>,
}

/// A machine certificate in files.
#[derive(Debug, Clone)]
pub(crate) struct MachineFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What is shown to the CA.
pub(crate) enum Evidence {
    JoinToken(JoinToken),
    BearerToken(Zeroizing<String>),
    Machine(Holder),
    /// By the certificate that the node holds.
    Lineage(Holder),
}

/// Who can prove to hold the key of a certificate.
pub(crate) struct Holder {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: SvidKey,
}

/// By what the CA is known before anything is shown to it.
#[derive(Debug, Clone)]
pub(crate) enum Anchor {
    /// By these roots.
    Roots(TrustBundles),
    /// By the one root with this fingerprint, which it presents.
    Pin(Fingerprint),
}

impl Sources {
    /// The ways that are configured.
    pub(crate) fn configured(&self) -> Vec<Way> {
        let bearer_token = self.bearer_token.as_ref().map(|_| Way::BearerToken);
        let machine = self.machine.as_ref().map(|_| Way::Machine);
        let join_token = (!matches!(self.join_token, TokenSource::Absent)).then_some(Way::JoinToken);
        [bearer_token, machine, join_token].into_iter().flatten().collect()
    }

    /// Reads what is shown by the way, where a file has it.
    pub(crate) async fn read(&self, way: Way) -> Result<Evidence, EvidenceError> {
        match (way, &self.bearer_token, &self.machine) {
            (Way::BearerToken, Some(path), _) => Ok(Evidence::BearerToken(bearer_token(path).await?)),
            (Way::Machine, _, Some(files)) => Ok(Evidence::Machine(files.read().await?)),
            _ => Ok(Evidence::JoinToken(self.join_token.read().await?)),
        }
    }

    /// By what the CA is known: the roots that the node holds and those of the file; where there are none, the pin of the join
    /// token.
    pub(crate) async fn anchor(
        &self,
        trust_domain: &TrustDomain,
        held: Option<&TrustBundles>,
    ) -> Result<Anchor, EvidenceError> {
        let mut roots: Vec<_> =
            held.and_then(|held| held.get(trust_domain)).iter().flat_map(|b| b.roots()).cloned().collect();
        if let Some(path) = &self.roots {
            let read = async {
                let pem = read(path).await?;
                let wrong = |source| EvidenceError::Roots { path: path.clone(), source };
                TrustBundle::from_pem(trust_domain.clone(), 0, &pem).map_err(wrong)
            };
            match read.await {
                Ok(bundle) => roots.extend(bundle.roots().cloned()),
                Err(error) if roots.is_empty() => return Err(error),
                Err(error) => {
                    let reason = alcazar_service::process::chain(&error);
                    tracing::warn!(reason, "the CA is known by the roots that this node holds alone");
                }
            }
        }
        if !roots.is_empty() {
            let bundle = TrustBundle::new(trust_domain.clone(), 0, roots).map_err(EvidenceError::Held)?;
            return Ok(Anchor::Roots(bundle.into()));
        }
        match self.join_token.read().await {
            Ok(token) => Ok(Anchor::Pin(token.pin())),
            Err(_) => Err(EvidenceError::NoAnchor),
        }
    }
}

impl MachineFiles {
    async fn read(&self) -> Result<Holder, EvidenceError> {
        let pem = read(&self.certificate).await?;
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| EvidenceError::NoCertificate(self.certificate.clone()))?;
        let pem = Zeroizing::new(read(&self.key).await?);
        let wrong = |source| EvidenceError::Key { path: self.key.clone(), source };
        let holder = Holder { chain, key: SvidKey::from_pem(&pem).map_err(wrong)? };
        // Said here, where the files have names; the CA would only refuse.
        holder.sign(b"").map_err(|_| EvidenceError::OtherKey(self.clone()))?;
        Ok(holder)
    }
}

impl Holder {
    /// The node, by what it holds.
    pub(crate) fn of(credentials: &Arc<Credentials>) -> Self {
        let svid = credentials.svid();
        Self { chain: svid.chain().to_vec(), key: svid.key().clone() }
    }

    /// A signature that the certificate's key makes.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = sign(&self.key, message)?;
        let leaf = self.chain.first().ok_or(SignError)?;
        if has_signed(leaf, message, &signature) { Ok(signature) } else { Err(SignError) }
    }
}

/// By whatever kind of key it is: ECDSA in DER, Ed25519, RSA PKCS#1, with SHA-256 or SHA-384.
fn sign(key: &SvidKey, message: &[u8]) -> Result<Vec<u8>, SignError> {
    let (der, random) = (key.secret_pkcs8_der(), SystemRandom::new());
    for algorithm in [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING] {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(algorithm, der, &random) {
            return Ok(pair.sign(&random, message).map_err(|_| SignError)?.as_ref().to_vec());
        }
    }
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(pair.sign(message).as_ref().to_vec());
    }
    let pair = RsaKeyPair::from_pkcs8(der).map_err(|_| SignError)?;
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(|_| SignError)?;
    Ok(signature)
}

pub(crate) async fn bearer_token(path: &Path) -> Result<Zeroizing<String>, EvidenceError> {
    let bytes = Zeroizing::new(read(path).await?);
    let token = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    // It travels as it is: what could not be one token is shown to nobody.
    let plain = |c: char| c.is_ascii_graphic();
    match !token.is_empty() && token.chars().all(plain) {
        true => Ok(Zeroizing::new(token.to_owned())),
        false => Err(EvidenceError::NoToken(path.to_owned())),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, EvidenceError> {
    tokio::fs::read(path).await.map_err(|source| EvidenceError::Read { path: path.to_owned(), source })
}

/// Why there is nothing to show, or nobody to show it to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EvidenceError {
    #[error(transparent)]
    JoinToken(#[from] ReadTokenError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} holds no bearer token: one line of printable characters", .0.display())]
    NoToken(PathBuf),
    #[error("{} holds no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    #[error(
        "{} holds no private key that can be used; PKCS#8 is: openssl pkcs8 -topk8 -nocrypt -in KEY -out {}",
        path.display(), path.display()
    )]
    Key { path: PathBuf, source: KeyError },
    #[error("the key in {} is not that of the certificate in {}", .0.key.display(), .0.certificate.display())]
    OtherKey(MachineFiles),
    #[error("attest.rootFile {} holds no roots that can be used", path.display())]
    Roots { path: PathBuf, source: BundleError },
    #[error("the roots that this node holds cannot be used")]
    Held(#[source] BundleError),
    #[error("nothing says how the CA is known before this is shown to it: name its root in attest.rootFile")]
    NoAnchor,
}

/// The key made no signature that its certificate would prove.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the key makes no signature by which its certificate is proved")]
pub(crate) struct SignError;

#[cfg(test)]
mod tests {
    use alcazar_service::process::chain;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;
    use crate::testing::ca;

    fn sources(directory: &Path) -> Sources {
        let at = |name| directory.join(name);
        Sources {
            join_token: TokenSource::Absent,
            bearer_token: Some(at("token")),
            machine: Some(MachineFiles { certificate: at("machine.pem"), key: at("machine-key.pem") }),
            roots: Some(at("root.pem")),
        }
    }

    #[tokio::test]
    async fn each_kind_of_machine_key_signs_and_one_that_is_anothers_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let sources = sources(directory.path());
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let said = async || chain(&sources.read(Way::Machine).await.err().unwrap());
        assert!(said().await.starts_with("cannot read"), "{}", said().await);
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            write("machine.pem", &CertificateParams::default().self_signed(&key).unwrap().pem());
            write("machine-key.pem", &key.serialize_pem());
            let Ok(Evidence::Machine(holder)) = sources.read(Way::Machine).await else { panic!("{algorithm:?}") };
            let signature = holder.sign(b"message").unwrap();
            assert!(has_signed(&holder.chain[0], b"message", &signature));
            assert!(!has_signed(&holder.chain[0], b"another", &signature));
        }
        write("machine-key.pem", &KeyPair::generate().unwrap().serialize_pem());
        assert!(said().await.contains("is not that of the certificate"), "{}", said().await);
        write("machine-key.pem", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n");
        assert!(said().await.contains("openssl pkcs8"), "{}", said().await);
        write("machine.pem", "hello");
        assert!(said().await.contains("holds no certificate"), "{}", said().await);
    }

    #[tokio::test]
    async fn a_bearer_token_is_read_at_every_use_and_is_one_word() {
        let directory = tempfile::tempdir().unwrap();
        let sources = sources(directory.path());
        for (text, expected) in [("a.b.c\n", Some("a.b.c")), (" x.y ", Some("x.y")), ("", None), ("two words", None)] {
            std::fs::write(directory.path().join("token"), text).unwrap();
            let read = sources.read(Way::BearerToken).await;
            let token = match &read {
                Ok(Evidence::BearerToken(token)) => Some(token.as_str()),
                _ => None,
            };
            assert_eq!(token, expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn the_ca_is_known_by_what_is_held_and_the_file_and_else_by_the_pin() {
        let directory = tempfile::tempdir().unwrap();
        let mut sources = sources(directory.path());
        let now = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
        let (one, other) = (ca::Ca::new(now), ca::Ca::new(now));
        let trust_domain = ca::TRUST_DOMAIN.parse().unwrap();
        let roots =
            async |sources: &Sources, held: Option<&TrustBundles>| match sources.anchor(&trust_domain, held).await {
                Ok(Anchor::Roots(bundles)) => bundles.get(&trust_domain).unwrap().roots().len().to_string(),
                Ok(Anchor::Pin(pin)) => pin.to_string(),
                Err(error) => chain(&error),
            };
        let held = one.bundles();
        assert!(roots(&sources, None).await.starts_with("cannot read"));
        assert_eq!(roots(&sources, Some(&held)).await, "1", "a file that is missing takes nothing away");
        let bundle = other.bundles();
        std::fs::write(directory.path().join("root.pem"), bundle.get(&trust_domain).unwrap().to_pem()).unwrap();
        assert_eq!((roots(&sources, None).await, roots(&sources, Some(&held)).await), ("1".into(), "2".into()));
        std::fs::write(directory.path().join("root.pem"), "hello").unwrap();
        assert!(roots(&sources, None).await.contains("attest.rootFile"));
        sources.roots = None;
        assert!(roots(&sources, None).await.contains("name its root in attest.rootFile"));
        let pin = "0".repeat(64);
        sources.join_token = TokenSource::Given(Zeroizing::new(format!("alcazar-join-v1.x.{pin}")));
        assert_eq!(roots(&sources, None).await, pin);
    }
}
