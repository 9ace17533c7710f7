//! What a set of files amounts to, as a function of its bytes.

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint, TrustDomain, Validity};
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    prelude::FromDer,
    public_key::PublicKey,
    revocation_list::CertificateRevocationList,
};

use super::{
    CacertsError, CacertsFiles,
    read::{CA_CERT, CA_CRL, CA_CRT, CA_KEY, CERT_CHAIN, ROOT_CERT, TLS_CRT, TLS_KEY},
};
use crate::{authority::AuthorityInfo, csr::KeyHash, keys::parse_key};

/// A set of files that fit.
pub struct PluggedIn {
    /// The CA's own certificate, and those above it up to the root, which is not among them; of a root, itself alone.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root that the chain leads to.
    pub root: AuthorityInfo,
    /// Every root that is to be trusted, that one first.
    pub roots: Vec<AuthorityInfo>,
    /// The CA's key; `None` where it is held in the key store.
    pub key: Option<KeyPair>,
    /// Whether the CA's own certificate is the root itself: then it signs an intermediate for this cluster.
    pub is_root: bool,
    /// What a person may want to mend, though it works.
    pub warnings: Vec<String>,
}

/// Checks a set; `held` are the keys in the key store for which certificates were asked, and `passphrase` opens an encrypted key.
///
/// # Errors
/// When something does not fit. The error says which file, what, and how to mend it.
pub fn check(
    files: &CacertsFiles,
    held: &[KeyHash],
    passphrase: Option<&[u8]>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<PluggedIn, CacertsError> {
    let names = Names::of(files)?;
    let (own, mut above) = {
        let mut own = certificates(files, names.certificate)?;
        let first = own.remove(0);
        (first, own)
    };
    if names.chain != names.certificate {
        above.extend(certificates(files, names.chain)?);
    }
    let roots = certificates(files, names.roots)?;
    let mut warnings = Vec::new();

    own.authority()?;
    let (path, root) = path(&own, &above, &roots, &names)?;
    let is_root = path.is_empty();
    for (below, certificate) in path.iter().chain([&root]).enumerate() {
        certificate.check(now, if is_root { 1 } else { below })?;
    }
    // Of a chain that is longer than one, the intermediate that issues is bound to the trust domain.
    own.of(trust_domain)?;
    let key = own_key(files, &names, held, passphrase, &own, above.iter().chain(&roots))?;
    not_revoked(files, &path, &root)?;
    let mut trusted = vec![root.info.clone()];
    for other in &roots {
        if other.info == root.info || trusted.contains(&other.info) {
            continue;
        }
        match other.check(now, 1) {
            Ok(()) => trusted.push(other.info.clone()),
            Err(error) => warnings.push(format!("a root is left out: {error}")),
        }
    }
    let chain =
        if is_root { vec![own.info.certificate] } else { path.into_iter().map(|link| link.info.certificate).collect() };
    Ok(PluggedIn { chain, root: root.info, roots: trusted, key, is_root, warnings })
}

/// Which files the set consists of.
struct Names {
    certificate: &'static str,
    key: &'static str,
    chain: &'static str,
    roots: &'static str,
}

impl Names {
    fn of(files: &CacertsFiles) -> Result<Self, CacertsError> {
        let first = |names: &[&'static str]| names.iter().copied().find(|name| files.has(name));
        let istio = first(&[CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN]);
        let tls = first(&[TLS_CRT, TLS_KEY, CA_CRT]);
        let (names, beside) = match (istio, tls) {
            (Some(one), Some(other)) => return Err(CacertsError::TwoSets { one, other }),
            (Some(beside), None) => {
                (Self { certificate: CA_CERT, key: CA_KEY, chain: CERT_CHAIN, roots: ROOT_CERT }, beside)
            }
            (None, Some(beside)) => {
                (Self { certificate: TLS_CRT, key: TLS_KEY, chain: TLS_CRT, roots: CA_CRT }, beside)
            }
            (None, None) => return Err(CacertsError::Nothing),
        };
        let needed = [
            (names.certificate, "it is the CA's own certificate"),
            (
                names.chain,
                "it holds the certificates from the CA's own up to the root; with none between, copy ca-cert.pem",
            ),
            (names.roots, "it holds the root, which everybody is to trust"),
        ];
        for (file, mend) in needed {
            if !files.has(file) {
                return Err(CacertsError::Missing { file, beside, mend });
            }
        }
        Ok(names)
    }
}

/// A certificate of the set, and where it stands.
#[derive(Clone)]
struct Link {
    file: &'static str,
    info: AuthorityInfo,
    subject: String,
    issuer: String,
}

impl Link {
    fn parsed(&self) -> Result<X509Certificate<'_>, CacertsError> {
        let malformed = CacertsError::Malformed { file: self.file, number: 1 };
        X509Certificate::from_der(&self.info.certificate).map(|(_, parsed)| parsed).map_err(|_reason| malformed)
    }

    /// That it may issue at all.
    fn authority(&self) -> Result<(), CacertsError> {
        let refused = || CacertsError::NotACa { file: self.file, subject: self.subject.clone() };
        AuthorityInfo::parse(self.info.certificate.clone()).map(drop).map_err(|_reason| refused())
    }

    /// That it may stand in a path with this many authorities below it, now.
    fn check(&self, now: SystemTime, below: usize) -> Result<(), CacertsError> {
        self.authority()?;
        let (file, subject) = (self.file, self.subject.clone());
        if !self.info.validity.contains(now) {
            return Err(CacertsError::NotGood { file, subject, validity: self.info.validity, now });
        }
        let parsed = self.parsed()?;
        if let Some(what) = weakness(&parsed) {
            return Err(CacertsError::Weak { file, subject, what });
        }
        let allowed = parsed.basic_constraints().ok().flatten().and_then(|found| found.value.path_len_constraint);
        if let Some(allowed) = allowed.filter(|allowed| usize::try_from(*allowed).is_ok_and(|allowed| allowed < below))
        {
            return Err(CacertsError::PathLength { file, subject, allowed, below });
        }
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::NameConstraints(constraints) => {
                    let all = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
                    let mut bases = all.into_iter().flatten().flatten().map(|subtree| &subtree.base);
                    if bases.any(|base| matches!(base, GeneralName::URI(_))) {
                        return Err(CacertsError::NameConstraints { file, subject });
                    }
                }
                ParsedExtension::ExtendedKeyUsage(usage) if !(usage.server_auth && usage.client_auth || usage.any) => {
                    return Err(CacertsError::Purpose { file, subject });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// That it names no other trust domain.
    fn of(&self, expected: &TrustDomain) -> Result<(), CacertsError> {
        let parsed = self.parsed()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let uris: Vec<_> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        if uris.is_empty() || uris == [expected.to_uri()] {
            return Ok(());
        }
        let (subject, found) = (self.subject.clone(), uris.join(", "));
        Err(CacertsError::TrustDomain { file: self.file, subject, found, expected: expected.clone() })
    }

    fn is_issued_by(&self, other: &Self) -> bool {
        self.info.is_signed_by(&other.info)
    }
}

/// The certificates of a file, at least one.
fn certificates(files: &CacertsFiles, file: &'static str) -> Result<Vec<Link>, CacertsError> {
    let text = files.text(file)?.unwrap_or_default();
    // What stands between blocks means nothing; another kind of block, or one that does not end, is a mistake.
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, body) = after.split_once("-----").ok_or(CacertsError::NotPem { file })?;
        if label != "CERTIFICATE" {
            return Err(CacertsError::Block { file, label: label.chars().take(40).collect() });
        }
        rest = body.split_once("-----END CERTIFICATE-----").ok_or(CacertsError::NotPem { file })?.1;
    }
    let mut links = Vec::new();
    for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let der = der.map_err(|_reason| CacertsError::NotPem { file })?;
        let malformed = || CacertsError::Malformed { file, number: links.len() + 1 };
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|_reason| malformed())?;
        let at = |seconds: i64| {
            u64::try_from(seconds).ok().and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)))
        };
        let dates = parsed.validity();
        let validity = at(dates.not_before.timestamp())
            .zip(at(dates.not_after.timestamp()))
            .and_then(|(from, to)| Validity::new(from, to))
            .filter(|_| rest.is_empty())
            .ok_or_else(malformed)?;
        let (subject, issuer) = (parsed.subject().to_string(), parsed.issuer().to_string());
        let info = AuthorityInfo { fingerprint: Fingerprint::of(&der), validity, certificate: der };
        links.push(Link { file, info, subject, issuer });
    }
    if links.is_empty() {
        let blank = text.trim().is_empty();
        return Err(if blank { CacertsError::Empty { file } } else { CacertsError::NotPem { file } });
    }
    Ok(links)
}

