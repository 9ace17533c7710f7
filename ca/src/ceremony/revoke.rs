//! Taking back an intermediate where the root is kept: the signed list for nodes and proxies, and the CRL for everybody else.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use alcazar_api::{
    ca::v1,
    revocations::{Keeper, encode_list, signed_list, to_be_signed},
};
use alcazar_identity::{
    CertificateDer, Fingerprint, ListIssuer, Revocation, RevocationList, RevocationReason, TrustBundle, TrustBundles,
    pem_block, rfc3339, stated_cluster,
};
use alcazar_service::files::{private_directory, write_atomic};
use prost::Message;
use rustls_pki_types::pem::PemObject;

use super::{CeremonyError, RootFolder, transcript, transcript::Entry};
use crate::{
    authority::AuthorityInfo,
    hierarchy::pem,
    issue::whole_seconds,
    records::seconds,
    revocation::{SKEW, crl, with_intermediate},
};

/// What is about to be taken back. Its text is for a person to judge.
#[derive(Clone, Debug)]
pub struct TakingBack {
    intermediate: AuthorityInfo,
    cluster: String,
    key: String,
    trust_domain: String,
    reason: RevocationReason,
    /// The entry of the transcript by which it was signed.
    signed_by: Option<Entry>,
    /// Whether nothing was signed for the cluster since.
    newest: bool,
    /// When it was taken back before, and why.
    before: Option<Revocation>,
    root: Fingerprint,
    now: SystemTime,
}

/// What was taken back.
#[derive(Clone, Debug)]
pub struct Revoked {
    /// The file to carry to each CA under the root.
    pub file: PathBuf,
    /// The same as a CRL, for others.
    pub crl: PathBuf,
    /// The entry in the transcript.
    pub entry: PathBuf,
}

impl RootFolder {
    /// Reads which intermediate is meant: its certificate in a file, or the SHA-256 of one that this root has signed; and says what
    /// taking it back would come to.
    ///
    /// # Errors
    /// When this root has not signed it, or what it has done cannot be read.
    pub fn propose_revocation(
        &self,
        which: &str,
        reason: RevocationReason,
        now: SystemTime,
    ) -> Result<TakingBack, CeremonyError> {
        let intermediate = self.find_issued(which)?;
        let refused = |mend| CeremonyError::NotOurs { what: which.to_owned(), mend };
        if intermediate.fingerprint == self.info().fingerprint {
            return Err(refused("it is this root itself, which is left by `alcazar root rotate`"));
        }
        if !intermediate.is_signed_by(self.info()) {
            return Err(refused("take it back with the root that has signed it"));
        }
        let entries = transcript::verify(&self.folder, &self.info().certificate)?;
        let print = intermediate.fingerprint.to_string();
        let signs: Vec<Entry> = entries.into_iter().filter(|entry| entry.act == "sign").collect();
        let signed_by = signs.iter().find(|entry| entry.certificate == print).cloned();
        let since = |by: &Entry| signs.iter().any(|entry| entry.number > by.number && entry.cluster == by.cluster);
        let stated = || stated_cluster(&intermediate.certificate, &self.about.trust_domain).unwrap_or_default();
        Ok(TakingBack {
            newest: signed_by.as_ref().is_some_and(|by| !since(by)),
            cluster: signed_by.as_ref().map_or_else(stated, |by| by.cluster.clone()),
            key: intermediate.key_hash().map(|hash| hash.to_string()).unwrap_or_default(),
            trust_domain: self.about.trust_domain.to_string(),
            before: self.revocations(now)?.intermediate(intermediate.fingerprint),
            intermediate,
            reason,
            signed_by,
            root: self.info().fingerprint,
            now,
        })
    }

    /// Takes back what was proposed: notes it in the transcript, signs the list that says so besides all that was said before, and
    /// makes the CRL. Blocks.
    ///
    /// # Errors
    /// When the key or the disk refuses.
    pub fn revoke(&self, taking: &TakingBack) -> Result<Revoked, CeremonyError> {
        let TakingBack { intermediate, reason, now, .. } = taking;
        self.keep_issued(intermediate)?;
        let earlier = self.revocations(*now)?;
        let until = intermediate.validity.not_after() + SKEW;
        let revocation = Revocation { reason: *reason, since: whole_seconds(*now), until };
        let empty = |version| self.empty_list(version);
        let list = with_intermediate(&[&earlier], empty, (intermediate.fingerprint, revocation), *now);

        // On record before anybody has it.
        let mut entry = transcript::describe("revoke", self.info(), intermediate, *now);
        entry.trust_domain.clone_from(&taking.trust_domain);
        entry.cluster.clone_from(&taking.cluster);
        entry.reason = reason.to_string();
        let entry = transcript::append(&self.folder, entry, &*self.signer)?;

        let encoded = encode_list(&list, *now);
        let signature = self.signer.sign(&to_be_signed(&encoded))?;
        let chain = vec![self.info().certificate.to_vec()];
        let crl = self.crl(&list, *now)?;
        let carried = v1::RevocationLists {
            force: false,
            lists: vec![v1::SignedRevocationList { list: encoded, signature, chain }],
            crls: vec![crl.clone()],
        };
        let (file, readable) = (self.folder.join(REVOCATIONS), self.folder.join(CRL));
        for (path, bytes) in [(&file, carried.encode_to_vec()), (&readable, crl_pem(&crl).into_bytes())] {
            write_atomic(path, &bytes, 0o644).map_err(CeremonyError::io("write", path))?;
        }
        Ok(Revoked { file, crl: readable, entry })
    }

