//! A root that is kept away: made, and asked to sign, by a person.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, TrustDomain, rfc3339};
use alcazar_service::files::{private_directory, write_atomic};
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::{CeremonyError, IntermediateRequest, revoke::crl_pem, transcript};
use crate::{
    authority::{Authority, AuthorityInfo},
    hierarchy::pem,
    keys::{KeyAlgorithm, KeyLabel, KeyStore},
    records::text,
    revocation::CrlUrl,
    serial::Serial,
};

/// The folder of a root.
///
/// **Shape**: `root-cert.pem`, `root.json`, `transcript/`, `issued/` with each intermediate that it has signed, `revocations.pb` and
/// `ca-crl.pem` with those that it has taken back, and `root-key.pem` where the key is not in a token.
pub struct RootFolder {
    pub(super) folder: PathBuf,
    pub(super) about: About,
    pub(super) authority: Authority,
    pub(super) signer: Arc<dyn crate::signer::Signer>,
}

/// Where a root's key is, and its label there.
pub struct RootKey {
    /// The store.
    pub keys: Arc<dyn KeyStore>,
    /// Its label.
    pub label: KeyLabel,
}

/// What the certificate alone does not say.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct About {
    #[serde(with = "text")]
    pub(super) trust_domain: TrustDomain,
    key: String,
}

/// What is about to be signed. Its text is for a person to judge.
#[derive(Clone, Debug)]
pub struct Proposal {
    request: IntermediateRequest,
    root: AuthorityInfo,
    life: Duration,
    crl: Option<CrlUrl>,
    now: SystemTime,
}

/// What was signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The intermediate.
    pub intermediate: AuthorityInfo,
    /// The folder with the set.
    pub folder: PathBuf,
    /// The entry in the transcript.
    pub entry: PathBuf,
}