/// The key of the CA's own certificate; `None` where the key store holds it.
fn own_key<'a>(
    files: &CacertsFiles,
    names: &Names,
    held: &[KeyHash],
    passphrase: Option<&[u8]>,
    own: &Link,
    mut others: impl Iterator<Item = &'a Link>,
) -> Result<Option<KeyPair>, CacertsError> {
    let spki = own.parsed()?.public_key().raw.to_vec();
    let Some(text) = files.text(names.key)? else {
        if held.contains(&KeyHash::of(&spki)) {
            return Ok(None);
        }
        return Err(CacertsError::NoKey { key: names.key, certificate: names.certificate });
    };
    let parsed = parse_key(text, passphrase).map_err(|source| CacertsError::Key { file: names.key, source })?;
    let public = parsed.key.subject_public_key_info();
    if public == spki {
        return Ok(Some(parsed.key));
    }
    let owner = others.find(|other| other.parsed().is_ok_and(|parsed| parsed.public_key().raw == public));
    let hint = owner.map_or_else(String::new, |owner| format!("; it is that of {} in {}", owner.subject, owner.file));
    Err(CacertsError::KeyMismatch { key: names.key, certificate: names.certificate, hint })
}

/// The path from the CA's own certificate to a root, which is not in it; empty where it is the root itself.
fn path(own: &Link, above: &[Link], roots: &[Link], names: &Names) -> Result<(Vec<Link>, Link), CacertsError> {
    if let Some(root) = roots.iter().find(|root| root.info == own.info) {
        return Ok((Vec::new(), root.clone()));
    }
    let mut path = vec![own.clone()];
    loop {
        let Some(last) = path.last() else { return Err(CacertsError::Empty { file: names.certificate }) };
        if let Some(root) = roots.iter().find(|root| last.is_issued_by(root)) {
            return Ok((path, root.clone()));
        }
        if path.len() >= DEEPEST {
            return Err(CacertsError::TooDeep { chain: names.chain, limit: DEEPEST });
        }
        let next = above.iter().find(|next| last.is_issued_by(next) && path.iter().all(|link| link.info != next.info));
        let Some(next) = next else {
            let (subject, issuer) = (last.subject.clone(), last.issuer.clone());
            let (chain, roots) = (names.chain, names.roots);
            return Err(CacertsError::Unchained { file: last.file, subject, issuer, chain, roots });
        };
        path.push(next.clone());
    }
}

