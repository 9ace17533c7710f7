//! One PKCS#12 file for programs that read neither PEM: the key, its chain, and the roots as trusted certificates.
//!
//! Its salts and its vector come from the key and from what it encloses, so that the same content makes the same file: whoever
//! looks whether a file is still right compares bytes. Without the key they tell nothing.
//!
//! **Source**: RFC 7292 (the file; appendix B for the key of its checksum), RFC 8018 (PBES2), Java's mark of a trusted certificate.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use alcazar_identity::{CertificateDer, Fingerprint, X509Svid};
use pkcs5::EncryptionScheme;
use pkcs5::der::Encode;
use pkcs5::pbes2::Parameters;
use ring::digest::{SHA256, digest};
use ring::hmac;
use zeroize::Zeroizing;

/// What a file is sealed with, and opened by: one line of printable ASCII, which all programs encode alike.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Password(Zeroizing<String>);

impl Password {
    /// Reads it from a file of one line that not everybody can read.
    pub(crate) fn read(path: &Path) -> Result<Self, Pkcs12Error> {
        let failed = |source| Pkcs12Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(Pkcs12Error::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(LONGEST + 2));
        file.take(LONGEST as u64 + 2).read_to_string(&mut text).map_err(failed)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let is_fit = (1..=LONGEST).contains(&line.len()) && line.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if is_fit { Ok(Self(Zeroizing::new(line.to_owned()))) } else { Err(Pkcs12Error::Unfit(path.to_owned())) }
    }

    /// As PKCS#12 takes it where it makes a key of it: UTF-16, and a zero at the end.
    fn utf16(&self) -> Zeroizing<Vec<u8>> {
        let mut wide = Zeroizing::new(Vec::with_capacity(2 * self.0.len() + 2));
        self.0.bytes().for_each(|byte| wide.extend([0, byte]));
        wide.extend([0, 0]);
        wide
    }
}

/// The file of a workload.
pub(super) fn seal<'r>(
    svid: &X509Svid,
    roots: impl Iterator<Item = &'r CertificateDer<'static>>,
    password: &Password,
) -> Result<Vec<u8>, Pkcs12Error> {
    let id = sequence(&[OID_LOCAL_KEY_ID, &tlv(SET, &[&tlv(OCTET_STRING, &[svid.serial().as_bytes()])])]);
    let own = svid.chain().iter().enumerate().map(|(place, certificate)| {
        let attributes = if place == 0 { vec![id.clone(), name(ALIAS)] } else { Vec::new() };
        bag(OID_CERTIFICATE_BAG, &certificate_bag(certificate), attributes)
    });
    let trusted = roots.map(|root| {
        let prefix: String = Fingerprint::of(root).to_string().chars().take(12).collect();
        bag(OID_CERTIFICATE_BAG, &certificate_bag(root), vec![name(&format!("root-{prefix}")), TRUSTED.to_vec()])
    });
    let certificates: Vec<u8> = own.chain(trusted).flatten().collect();

    let plain = svid.key().secret_pkcs8_der();
    let secret = hmac::Key::new(hmac::HMAC_SHA256, plain);
    let by = |what: &str| hmac::sign(&secret, &[what.as_bytes(), b"\0", password.0.as_bytes()].concat());
    let (salt, vector) = (by("salt"), by("vector"));
    let broken = |error: &dyn std::fmt::Display| Pkcs12Error::Cipher(error.to_string());
    let salt = salt.as_ref().get(..SALT).unwrap_or_default();
    let vector = vector.as_ref().first_chunk().copied().unwrap_or_default();
    let scheme = Parameters::generate_pbkdf2_sha256_aes256cbc(ROUNDS, salt, vector).map_err(|error| broken(&error))?;
    let scheme = EncryptionScheme::from(scheme);
    let sealed = scheme.encrypt(password.0.as_bytes(), plain).map_err(|error| broken(&error))?;
    let mut room = [0; 256];
    let scheme = scheme.encode_to_slice(&mut room).map_err(|error| broken(&error))?;
    let key = sequence(&[scheme, &tlv(OCTET_STRING, &[&sealed])]);
    let key = bag(OID_SHROUDED_KEY_BAG, &key, vec![id, name(ALIAS)]);

    let content = sequence(&[&data(&sequence(&[&certificates])), &data(&sequence(&[&key]))]);
    let salt = hmac::sign(&secret, &[b"checksum\0".as_slice(), password.0.as_bytes(), b"\0", &content].concat());
    let salt = salt.as_ref().get(..SALT).unwrap_or_default();
    let checksum = hmac::sign(&checksum_key(password, salt), &content);
    let digest = sequence(&[&sequence(&[OID_SHA256, NULL]), &tlv(OCTET_STRING, &[checksum.as_ref()])]);
    let [.., high, low] = ROUNDS.to_be_bytes();
    let rounds = tlv(INTEGER, &[&[high, low]]);
    let checked = sequence(&[&digest, &tlv(OCTET_STRING, &[salt]), &rounds]);
    Ok(sequence(&[&tlv(INTEGER, &[&[3]]), &data(&content), &checked]))
}