    fn empty_list(&self, version: u64) -> RevocationList {
        RevocationList::new(self.about.trust_domain.clone(), ListIssuer::Root(self.info().fingerprint), version)
    }

    /// The list that this root signed last, checked as everybody checks it; empty where it never took anything back.
    pub(super) fn revocations(&self, now: SystemTime) -> Result<RevocationList, CeremonyError> {
        let file = self.folder.join(REVOCATIONS);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.empty_list(0)),
            Err(error) => return Err(CeremonyError::io("read", &file)(error)),
        };
        let wrong = |what: String| CeremonyError::Revocations { file: file.clone(), what };
        let read = v1::RevocationLists::decode(bytes.as_slice()).map_err(|error| wrong(error.to_string()))?;
        let [signed] = read.lists.as_slice() else { return Err(wrong("it holds no single list".into())) };
        let root = self.info().certificate.clone();
        let bundle = TrustBundle::new(self.about.trust_domain.clone(), 1, [root]);
        let bundles = TrustBundles::from(bundle.map_err(|error| wrong(error.to_string()))?);
        let shown = v1::SignedRevocations { lists: vec![signed.clone()] };
        if let Some(refused) = Keeper::default().take(&shown, &bundles, now).refused.into_iter().next() {
            return Err(wrong(alcazar_service::process::chain(&refused)));
        }
        signed_list(signed).map_err(|error| wrong(error.to_string()))
    }

    /// The CRL that says what a list says, good for a year, and no longer than the root.
    pub(super) fn crl(&self, list: &RevocationList, now: SystemTime) -> Result<Vec<u8>, CeremonyError> {
        let mut revoked = BTreeMap::new();
        for (print, revocation) in list.intermediates() {
            if let Some(serial) = crl::serial_of(&self.find_issued(&print.to_string())?) {
                revoked.insert(serial, revocation);
            }
        }
        let until = (now + CRL_LIFE).min(self.info().validity.not_after());
        Ok(crl::encode(&self.authority, revoked, seconds::of(now), now, until)?)
    }

    /// Keeps the certificate of an intermediate: to take it back its serial number is needed.
    pub(super) fn keep_issued(&self, intermediate: &AuthorityInfo) -> Result<(), CeremonyError> {
        let folder = self.folder.join(ISSUED);
        private_directory(&folder).map_err(CeremonyError::io("create", &folder))?;
        let path = folder.join(format!("{}.pem", intermediate.fingerprint));
        let text = pem(&intermediate.certificate);
        write_atomic(&path, text.as_bytes(), 0o644).map_err(CeremonyError::io("write", &path))
    }

    fn find_issued(&self, which: &str) -> Result<AuthorityInfo, CeremonyError> {
        let refused = |mend| CeremonyError::NotOurs { what: which.to_owned(), mend };
        let print = which.parse::<Fingerprint>().ok();
        let path = match print {
            Some(print) => self.folder.join(ISSUED).join(format!("{print}.pem")),
            None => Path::new(which).to_owned(),
        };
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && print.is_some() => {
                return Err(refused("its certificate is not in this folder: give the file, as ca-cert.pem of its set"));
            }
            outcome => outcome.map_err(CeremonyError::io("read", &path))?,
        };
        let der = CertificateDer::from_pem_slice(&text).map_err(|_reason| refused("give a certificate in PEM"))?;
        Ok(AuthorityInfo::parse(der)?)
    }
}

impl fmt::Display for TakingBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let validity = self.intermediate.validity;
        writeln!(f, "This root is about to take back the certificate authority of a cluster, for good.")?;
        writeln!(f, "  trust domain   {}", self.trust_domain)?;
        writeln!(f, "  cluster        {}", if self.cluster.is_empty() { "(it names none)" } else { &self.cluster })?;
        writeln!(f, "  certificate    SHA-256 {}", self.intermediate.fingerprint)?;
        writeln!(f, "  its key        SHA-256 {}", self.key)?;
        writeln!(f, "  good until     {}", rfc3339(validity.not_after()))?;
        match &self.signed_by {
            Some(entry) => writeln!(f, "  signed         {}, entry {} of the transcript", entry.time, entry.number)?,
            None => writeln!(f, "  signed         NOT IN THE TRANSCRIPT: this root's key was used without it")?,
        }
        writeln!(f, "  reason         {}", self.reason)?;
        writeln!(f, "  by the root    {}", self.root)?;
        if self.newest {
            writeln!(f, "Nothing was signed for this cluster since. Is it the one that you mean?")?;
        }
        if let Some(before) = self.before {
            writeln!(f, "It was taken back before, {} ({}): that stays.", rfc3339(before.since), before.reason)?;
        }
        if validity.not_after() < self.now {
            writeln!(f, "It is over anyhow: nobody believes it any more.")?;
        }
        write!(
            f,
            "Everything under it is refused by whoever hears of it. A CA that still signs with it does not take the list: \
             ask for another intermediate there, sign and install it first."
        )
    }
}

/// A CRL as one PEM block.
pub(super) fn crl_pem(der: &[u8]) -> String {
    pem_block("X509 CRL", der)
}

/// The list, as it is carried to each CA.
pub const REVOCATIONS: &str = "revocations.pb";
const CRL: &str = "ca-crl.pem";
const ISSUED: &str = "issued";
/// An intermediate asks for the next at half of its year, and its set brings the next CRL.
const CRL_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