/// webpki goes through six intermediates.
const DEEPEST: usize = 6;

/// What does not last in a certificate's key or signature.
pub(crate) fn weakness(certificate: &X509Certificate<'_>) -> Option<String> {
    let key = certificate.public_key();
    let kind = &key.algorithm.algorithm;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if *kind == OID_PKCS1_RSAENCRYPTION {
        let bits = match key.parsed() {
            Ok(PublicKey::RSA(rsa)) => rsa.key_size(),
            _ => 0,
        };
        if !(2048..=8192).contains(&bits) {
            return Some(format!("an RSA key of {bits} bits"));
        }
    } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = curve.map_or_else(|| "an unnamed curve".into(), |curve| curve.to_id_string());
        if curve != OID_EC_P256.to_id_string() && curve != OID_NIST_EC_P384.to_id_string() {
            return Some(format!("an EC key on {curve}"));
        }
    } else if *kind != OID_SIG_ED25519 {
        return Some(format!("a key of the kind {}", kind.to_id_string()));
    }
    let signed = certificate.signature_algorithm.algorithm.to_id_string();
    let weak = [("1.2.840.113549.1.1.4", "MD5"), ("1.2.840.113549.1.1.5", "SHA-1"), ("1.2.840.10045.4.1", "SHA-1")];
    weak.iter().find(|(oid, _)| *oid == signed).map(|(_, name)| format!("a signature with {name}"))
}

/// That no list of an issuer in the set revokes one of the path.
fn not_revoked(files: &CacertsFiles, path: &[Link], root: &Link) -> Result<(), CacertsError> {
    let Some(text) = files.text(CA_CRL)?.filter(|text| !text.trim().is_empty()) else { return Ok(()) };
    let wrong = |what| CacertsError::Crl { what };
    let issuers: Vec<_> = path.iter().chain([root]).collect();
    let mut any = false;
    for der in CertificateRevocationListDer::pem_slice_iter(text.as_bytes()) {
        any = true;
        let der = der.map_err(|_reason| wrong("is not PEM"))?;
        let (_, list) = CertificateRevocationList::from_der(&der)
            .map_err(|_reason| wrong("holds something that is no revocation list"))?;
        let signed = issuers.iter().any(|issuer| {
            issuer.parsed().is_ok_and(|issuer| {
                issuer.subject() == list.issuer() && list.verify_signature(issuer.public_key()).is_ok()
            })
        });
        if !signed {
            return Err(wrong("holds a list that is not signed by any certificate of this set"));
        }
        for link in path {
            let parsed = link.parsed()?;
            let listed = list.iter_revoked_certificates().any(|revoked| revoked.raw_serial() == parsed.raw_serial());
            if listed && parsed.issuer() == list.issuer() {
                return Err(CacertsError::Revoked { file: link.file, subject: link.subject.clone() });
            }
        }
    }
    if any { Ok(()) } else { Err(wrong("is not PEM")) }
}
