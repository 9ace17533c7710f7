//! The folder of a replica that has no root of its own: its intermediate came from another replica.
//!
//! ```text
//! intermediate-<id>.joining            what was asked for, with the key that waits for it
//! intermediate-<id>.pem                what was given for it
//! intermediate-shared-<id>.pem         what another replica signs with too
//! shares-<label>                       the same, where the key is another's in a token that both have
//! root-elsewhere-<fingerprint>.pem     the root above it, whose key is not here
//! ```

use std::{fs, io, path::PathBuf, time::SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint, TrustDomain};
use alcazar_service::files::write_atomic;
use zeroize::Zeroizing;

use super::{
    HierarchyError, HierarchyFiles, Renewal, Signing,
    files::Remembered,
    folder::{Held, Sort, io_error},
    trust::TrustState,
};
use crate::{
    authority::{Authority, AuthorityError, AuthorityInfo},
    ceremony::certificate_request,
    csr::{Csr, KeyHash},
    keys::KeyLabel,
    serial::Serial,
};

/// How a folder stands to the state that replicas share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has what it needs to sign, or is to say what is missing.
    Whole,
    /// Neither here nor in the store is anything: whoever is first makes a root.
    First,
    /// Others have a hierarchy, and nothing here is of it.
    Joins,
}

/// An intermediate that another replica gave.
pub(crate) struct Given {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) key: GivenKey,
}

/// Where its key is.
pub(crate) enum GivenKey {
    /// Here, as it was asked for.
    Asked(KeyLabel),
    /// It came along.
    Pkcs8(Zeroizing<Vec<u8>>),
    /// In the token that both have.
    Token(KeyLabel),
}

/// What this replica can give to another that joins.
pub(crate) enum Gift {
    /// A certificate for its key.
    Certificate { chain: Vec<CertificateDer<'static>>, root: CertificateDer<'static> },
    /// What signs here, with its key.
    Shared { chain: Vec<CertificateDer<'static>>, root: CertificateDer<'static>, key: SharedKey },
}

/// The key of an intermediate that is shared.
pub(crate) enum SharedKey {
    Pkcs8(Zeroizing<Vec<u8>>),
    Label(KeyLabel),
}

impl HierarchyFiles {
    /// How this folder stands to what the store remembers.
    pub(crate) fn standing(&self, remembered: &Remembered, now: SystemTime) -> Result<Standing, HierarchyError> {
        if !self.shared || self.plugged.folder()?.is_some() {
            return Ok(Standing::Whole);
        }
        let Some(trust) = &remembered.trust else {
            let nothing = remembered.root.is_none() && (!self.folder.exists()? || self.folder.is_empty()?);
            return Ok(if nothing { Standing::First } else { Standing::Whole });
        };
        let own_root = |held: &Held| !held.is_elsewhere() && trust.trusts(held.info.fingerprint);
        if self.folder.held(Sort::Root)?.iter().any(own_root) {
            return Ok(Standing::Whole);
        }
        let roots = trust.infos()?;
        let good = |held: &Held| held.info.validity.contains(now) && self.is_ours(&held.info, &roots).is_some();
        let whole = self.folder.held(Sort::Intermediate)?.iter().any(good);
        Ok(if whole { Standing::Whole } else { Standing::Joins })
    }