impl RootFolder {
    /// Makes a root in a folder of its own. Blocks.
    ///
    /// # Errors
    /// When something is there already, or the key store or the disk does not take it.
    pub fn init(
        folder: &Path,
        trust_domain: &TrustDomain,
        key: &RootKey,
        algorithm: KeyAlgorithm,
        life: Duration,
        now: SystemTime,
    ) -> Result<Self, CeremonyError> {
        if life < DAY || life > LONGEST {
            return Err(CeremonyError::Life(life.as_secs() / DAY.as_secs()));
        }
        match fs::read_dir(folder).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(CeremonyError::InUse(folder.into())),
            Ok(false) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(CeremonyError::io("list", folder)(error)),
        }
        private_directory(folder).map_err(CeremonyError::io("create", folder))?;
        let signer = key.keys.generate_with(&key.label, algorithm)?;
        let authority = Authority::root_for(trust_domain, signer.clone(), Serial::random()?, now, life)?;
        let about = About { trust_domain: trust_domain.clone(), key: key.label.to_string() };
        let text = serde_json::to_string_pretty(&about)
            .map_err(|error| CeremonyError::NotARoot { folder: folder.into(), what: error.to_string() })?;
        let certificate = pem(&authority.info().certificate);
        for (name, bytes) in [(ABOUT, text.as_bytes()), (CERTIFICATE, certificate.as_bytes())] {
            let path = folder.join(name);
            write_atomic(&path, bytes, 0o644).map_err(CeremonyError::io("write", &path))?;
        }
        let mut entry = transcript::describe("init", authority.info(), authority.info(), now);
        entry.trust_domain = trust_domain.to_string();
        transcript::append(folder, entry, &*signer)?;
        Ok(Self { folder: folder.into(), about, authority, signer })
    }

    /// The certificate of the root in a folder. Needs no key.
    ///
    /// # Errors
    /// When it is not the folder of a root.
    pub fn certificate(folder: &Path) -> Result<AuthorityInfo, CeremonyError> {
        let path = folder.join(CERTIFICATE);
        let wrong = |what: String| CeremonyError::NotARoot { folder: folder.into(), what };
        let text = fs::read(&path).map_err(|error| wrong(format!("{CERTIFICATE}: {error}")))?;
        let der = CertificateDer::from_pem_slice(&text).map_err(|error| wrong(format!("{CERTIFICATE}: {error}")))?;
        Ok(AuthorityInfo::parse(der)?)
    }

    /// The label of the root's key, and its trust domain. Needs no key.
    ///
    /// # Errors
    /// When it is not the folder of a root.
    pub fn about(folder: &Path) -> Result<(KeyLabel, TrustDomain), CeremonyError> {
        let about = read_about(folder)?;
        Ok((about.key.parse()?, about.trust_domain))
    }

    /// Opens a root, to sign with it. Blocks.
    ///
    /// # Errors
    /// When it is not the folder of a root, or its key is not to be had.
    pub fn open(folder: &Path, keys: &dyn KeyStore) -> Result<Self, CeremonyError> {
        let about = read_about(folder)?;
        let signer = keys.open(&about.key.parse()?)?;
        let authority = Authority::new(Self::certificate(folder)?.certificate, signer.clone())?;
        Ok(Self { folder: folder.into(), about, authority, signer })
    }

    /// What anybody may know of it.
    pub fn info(&self) -> &AuthorityInfo {
        self.authority.info()
    }

    /// Reads a request, and says what signing it would come to. With `crl` the certificate says that this root's CRL is found below
    /// that: a request has no say in it, as it comes from the machine that may be the next to be revoked.
    ///
    /// # Errors
    /// When it is not one that this root signs.
    pub fn propose(
        &self,
        file: &Path,
        life: Duration,
        crl: Option<CrlUrl>,
        now: SystemTime,
    ) -> Result<Proposal, CeremonyError> {
        let text = fs::read_to_string(file).map_err(CeremonyError::io("read", file))?;
        let request = IntermediateRequest::parse(file, &text)?;
        if request.trust_domain != self.about.trust_domain {
            let (found, expected) = (request.trust_domain, self.about.trust_domain.clone());
            return Err(CeremonyError::TrustDomain { found, expected });
        }
        if life < DAY || life > self.info().validity.remaining(now) {
            return Err(CeremonyError::Life(life.as_secs() / DAY.as_secs()));
        }
        Ok(Proposal { request, root: self.info().clone(), life, crl, now })
    }

    /// Signs what was proposed, writes the set into `out`, and notes it in the transcript. Blocks.
    ///
    /// # Errors
    /// When the key or the disk refuses.
    pub fn sign(&self, proposal: &Proposal, out: &Path) -> Result<Signed, CeremonyError> {
        let Proposal { request, life, crl, now, .. } = proposal;
        let root = Authority::new(self.info().certificate.clone(), self.signer.clone())?.published_at(crl.as_ref());
        let key = rcgen::SubjectPublicKeyInfo::from_der(&request.spki).map_err(CeremonyError::MakeRequest)?;
        let serial = Serial::random()?;
        let (domain, cluster) = (&request.trust_domain, &request.cluster);
        let made = Authority::certify(&root, domain, cluster, &key, serial, *now, *life)?;
        let made = AuthorityInfo::parse(made)?;
        // On record before anybody has it.
        let mut entry = transcript::describe("sign", self.info(), &made, *now);
        entry.trust_domain = domain.to_string();
        entry.cluster.clone_from(cluster);
        entry.request = transcript::sha256(&request.der);
        let entry = transcript::append(&self.folder, entry, &*self.signer)?;

        // What may have to be taken back one day.
        self.keep_issued(&made)?;
        let list = self.revocations(*now)?;
        let crl = crl_pem(&self.crl(&list, *now)?);
        fs::create_dir_all(out).map_err(CeremonyError::io("create", out))?;
        let (own, root) = (pem(&made.certificate), pem(&self.info().certificate));
        let files = [("root-cert.pem", &root), ("cert-chain.pem", &own), ("ca-cert.pem", &own), ("ca-crl.pem", &crl)];
        for (name, text) in files {
            let path = out.join(name);
            write_atomic(&path, text.as_bytes(), 0o644).map_err(CeremonyError::io("write", &path))?;
        }
        Ok(Signed { intermediate: made, folder: out.into(), entry })
    }
}

impl Proposal {
    /// The cluster that it is for.
    pub fn cluster(&self) -> &str {
        &self.request.cluster
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = &self.request;
        writeln!(f, "This root is about to sign the certificate authority of a cluster.")?;
        writeln!(f, "  trust domain   {}", request.trust_domain)?;
        writeln!(f, "  cluster        {}", request.cluster)?;
        writeln!(f, "  its key        SHA-256 {}", request.key_hash)?;
        writeln!(
            f,
            "  good until     {} ({} days)",
            rfc3339(self.now + self.life),
            self.life.as_secs() / DAY.as_secs()
        )?;
        writeln!(
            f,
            "  by the root    {}, good until {}",
            self.root.fingerprint,
            rfc3339(self.root.validity.not_after())
        )?;
        match &self.crl {
            Some(url) => writeln!(f, "  revocation     its CRL is at {}", url.of(self.root.fingerprint))?,
            None => writeln!(f, "  revocation     it names no CRL (--crl-url)")?,
        }
        writeln!(f, "Whoever holds that key can issue every identity of {} until then.", request.trust_domain)?;
        write!(f, "Compare the key with what `alcazar ca request` printed where the cluster's CA runs.")
    }
}

fn read_about(folder: &Path) -> Result<About, CeremonyError> {
    let wrong = |what: String| CeremonyError::NotARoot { folder: folder.into(), what };
    let text = fs::read(folder.join(ABOUT)).map_err(|error| wrong(format!("{ABOUT}: {error}")))?;
    serde_json::from_slice(&text).map_err(|error| wrong(format!("{ABOUT}: {error}")))
}

const CERTIFICATE: &str = "root-cert.pem";
const ABOUT: &str = "root.json";
const DAY: Duration = Duration::from_secs(24 * 3600);
const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
