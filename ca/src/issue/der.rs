//! Leaves in DER, written directly: the parts that are the same for every leaf of an issuer are prepared once.
//!
//! It costs a fraction of what a general encoder does, and a test holds it to the bytes that rcgen would write.
//!
//! **Source**: RFC 5280 §4.1, §4.2.1; X509-SVID §4.

use std::time::SystemTime;

use rcgen::SignatureAlgorithm;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension};

use super::{DnsName, Subject};
use crate::{csr::Csr, serial::Serial};

/// What all leaves of an issuer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// The AlgorithmIdentifier of the issuer's signatures.
    algorithm: &'static [u8],
    /// The issuer's Name, as its own certificate has it.
    issuer: Vec<u8>,
    /// The extension that names the issuer's key.
    authority_key: Vec<u8>,
    /// The extension that says where the issuer's CRL is; empty where nothing is said.
    crl: Vec<u8>,
}

impl Template {
    /// Prepares the leaves of an issuer that signs by `algorithm`; `None` where that algorithm is not known here.
    pub(crate) fn new(issuer: &X509Certificate<'_>, algorithm: &'static SignatureAlgorithm) -> Option<Self> {
        let (_, algorithm) = ALGORITHMS.iter().find(|(known, _)| *known == algorithm)?;
        let own_id = issuer.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let id = own_id.unwrap_or_else(|| key_id(&crate::csr::KeyHash::of(issuer.public_key().raw)).to_vec());
        let mut authority_key = Vec::with_capacity(48);
        extension(&mut authority_key, AUTHORITY_KEY_IDENTIFIER, false, |out| {
            sequence(out, |out| tlv(out, CONTEXT, |out| out.extend_from_slice(&id)));
        });
        Some(Self { algorithm, issuer: issuer.subject().as_raw().to_vec(), authority_key, crl: Vec::new() })
    }

    /// The same, where leaves say that the CRL of their issuer is at `url`.
    pub(crate) fn with_crl(self, url: &str) -> Self {
        let mut crl = Vec::with_capacity(64 + url.len());
        extension(&mut crl, CRL_DISTRIBUTION_POINTS, false, |out| {
            sequence(out, |out| {
                sequence(out, |out| {
                    // distributionPoint, as its full name.
                    tlv(out, CONSTRUCTED | CONTEXT, |out| {
                        tlv(out, CONSTRUCTED | CONTEXT, |out| {
                            tlv(out, CONTEXT | URI, |out| out.extend_from_slice(url.as_bytes()));
                        });
                    });
                });
            });
        });
        Self { crl, ..self }
    }

    /// The part of a leaf that is signed.
    pub(crate) fn to_be_signed(
        &self,
        csr: &Csr,
        subject: Subject<'_>,
        serial: Serial,
        (not_before, not_after): (SystemTime, SystemTime),
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(512 + csr.spki().len());
        sequence(&mut out, |out| {
            // Version 3.
            out.extend_from_slice(&[CONSTRUCTED | CONTEXT, 3, INTEGER, 1, 2]);
            // A serial's first byte is between 0x40 and 0x7f: its DER has neither padding nor a shorter form.
            tlv(out, INTEGER, |out| out.extend_from_slice(&serial.to_bytes()));
            out.extend_from_slice(self.algorithm);
            out.extend_from_slice(&self.issuer);
            sequence(out, |out| {
                moment(out, not_before);
                moment(out, not_after);
            });
            // No subject: who it is, stands in the names.
            sequence(out, |_| {});
            out.extend_from_slice(csr.spki());
            tlv(out, CONSTRUCTED | CONTEXT | 3, |out| sequence(out, |out| self.extensions(out, csr, subject)));
        });
        out
    }

    fn extensions(&self, out: &mut Vec<u8>, csr: &Csr, subject: Subject<'_>) {
        out.extend_from_slice(&self.authority_key);
        extension(out, SUBJECT_ALT_NAME, true, |out| {
            sequence(out, |out| {
                tlv(out, CONTEXT | URI, |out| out.extend_from_slice(subject.id.as_str().as_bytes()));
                for name in subject.dns {
                    tlv(out, CONTEXT | DNS, |out| out.extend_from_slice(DnsName::as_str(name).as_bytes()));
                }
            });
        });
        out.extend_from_slice(DIGITAL_SIGNATURE);
        out.extend_from_slice(SERVER_AND_CLIENT);
        out.extend_from_slice(&self.crl);
        extension(out, SUBJECT_KEY_IDENTIFIER, false, |out| {
            tlv(out, OCTET_STRING, |out| out.extend_from_slice(&key_id(&csr.key_hash())));
        });
        out.extend_from_slice(NO_AUTHORITY);
    }