    /// The root above an intermediate of this cluster, if it is one of these.
    fn is_ours<'a>(&self, info: &AuthorityInfo, roots: &'a [AuthorityInfo]) -> Option<&'a AuthorityInfo> {
        if !info.is_of(&self.trust_domain) || !info.is_for(&self.cluster) {
            return None;
        }
        roots.iter().find(|root| info.is_signed_by(root))
    }

    /// The request of this replica, with the label of its key: the same until it is answered.
    pub(crate) fn joining_request(&self) -> Result<(KeyLabel, String), HierarchyError> {
        self.folder.make()?;
        for label in self.joining()? {
            if self.folder.file(&label).exists() {
                self.remove_joining(&label)?;
                continue;
            }
            let path = self.joining_file(&label);
            let pem = fs::read_to_string(&path).map_err(|source| io_error("read", &path, source))?;
            return Ok((label, pem));
        }
        let label = KeyLabel::random(Sort::Intermediate.as_str())?;
        self.folder.begin(&label)?;
        let signer = self.keys.generate(&label)?;
        let made = certificate_request(&self.trust_domain, &self.cluster, signer).and_then(|request| request.pem());
        let pem = made.map_err(|source| HierarchyError::Make(AuthorityError::Sign(source)))?;
        let path = self.joining_file(&label);
        write_atomic(&path, pem.as_bytes(), 0o644).map_err(|source| io_error("write", &path, source))?;
        self.folder.finish(&label)?;
        Ok((label, pem))
    }

    /// Signs what another replica asks for, under a root whose key is here; `None` where it is not.
    pub(crate) fn certify(
        &self,
        root: Fingerprint,
        spki: &[u8],
        now: SystemTime,
    ) -> Result<Option<Gift>, HierarchyError> {
        let Some(root) = self.root_at_hand(root, now)? else { return Ok(None) };
        let make = |source| HierarchyError::Make(AuthorityError::Sign(source));
        let key = rcgen::SubjectPublicKeyInfo::from_der(spki).map_err(make)?;
        let made = Authority::certify(
            &root,
            &self.trust_domain,
            &self.cluster,
            &key,
            Serial::random()?,
            now,
            crate::authority::INTERMEDIATE_LIFE,
        );
        let made = made.map_err(HierarchyError::Make)?;
        Ok(Some(Gift::Certificate { chain: vec![made], root: root.info().certificate.clone() }))
    }

    /// A root whose key is here, if it is.
    fn root_at_hand(&self, root: Fingerprint, now: SystemTime) -> Result<Option<Authority>, HierarchyError> {
        let held = self.folder.held(Sort::Root)?;
        if let Some(held) = held.iter().find(|held| held.info.fingerprint == root && !held.is_elsewhere()) {
            return self.root_authority(held).map(Some);
        }
        Ok(self.plugged_root(now)?.filter(|plugged| plugged.info().fingerprint == root))
    }

    /// The roots that were made here: their keys are.
    pub(crate) fn own_roots(&self) -> Result<Vec<AuthorityInfo>, HierarchyError> {
        let held = self.folder.held(Sort::Root)?.into_iter().filter(|held| !held.is_elsewhere());
        Ok(held.map(|held| held.info).collect())
    }

    /// Whether the key of a root is here.
    pub(crate) fn can_certify(&self, root: Fingerprint, now: SystemTime) -> bool {
        matches!(self.root_at_hand(root, now), Ok(Some(_)))
    }

    /// What signs here, for another to sign with too; `None` where its key cannot be given away, or it is not directly under a
    /// root.
    pub(crate) fn share(&self, signing: &Signing) -> Result<Option<Gift>, HierarchyError> {
        let info = signing.authority.info();
        if signing.upper.len() != 1 || !info.is_signed_by(&signing.root) {
            return Ok(None);
        }
        let held = self.folder.held(Sort::Intermediate)?.into_iter().find(|held| held.info == *info);
        let label = match held {
            Some(held) => Some(held.label),
            // It was asked for by a person, and what came is plugged in.
            None => {
                let hash = info.key_hash();
                self.folder.requests()?.into_iter().find(|(_, found)| Some(*found) == hash).map(|(label, _)| label)
            }
        };
        let Some(label) = label else { return Ok(None) };
        let key = match self.keys.export(&label)? {
            Some(pkcs8) => SharedKey::Pkcs8(pkcs8),
            None if self.keys.is_shared() => SharedKey::Label(label),
            None => return Ok(None),
        };
        let (chain, root) = (signing.upper.clone(), signing.root.certificate.clone());
        Ok(Some(Gift::Shared { chain, root, key }))
    }

    /// Checks what another replica gave, and keeps it; nothing signs with it yet.
    pub(crate) fn hold_given(
        &self,
        given: Given,
        trust: &TrustState,
        now: SystemTime,
    ) -> Result<AuthorityInfo, HierarchyError> {
        let refused = |what: &str| HierarchyError::Given { what: what.into() };
        let [certificate] = given.chain.as_slice() else {
            return Err(refused("there is more than one certificate between it and its root"));
        };
        let parse = |der: &CertificateDer<'static>| AuthorityInfo::parse(der.clone()).map_err(HierarchyError::Make);
        let (info, root) = (parse(certificate)?, parse(&given.root)?);
        if !trust.trusts(root.fingerprint) {
            return Err(refused("its root is not trusted"));
        }
        if self.is_ours(&info, std::slice::from_ref(&root)).is_none() {
            return Err(refused("it is not an intermediate of this trust domain and cluster by its root"));
        }
        if !info.validity.contains(now) {
            return Err(refused("it is not good at this moment, by the clock here"));
        }
        // Gone back to, in an order in which both are there.
        if !matches!(given.key, GivenKey::Asked(_)) && self.folder.has_intermediate(info.fingerprint) {
            return Ok(info);
        }
        let (label, signer) = match &given.key {
            GivenKey::Asked(label) | GivenKey::Token(label) => (label.clone(), self.keys.open(label)?),
            GivenKey::Pkcs8(pkcs8) => {
                let label = KeyLabel::random(SHARED)?;
                self.folder.begin(&label)?;
                let signer = self.keys.import(&label, pkcs8)?;
                (label, signer)
            }
        };
        let authority = match Authority::new(info.certificate.clone(), signer) {
            Ok(authority) => authority,
            Err(source) => {
                if matches!(given.key, GivenKey::Pkcs8(_)) {
                    self.keys.remove(&label)?;
                    self.folder.finish(&label)?;
                }
                return Err(HierarchyError::Make(source));
            }
        };
        let signing = Signing::new(authority, given.chain.clone(), root.clone(), Renewal::Itself)
            .map_err(HierarchyError::Make)?;
        self.try_out(self.folder.path(), trust, &signing)?;
        // The root first: an intermediate whose root is nowhere would be damage.
        self.hold_root_elsewhere(&root)?;
        if matches!(given.key, GivenKey::Token(_)) {
            self.folder.note_another(&label)?;
        }
        self.folder.write(&label, &given.chain)?;
        self.folder.finish(&label)?;
        self.remove_joining(&label)?;
        Ok(info)
    }

    /// The keys for which a certificate was asked of another replica.
    fn joining(&self) -> Result<Vec<KeyLabel>, HierarchyError> {
        let failed = |source| io_error("list", self.folder.path(), source);
        let mut labels = Vec::new();
        for entry in fs::read_dir(self.folder.path()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            labels.extend(name.to_str().and_then(|name| name.strip_suffix(JOINING)?.parse().ok()));
        }
        Ok(labels)
    }

    fn joining_file(&self, label: &KeyLabel) -> PathBuf {
        self.folder.path().join(format!("{label}{JOINING}"))
    }

    fn remove_joining(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        let path = self.joining_file(label);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn hold_root_elsewhere(&self, root: &AuthorityInfo) -> Result<(), HierarchyError> {
        if self.folder.held(Sort::Root)?.iter().any(|held| held.info == *root) {
            return Ok(());
        }
        let id: String = root.fingerprint.to_string().chars().take(16).collect();
        let label = format!("{ELSEWHERE}{id}").parse().map_err(HierarchyError::Label)?;
        self.folder.write(&label, std::slice::from_ref(&root.certificate))
    }

    /// How what signs here stands, as far as other replicas are concerned: what is made or plugged in here is none of theirs.
    pub(crate) fn condition(&self, signing: &Signing, now: SystemTime) -> Result<Condition, HierarchyError> {
        let info = signing.authority.info();
        let held = self.folder.held(Sort::Intermediate)?.into_iter().find(|held| held.info == *info);
        let Some(held) = held else { return Ok(Condition::Good) };
        let roots = self.folder.held(Sort::Root)?;
        if roots.iter().any(|root| root.info == signing.root && !root.is_elsewhere()) {
            return Ok(Condition::Good);
        }
        let old = info.validity.remaining(now) <= info.validity.lifetime() / 2;
        let bounded = signing.root.validity.not_after() <= info.validity.not_after();
        Ok(match (self.is_shared(&held), old && !bounded) {
            (true, _) => Condition::Shared,
            (false, true) => Condition::Old,
            (false, false) => Condition::Good,
        })
    }

    /// Whether another replica gave it with its key, and signs with it too.
    pub(super) fn is_shared(&self, held: &Held) -> bool {
        held.label.as_str().starts_with(SHARED) || self.folder.is_of_another(&held.label)
    }

    /// Every intermediate here with its root, and the roots whose keys are here.
    pub(crate) fn holdings(&self, signing: &Signing, trusted: &[AuthorityInfo]) -> Result<Holdings, HierarchyError> {
        let roots = self.folder.held(Sort::Root)?;
        let signs = signing.authority.info().fingerprint;
        let (mut held, mut made_here) = (Vec::new(), false);
        for found in self.folder.held(Sort::Intermediate)? {
            made_here |= found.info.fingerprint == signs && found.root.is_none();
            let mut all = roots.iter().map(|root| &root.info).chain(trusted);
            let above = all.find(|root| found.info.is_signed_by(root));
            held.extend(above.map(|root| (found.info.fingerprint, root.fingerprint)));
        }
        let own = roots.iter().filter(|root| !root.is_elsewhere()).map(|root| root.info.fingerprint);
        let mut own: Vec<_> = own.collect();
        // A root that is plugged in with its key has signed an intermediate that lies here; beside one that was signed elsewhere lies
        // its root.
        if self.plugged.folder()?.is_some() && made_here {
            own.push(signing.root.fingerprint);
        }
        Ok(Holdings { intermediates: held, roots: own })
    }
}

