//! What a root has done: entries that the root's key signs, each with the hash of the one before it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use alcazar_identity::{CertificateDer, rfc3339};
use alcazar_service::files::{private_directory, write_atomic};
use ring::digest;
use serde::{Deserialize, Serialize};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::CeremonyError;
use crate::{authority::AuthorityInfo, signer::Signer};

/// One act of a root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Entry {
    /// Its place, from 1.
    pub number: u64,
    /// The SHA-256 of the file of the entry before it; of the first, empty.
    pub previous: String,
    /// When, in UTC, by the clock of that machine.
    pub time: String,
    /// `init`, `sign` or `revoke`.
    pub act: String,
    /// The fingerprint of the root.
    pub root: String,
    /// The trust domain.
    pub trust_domain: String,
    /// The cluster that the certificate is for; of an `init`, empty.
    pub cluster: String,
    /// The SHA-256 of the request's DER; of an `init`, empty.
    pub request: String,
    /// The SHA-256 of the certificate's public key.
    pub key: String,
    /// The fingerprint of the certificate that was made, or taken back.
    pub certificate: String,
    /// From when on it is good.
    pub not_before: String,
    /// Until when it is good.
    pub not_after: String,
    /// Why it was taken back; of another act, empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Where the entries are, beside the root's certificate.
const FOLDER: &str = "transcript";

pub(super) fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fills in the entry's place and appends it: the signature first, so that an entry without one is never there.
pub(super) fn append(root: &Path, mut entry: Entry, signer: &dyn Signer) -> Result<PathBuf, CeremonyError> {
    let folder = root.join(FOLDER);
    private_directory(&folder).map_err(CeremonyError::io("create", &folder))?;
    let before = files(&folder)?;
    entry.number = u64::try_from(before.len()).unwrap_or(u64::MAX).saturating_add(1);
    entry.previous = match before.last() {
        Some(last) => sha256(&fs::read(last).map_err(CeremonyError::io("read", last))?),
        None => String::new(),
    };
    let mut text = serde_json::to_string_pretty(&entry)
        .map_err(|error| CeremonyError::Transcript { entry: entry.number.to_string(), what: error.to_string() })?;
    text.push('\n');
    let file = folder.join(format!("{:04}.json", entry.number));
    let signature = signer.sign(text.as_bytes())?;
    for (path, bytes) in [(signature_file(&file), signature.as_slice()), (file.clone(), text.as_bytes())] {
        write_atomic(&path, bytes, 0o644).map_err(CeremonyError::io("write", &path))?;
    }
    Ok(file)
}

/// What a certificate says, for an entry.
pub(super) fn describe(act: &str, root: &AuthorityInfo, made: &AuthorityInfo, time: std::time::SystemTime) -> Entry {
    let key = X509Certificate::from_der(&made.certificate).map(|(_, parsed)| sha256(parsed.public_key().raw));
    Entry {
        number: 0,
        previous: String::new(),
        time: rfc3339(time),
        act: act.into(),
        root: root.fingerprint.to_string(),
        trust_domain: String::new(),
        cluster: String::new(),
        request: String::new(),
        key: key.unwrap_or_default(),
        certificate: made.fingerprint.to_string(),
        not_before: rfc3339(made.validity.not_before()),
        not_after: rfc3339(made.validity.not_after()),
        reason: String::new(),
    }
}

/// Reads the transcript beside a root, and checks each signature and the chain of hashes.
///
/// # Errors
/// When an entry is missing, altered or not signed by this root.
pub fn verify(root: &Path, certificate: &CertificateDer<'_>) -> Result<Vec<Entry>, CeremonyError> {
    let (mut entries, mut previous) = (Vec::new(), String::new());
    for (place, file) in files(&root.join(FOLDER))?.into_iter().enumerate() {
        let entry = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wrong = |what: &str| CeremonyError::Transcript { entry: entry.clone(), what: what.into() };
        let text = fs::read(&file).map_err(CeremonyError::io("read", &file))?;
        let signature = signature_file(&file);
        let signature = fs::read(&signature).map_err(CeremonyError::io("read", &signature))?;
        if !is_signed(certificate, &text, &signature) {
            return Err(wrong("it is not signed by this root"));
        }
        let parsed: Entry = serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
        if usize::try_from(parsed.number) != Ok(place + 1) {
            return Err(wrong("an entry before it is missing"));
        }
        if parsed.previous != previous {
            return Err(wrong("the entry before it is not the one that it was written after"));
        }
        previous = sha256(&text);
        entries.push(parsed);
    }
    Ok(entries)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, CeremonyError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(CeremonyError::io("list", folder))? {
        let path = entry.map_err(CeremonyError::io("list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn signature_file(entry: &Path) -> PathBuf {
    entry.with_extension("json.sig")
}

fn is_signed(certificate: &CertificateDer<'_>, text: &[u8], signature: &[u8]) -> bool {
    use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let key = &parsed.public_key().subject_public_key.data;
    // The point's length tells the curve.
    let algorithm = if key.len() == 65 { &ECDSA_P256_SHA256_ASN1 } else { &ECDSA_P384_SHA384_ASN1 };
    UnparsedPublicKey::new(algorithm, key).verify(text, signature).is_ok()
}