    /// The whole certificate, of what was signed and the signature.
    pub(crate) fn certificate(&self, to_be_signed: &[u8], signature: &[u8]) -> CertificateDer<'static> {
        let mut out = Vec::with_capacity(to_be_signed.len() + signature.len() + 32);
        sequence(&mut out, |out| {
            out.extend_from_slice(to_be_signed);
            out.extend_from_slice(self.algorithm);
            tlv(out, BIT_STRING, |out| {
                out.push(0);
                out.extend_from_slice(signature);
            });
        });
        out.into()
    }
}

/// RFC 7093 §2, method 1, over the SubjectPublicKeyInfo: the first 160 bits of its SHA-256.
fn key_id(hash: &crate::csr::KeyHash) -> [u8; 20] {
    let mut id = [0; 20];
    id.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
    id
}

/// UTCTime before 2050, GeneralizedTime from then on (RFC 5280 §4.1.2.5).
fn moment(out: &mut Vec<u8>, at: SystemTime) {
    let at = OffsetDateTime::from(at);
    let year = u32::try_from(at.year()).unwrap_or_default();
    let rest = [u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second()];
    let two = |out: &mut Vec<u8>, number: u8| out.extend_from_slice(&[b'0' + number / 10 % 10, b'0' + number % 10]);
    let (tag, century) = if year < 2050 { (UTC_TIME, None) } else { (GENERALIZED_TIME, Some(year / 100)) };
    tlv(out, tag, |out| {
        for number in century.into_iter().chain([year % 100]) {
            two(out, u8::try_from(number).unwrap_or_default());
        }
        rest.into_iter().for_each(|number| two(out, number));
        out.push(b'Z');
    });
}

fn extension(out: &mut Vec<u8>, oid: &[u8], critical: bool, value: impl FnOnce(&mut Vec<u8>)) {
    sequence(out, |out| {
        out.extend_from_slice(oid);
        if critical {
            out.extend_from_slice(&[BOOLEAN, 1, 0xff]);
        }
        tlv(out, OCTET_STRING, value);
    });
}

fn sequence(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    tlv(out, CONSTRUCTED | SEQUENCE, content);
}

/// Tag, length and content; the length is known when the content is written.
fn tlv(out: &mut Vec<u8>, tag: u8, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    content(out);
    let length = out.len() - start;
    let bytes = length.to_be_bytes();
    let long = bytes.iter().skip_while(|byte| **byte == 0).count();
    if length < 0x80 {
        out.insert(start, u8::try_from(length).unwrap_or_default());
    } else {
        let header = std::iter::once(0x80 | u8::try_from(long).unwrap_or_default());
        out.splice(start..start, header.chain(bytes.into_iter().skip(bytes.len() - long)));
    }
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x10;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const CONSTRUCTED: u8 = 0x20;
const CONTEXT: u8 = 0x80;
/// In a GeneralName.
const DNS: u8 = 2;
const URI: u8 = 6;

// Object identifiers, with tag and length.
const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x06, 3, 0x55, 0x1d, 14];
const SUBJECT_ALT_NAME: &[u8] = &[0x06, 3, 0x55, 0x1d, 17];
const CRL_DISTRIBUTION_POINTS: &[u8] = &[0x06, 3, 0x55, 0x1d, 31];
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x06, 3, 0x55, 0x1d, 35];

/// keyUsage, critical: digitalSignature.
const DIGITAL_SIGNATURE: &[u8] = &[0x30, 14, 0x06, 3, 0x55, 0x1d, 15, 0x01, 1, 0xff, 0x04, 4, 0x03, 2, 7, 0x80];
/// extKeyUsage: serverAuth and clientAuth.
const SERVER_AND_CLIENT: &[u8] = &[
    0x30, 29, 0x06, 3, 0x55, 0x1d, 37, 0x04, 22, 0x30, 20, 0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1, 0x06, 8, 0x2b, 6, 1, 5,
    5, 7, 3, 2,
];
/// basicConstraints, critical: CA is false, which DER leaves out.
const NO_AUTHORITY: &[u8] = &[0x30, 12, 0x06, 3, 0x55, 0x1d, 19, 0x01, 1, 0xff, 0x04, 2, 0x30, 0];

/// AlgorithmIdentifiers, of the algorithms that signers have.
static ALGORITHMS: &[(&SignatureAlgorithm, &[u8])] = &[
    (&rcgen::PKCS_ECDSA_P256_SHA256, &[0x30, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]),
    (&rcgen::PKCS_ECDSA_P384_SHA384, &[0x30, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3]),
    (&rcgen::PKCS_ED25519, &[0x30, 5, 0x06, 3, 0x2b, 0x65, 0x70]),
    (&rcgen::PKCS_RSA_SHA256, &[0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 11, 5, 0]),
    (&rcgen::PKCS_RSA_SHA384, &[0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 12, 5, 0]),
    (&rcgen::PKCS_RSA_SHA512, &[0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 13, 5, 0]),
];

#[cfg(test)]
mod tests;