/// What a replica could sign with.
#[derive(Debug)]
pub(crate) struct Holdings {
    /// Each with its root.
    pub(crate) intermediates: Vec<(Fingerprint, Fingerprint)>,
    /// Those whose keys are here.
    pub(crate) roots: Vec<Fingerprint>,
}

/// How an intermediate stands that another replica gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Good,
    /// Past half of its life, and a younger one would live longer.
    Old,
    /// Another replica signs with it too, whatever its age.
    Shared,
}

impl Held {
    /// Whether it is a root whose key is with another replica.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.label.as_str().starts_with(ELSEWHERE)
    }
}

/// A request that another replica made, as far as it can be judged without the root.
pub(crate) fn check_request(
    pem: &str,
    trust_domain: &TrustDomain,
    cluster: &str,
) -> Result<(Vec<u8>, KeyHash), HierarchyError> {
    let refused = |what: String| HierarchyError::Asked { what };
    let csr = Csr::from_pem(pem).map_err(|error| refused(error.to_string()))?;
    let request = crate::ceremony::IntermediateRequest::parse(std::path::Path::new("request"), pem);
    let request = request.map_err(|error| refused(error.to_string()))?;
    if request.trust_domain != *trust_domain || request.cluster != cluster {
        return Err(refused(format!("it is for the cluster {} of {}", request.cluster, request.trust_domain)));
    }
    Ok((csr.spki().to_vec(), csr.key_hash()))
}

const ELSEWHERE: &str = "root-elsewhere-";
const SHARED: &str = "intermediate-shared";
const JOINING: &str = ".joining";
