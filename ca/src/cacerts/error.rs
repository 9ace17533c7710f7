//! What is wrong with plugged-in CA material, where, and how to mend it.

use std::{io, path::PathBuf, time::SystemTime};

use alcazar_identity::{TrustDomain, Validity, rfc3339};
use thiserror::Error;

use crate::keys::KeyPemError;

/// Why a set of files is refused.
#[derive(Debug, Error)]
pub enum CacertsError {
    /// The disk refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// Nothing is there.
    #[error(
        "there is none of ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem, nor of tls.crt, tls.key, ca.crt; put one of the two sets there"
    )]
    Nothing,
    /// Two sets.
    #[error(
        "{one} and {other} are of two sets of names; keep ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem, or tls.crt, tls.key, ca.crt"
    )]
    TwoSets {
        /// A file of the one.
        one: &'static str,
        /// A file of the other.
        other: &'static str,
    },
    /// A part of the set.
    #[error("{file} is missing beside {beside}; {mend}")]
    Missing {
        /// What is missing.
        file: &'static str,
        /// What is there.
        beside: &'static str,
        /// How to mend it.
        mend: &'static str,
    },
    /// Larger than any honest one.
    #[error("{file} has {bytes} bytes, more than any honest one; put the right file there")]
    TooLong {
        /// The file.
        file: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// Not PEM.
    #[error("{file} is not PEM, or is cut off; write it as PEM: openssl x509 -in <file> -inform DER")]
    NotPem {
        /// The file.
        file: &'static str,
    },
    /// A block that does not belong there.
    #[error("{file} holds a block {label:?} where certificates belong; were files exchanged?")]
    Block {
        /// The file.
        file: &'static str,
        /// What is in it.
        label: String,
    },
    /// Empty.
    #[error("{file} is empty; put the certificates there")]
    Empty {
        /// The file.
        file: &'static str,
    },
    /// Not a certificate.
    #[error("certificate {number} of {file} cannot be read; write it again from its source")]
    Malformed {
        /// The file.
        file: &'static str,
        /// Which certificate, from 1.
        number: usize,
    },
    /// Not a CA.
    #[error(
        "{subject} in {file} is not a certificate authority (CA:TRUE and keyCertSign); a server's or client's certificate cannot issue"
    )]
    NotACa {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
    },
    /// Its time is over, or has not come.
    #[error("{subject} in {file} is good from {validity}, and the clock here says {}; bring a certificate that is good now, or set the clock", rfc3339(*now))]
    NotGood {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
        /// When it is good.
        validity: Validity,
        /// The clock.
        now: SystemTime,
    },
    /// A key that does not last.
    #[error(
        "{subject} in {file} has {what}; P-256, P-384, Ed25519 and RSA of 2048 bits or more are used here, signed with SHA-256 or better"
    )]
    Weak {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
        /// What is weak.
        what: String,
    },
    /// The key cannot be read.
    #[error("{file} cannot be used")]
    Key {
        /// The file.
        file: &'static str,
        /// What is wrong.
        source: KeyPemError,
    },
    /// The key is another's.
    #[error("the key in {key} does not belong to the certificate in {certificate}{hint}; bring both from one source")]
    KeyMismatch {
        /// The key's file.
        key: &'static str,
        /// The certificate's file.
        certificate: &'static str,
        /// Whose it is, where that is known.
        hint: String,
    },
    /// No key, here or in the key store.
    #[error(
        "{key} is missing, and this CA has made no request for the certificate in {certificate}; bring its key, or let `alcazar ca request` make one here"
    )]
    NoKey {
        /// The key's file.
        key: &'static str,
        /// The certificate's file.
        certificate: &'static str,
    },
    /// A chain that does not lead up.
    #[error(
        "{subject} in {file} is issued by {issuer}, and no certificate of that name and key is in {chain} or {roots}; put what is missing into {chain}"
    )]
    Unchained {
        /// The file.
        file: &'static str,
        /// Whose issuer is missing.
        subject: String,
        /// Who is missing.
        issuer: String,
        /// Where it could be.
        chain: &'static str,
        /// Where it could be, too.
        roots: &'static str,
    },
    /// Longer than verifiers go.
    #[error("the chain in {chain} has more than {limit} certificates below the root; verifiers go no further")]
    TooDeep {
        /// The file.
        chain: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// An issuer that may not have so many below it.
    #[error(
        "{subject} in {file} allows {allowed} certificate authorities below it (pathlen), and there are {below}; have it issued again with a larger pathlen"
    )]
    PathLength {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
        /// How many it allows.
        allowed: u32,
        /// How many there are.
        below: usize,
    },
    /// Another trust domain's.
    #[error(
        "{subject} in {file} bears {found}, and this CA's trust domain is {expected}; check trustDomain in the configuration, or bring the certificate of this trust domain"
    )]
    TrustDomain {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
        /// The URIs.
        found: String,
        /// What it should be.
        expected: TrustDomain,
    },
    /// A limit that verifiers do not understand.
    #[error(
        "{subject} in {file} has name constraints on URIs, which verifiers refuse altogether; have it issued without them"
    )]
    NameConstraints {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
    },
    /// Good for something else alone.
    #[error(
        "{subject} in {file} is limited to other purposes (extended key usage); have it issued without the limit, or for both serverAuth and clientAuth"
    )]
    Purpose {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
    },
    /// Revoked.
    #[error("{subject} in {file} is revoked by ca-crl.pem; bring another certificate")]
    Revoked {
        /// The file.
        file: &'static str,
        /// Its subject.
        subject: String,
    },
    /// Not a CRL, or nobody's.
    #[error("ca-crl.pem {what}; bring the list of an issuer in this set, or leave the file out")]
    Crl {
        /// What is wrong.
        what: &'static str,
    },
}