/// The key of the checksum. As many bytes are wanted as one digest has, so the first block of the derivation is all of it.
fn checksum_key(password: &Password, salt: &[u8]) -> hmac::Key {
    let fill = |bytes: &[u8]| {
        let length = bytes.len().div_ceil(BLOCK) * BLOCK;
        Zeroizing::new(bytes.iter().copied().cycle().take(length).collect::<Vec<u8>>())
    };
    let mut input = Zeroizing::new(vec![FOR_CHECKSUMS; BLOCK]);
    input.extend_from_slice(&fill(salt));
    input.extend_from_slice(&fill(&password.utf16()));
    let mut key = digest(&SHA256, &input);
    for _ in 1..ROUNDS {
        key = digest(&SHA256, key.as_ref());
    }
    hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
}

fn certificate_bag(certificate: &CertificateDer<'_>) -> Vec<u8> {
    sequence(&[OID_X509, &tlv(EXPLICIT, &[&tlv(OCTET_STRING, &[certificate])])])
}

fn bag(kind: &[u8], value: &[u8], mut attributes: Vec<Vec<u8>>) -> Vec<u8> {
    // DER sorts what is in a set.
    attributes.sort();
    let attributes = if attributes.is_empty() { Vec::new() } else { tlv(SET, &[&attributes.concat()]) };
    sequence(&[kind, &tlv(EXPLICIT, &[value]), &attributes])
}

fn data(content: &[u8]) -> Vec<u8> {
    sequence(&[OID_DATA, &tlv(EXPLICIT, &[&tlv(OCTET_STRING, &[content])])])
}

fn name(text: &str) -> Vec<u8> {
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    sequence(&[OID_FRIENDLY_NAME, &tlv(SET, &[&tlv(BMP_STRING, &[&wide])])])
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, parts)
}

fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(0x08));
            out.extend(bytes);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// Why there is no PKCS#12 file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Pkcs12Error {
    /// The password cannot be read.
    #[error("cannot read the password in {} (pkcs12.passwordFile)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Everybody can read it.
    #[error("the password in {} (pkcs12.passwordFile) is open to everybody (mode {mode:04o}); run: chmod 640 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Programs would not agree on what it is.
    #[error("{} (pkcs12.passwordFile) should have one line of 1 to 128 printable ASCII characters", .0.display())]
    Unfit(PathBuf),
    /// The key was not encrypted.
    #[error("the key cannot be sealed: {0}")]
    Cipher(String),
}

/// The name of the key in the file.
const ALIAS: &str = "identity";
/// Of a password, in bytes.
const LONGEST: usize = 128;
/// As Java's and OpenSSL's own files have it.
const ROUNDS: u32 = 10_000;
/// In bytes.
const SALT: usize = 16;
/// Of SHA-256, in bytes.
const BLOCK: usize = 64;
const FOR_CHECKSUMS: u8 = 3;

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const EXPLICIT: u8 = 0xa0;
const NULL: &[u8] = &[0x05, 0x00];

/// 1.2.840.113549.1.7.1
const OID_DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
/// 1.2.840.113549.1.9.20
const OID_FRIENDLY_NAME: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x14";
/// 1.2.840.113549.1.9.21
const OID_LOCAL_KEY_ID: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x15";
/// 1.2.840.113549.1.9.22.1
const OID_X509: &[u8] = b"\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x09\x16\x01";
/// 1.2.840.113549.1.12.10.1.2
const OID_SHROUDED_KEY_BAG: &[u8] = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02";
/// 1.2.840.113549.1.12.10.1.3
const OID_CERTIFICATE_BAG: &[u8] = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x03";
/// 2.16.840.1.101.3.4.2.1
const OID_SHA256: &[u8] = b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01";
/// The attribute 2.16.840.1.113894.746875.1.1 with anyExtendedKeyUsage (2.5.29.37.0): by it Java trusts a certificate.
const TRUSTED: &[u8] =
    b"\x30\x16\x06\x0c\x60\x86\x48\x01\x86\xf9\x66\xad\xca\x7b\x01\x01\x31\x06\x06\x04\x55\x1d\x25\x00";
