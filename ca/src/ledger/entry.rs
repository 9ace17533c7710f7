//! Entries: what stands in the ledger of each thing that was issued.
//!
//! ```text
//! certificate   01 01 │ issued at, 8 bytes │ caller │ DER, to the end
//! JWT-SVID      01 02 │ issued at │ expires │ caller │ subject │ key id │ token id │ how many audiences, 2 bytes │ each
//! authority     01 03 │ recorded at │ trust domain │ caller │ DER, to the end
//! ```
//!
//! Numbers are big-endian, moments are seconds since 1970, a text has its length before it in two bytes. What a certificate
//! says of itself is not said again: it is read from its DER.

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, SpiffeId, SvidLeaf, TrustDomain};
use alcazar_ledger::{Facts, MAX_ENTRY, Term};
use thiserror::Error;

use crate::{authority::AuthorityInfo, issue::Issued, jwt_authority::JwtFacts, records::seconds};

/// Something that was issued and is about to be put on record.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry<'a> {
    /// A certificate, for whoever asked.
    Certificate {
        issued: &'a Issued,
        /// A SPIFFE ID, a join token's hash, or the CA itself.
        caller: &'a str,
    },
    /// A JWT-SVID, for whoever asked. The token itself is a secret and is not kept.
    JwtSvid {
        facts: &'a JwtFacts,
        /// As above.
        caller: &'a str,
    },
    /// A root or an intermediate that the CA holds.
    Authority {
        info: &'a AuthorityInfo,
        trust_domain: &'a TrustDomain,
        /// When it came here.
        at: SystemTime,
        /// The CA itself.
        caller: &'a str,
    },
}

/// Something on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its number in the ledger.
    pub index: u64,
    /// The certificate's serial number, in lower-case hexadecimal; the id of a token.
    pub serial: String,
    /// Whom it names; the trust domain itself, where it is an authority.
    pub spiffe_id: SpiffeId,
    /// When it was issued; of an authority, when it was put on record.
    pub issued_at: SystemTime,
    /// From when it is good.
    pub not_before: SystemTime,
    /// Until when it is good.
    pub not_after: SystemTime,
    /// Who asked for it: a SPIFFE ID, a join token's hash, or the CA itself.
    pub caller: String,
    /// What it is.
    pub kind: RecordedKind,
}

/// What a thing on record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedKind {
    /// A certificate.
    Certificate(CertificateDer<'static>),
    /// A JWT-SVID.
    JwtSvid {
        /// For whom it is.
        audience: Vec<String>,
        /// The key that signed it.
        key_id: String,
    },
    /// A root: a certificate that its own key signed.
    Root(CertificateDer<'static>),
    /// An intermediate, whoever signed it.
    Intermediate(CertificateDer<'static>),
}

impl RecordedKind {
    /// The certificate, where it is one.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        match self {
            Self::Certificate(der) | Self::Root(der) | Self::Intermediate(der) => Some(der),
            Self::JwtSvid { .. } => None,
        }
    }

    /// Whether it signs others.
    pub fn is_authority(&self) -> bool {
        matches!(self, Self::Root(_) | Self::Intermediate(_))
    }
}

impl Entry<'_> {
    /// The entry's bytes, and what it is found by.
    pub(crate) fn encode(&self) -> Result<(Vec<u8>, Facts), EncodeEntryError> {
        let (bytes, facts) = match self {
            Self::Certificate { issued, caller } => {
                let mut bytes = Vec::with_capacity(12 + caller.len() + issued.certificate.len());
                bytes.extend_from_slice(&[VERSION, CERTIFICATE]);
                moment(&mut bytes, issued.issued_at);
                text(&mut bytes, caller)?;
                bytes.extend_from_slice(&issued.certificate);
                let until = issued.validity.not_after();
                (bytes, facts(issued.issued_at, until, &issued.serial.to_string(), issued.id.as_str(), caller))
            }
            Self::JwtSvid { facts: token, caller } => {
                let mut bytes = vec![VERSION, JWT_SVID];
                moment(&mut bytes, token.issued_at);
                moment(&mut bytes, token.expires);
                for part in [*caller, token.subject.as_str(), &token.key_id, &token.id] {
                    text(&mut bytes, part)?;
                }
                let count = u16::try_from(token.audience.len()).map_err(|_many| EncodeEntryError::TooLarge)?;
                bytes.extend_from_slice(&count.to_be_bytes());
                token.audience.iter().try_for_each(|audience| text(&mut bytes, audience))?;
                let subject = token.subject.as_str();
                (bytes, facts(token.issued_at, token.expires, &token.id, subject, caller))
            }
            Self::Authority { info, trust_domain, at, caller } => {
                let mut bytes = vec![VERSION, AUTHORITY];
                moment(&mut bytes, *at);
                text(&mut bytes, trust_domain.as_str())?;
                text(&mut bytes, caller)?;
                bytes.extend_from_slice(&info.certificate);
                let until = info.validity.not_after();
                (bytes, facts(*at, until, &info.serial(), &trust_domain.to_uri(), caller))
            }
        };
        if bytes.len() > MAX_ENTRY {
            return Err(EncodeEntryError::TooLarge);
        }
        // One that is recorded and cannot be read would keep the whole ledger from opening.
        if !self.is_plain() && describe(&bytes) != Some(facts) {
            return Err(EncodeEntryError::Unreadable);
        }
        Ok((bytes, facts))
    }

    /// Whether it is a certificate of whose parts every one was read or written here, so that it reads back: to try it costs as much
    /// as half of the rest of recording it. What is left over of such a certificate is its key, and that has one form.
    fn is_plain(&self) -> bool {
        matches!(self, Self::Certificate { issued, .. } if issued.is_plain)
    }
}

impl Recorded {
    /// The entry in these bytes.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn decode(index: u64, bytes: &[u8]) -> Result<Self, DecodeEntryError> {
        let mut rest = Rest(bytes);
        match rest.take::<2>()? {
            [VERSION, CERTIFICATE] => {
                let (issued_at, caller) = (rest.moment()?, rest.text()?.to_owned());
                let certificate = CertificateDer::from(rest.0.to_vec());
                let leaf = SvidLeaf::parse(&certificate)?;
                Ok(Self {
                    index,
                    serial: leaf.serial().to_owned(),
                    spiffe_id: leaf.id().clone(),
                    issued_at,
                    not_before: leaf.validity().not_before(),
                    not_after: leaf.validity().not_after(),
                    caller,
                    kind: RecordedKind::Certificate(certificate),
                })
            }
            [VERSION, JWT_SVID] => {
                let (issued_at, not_after) = (rest.moment()?, rest.moment()?);
                let caller = rest.text()?.to_owned();
                let spiffe_id = rest.text()?.parse().map_err(|_reason| DecodeEntryError::Malformed)?;
                let (key_id, serial) = (rest.text()?.to_owned(), rest.text()?.to_owned());
                let count = u16::from_be_bytes(rest.take()?);
                let audience = (0..count).map(|_| rest.text().map(str::to_owned)).collect::<Result<_, _>>()?;
                if !rest.0.is_empty() {
                    return Err(DecodeEntryError::Malformed);
                }
                let kind = RecordedKind::JwtSvid { audience, key_id };
                Ok(Self { index, serial, spiffe_id, issued_at, not_before: issued_at, not_after, caller, kind })
            }
            [VERSION, AUTHORITY] => {
                let issued_at = rest.moment()?;
                let trust_domain: TrustDomain = rest.text()?.parse().map_err(|_reason| DecodeEntryError::Malformed)?;
                let spiffe_id = trust_domain.to_uri().parse().map_err(|_reason| DecodeEntryError::Malformed)?;
                let caller = rest.text()?.to_owned();
                let info = AuthorityInfo::parse(CertificateDer::from(rest.0.to_vec()));
                let info = info.map_err(|_reason| DecodeEntryError::Authority)?;
                let (serial, validity) = (info.serial(), info.validity);
                let (not_before, not_after) = (validity.not_before(), validity.not_after());
                let kind = match info.is_signed_by(&info) {
                    true => RecordedKind::Root(info.certificate),
                    false => RecordedKind::Intermediate(info.certificate),
                };
                Ok(Self { index, serial, spiffe_id, issued_at, not_before, not_after, caller, kind })
            }
            [version, kind] => Err(DecodeEntryError::Version { version, kind }),
        }
    }

    fn facts(&self) -> Facts {
        facts(self.issued_at, self.not_after, &self.serial, self.spiffe_id.as_str(), &self.caller)
    }
}

/// What an entry is found by, read from its bytes.
pub(crate) fn describe(bytes: &[u8]) -> Option<Facts> {
    Recorded::decode(0, bytes).ok().map(|recorded| recorded.facts())
}

/// Where in an entry's terms each stands.
pub(super) mod term {
    pub(crate) const SERIAL: usize = 0;
    pub(crate) const IDENTITY: usize = 1;
    pub(crate) const CALLER: usize = 2;
}

fn facts(at: SystemTime, until: SystemTime, serial: &str, identity: &str, caller: &str) -> Facts {
    let terms = [serial, identity, caller].map(|text| Term::of(text.as_bytes()));
    Facts { at: seconds::of(at), until: seconds::of(until), terms }
}

fn moment(bytes: &mut Vec<u8>, at: SystemTime) {
    bytes.extend_from_slice(&seconds::of(at).to_be_bytes());
}

fn text(bytes: &mut Vec<u8>, text: &str) -> Result<(), EncodeEntryError> {
    let length = u16::try_from(text.len()).map_err(|_long| EncodeEntryError::TooLarge)?;
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    Ok(())
}

/// What is left to read of an entry.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeEntryError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DecodeEntryError::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn moment(&mut self) -> Result<SystemTime, DecodeEntryError> {
        let since = Duration::from_secs(u64::from_be_bytes(self.take()?));
        SystemTime::UNIX_EPOCH.checked_add(since).ok_or(DecodeEntryError::Malformed)
    }

    fn text(&mut self) -> Result<&'a str, DecodeEntryError> {
        let length = u16::from_be_bytes(self.take()?).into();
        let (text, rest) = self.0.split_at_checked(length).ok_or(DecodeEntryError::Malformed)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_reason| DecodeEntryError::Malformed)
    }
}

/// Something that cannot be an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeEntryError {
    /// It is longer than an entry may be.
    #[error(
        "what was issued is too large for the record of it: a caller, an audience or a certificate of more than 64 KiB"
    )]
    TooLarge,
    /// It does not read back as what it is.
    #[error("what was issued could not be read back from the record of it")]
    Unreadable,
}

/// Bytes that are no entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeEntryError {
    /// Not an entry.
    #[error("it is not an entry of the ledger")]
    Malformed,
    /// Written by another version.
    #[error("it is an entry of version {version} and kind {kind}, which this version of the program cannot read")]
    Version {
        /// The version.
        version: u8,
        /// The kind.
        kind: u8,
    },
    /// Its certificate is not one.
    #[error("its certificate cannot be read")]
    Certificate(#[from] alcazar_identity::ParseSvidError),
    /// Its certificate is not one of an authority.
    #[error("its certificate is not that of an authority")]
    Authority,
}

const VERSION: u8 = 1;
const CERTIFICATE: u8 = 1;
const JWT_SVID: u8 = 2;
const AUTHORITY: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn jwt(audience: Vec<String>) -> JwtFacts {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        JwtFacts {
            subject: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
            audience,
            id: "5f0c".into(),
            issued_at: at(1_800_000_000),
            expires: at(1_800_000_300),
            key_id: "k1".into(),
        }
    }

    proptest! {
        #[test]
        fn a_token_reads_back_and_is_found_by_what_it_says(audience in prop::collection::vec(".{0,40}", 0..5), caller in ".{0,80}") {
            let entry = jwt(audience);
            let (bytes, facts) = Entry::JwtSvid { facts: &entry, caller: &caller }.encode().unwrap();
            let recorded = Recorded::decode(7, &bytes).unwrap();
            prop_assert_eq!(describe(&bytes), Some(facts));
            prop_assert_eq!((recorded.index, &recorded.spiffe_id, &recorded.caller), (7, &entry.subject, &caller));
            prop_assert_eq!((recorded.issued_at, recorded.not_after, &recorded.serial), (entry.issued_at, entry.expires, &entry.id));
            prop_assert_eq!(recorded.kind, RecordedKind::JwtSvid { audience: entry.audience, key_id: entry.key_id });
        }

        #[test]
        fn a_cut_or_longer_token_is_none(cut in any::<prop::sample::Index>()) {
            let (bytes, _) = Entry::JwtSvid { facts: &jwt(vec!["one".into(), "two".into()]), caller: "me" }.encode().unwrap();
            prop_assert_eq!(Recorded::decode(0, &bytes[..cut.index(bytes.len())]), Err(DecodeEntryError::Malformed));
            prop_assert_eq!(Recorded::decode(0, &[&bytes[..], &[0]].concat()), Err(DecodeEntryError::Malformed));
        }

        #[test]
        fn noise_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _refused = Recorded::decode(0, &bytes).is_err();
            for kind in [JWT_SVID, AUTHORITY] {
                let marked = [&[VERSION, kind][..], &bytes].concat();
                let _refused = Recorded::decode(0, &marked).is_err();
            }
        }
    }

    #[test]
    fn an_authority_reads_back_and_is_a_root_or_an_intermediate() {
        use crate::{authority::Authority, serial::Serial, signer::KeySigner};
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let td: TrustDomain = "td".parse().unwrap();
        let signer = || std::sync::Arc::new(KeySigner::new(rcgen::KeyPair::generate().unwrap()));
        let serial = |n| Serial::from_random([n; 16]);
        let root = Authority::root(&td, signer(), serial(1), at).unwrap();
        let below = Authority::intermediate(&root, &td, "east", signer(), serial(2), at).unwrap();
        for (authority, number, is_root) in [(&root, 1, true), (&below, 2, false)] {
            let info = authority.info();
            let entry = Entry::Authority { info, trust_domain: &td, at, caller: "ca" };
            let (bytes, facts) = entry.encode().unwrap();
            assert_eq!(describe(&bytes), Some(facts));
            let recorded = Recorded::decode(3, &bytes).unwrap();
            assert_eq!((recorded.serial, recorded.spiffe_id.as_str()), (serial(number).to_string(), "spiffe://td"));
            assert_eq!((recorded.issued_at, recorded.not_after), (at, info.validity.not_after()));
            let kind: fn(_) -> _ = if is_root { RecordedKind::Root } else { RecordedKind::Intermediate };
            assert_eq!(recorded.kind, kind(info.certificate.clone()));
        }
    }

    #[test]
    fn what_would_not_read_back_is_not_recorded() {
        use crate::{authority::Authority, csr::KeyHash, serial::Serial, signer::KeySigner};
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let signer = std::sync::Arc::new(KeySigner::new(rcgen::KeyPair::generate().unwrap()));
        let serial = Serial::from_random([1; 16]);
        let root = Authority::root(&"td".parse().unwrap(), signer, serial, at).unwrap();
        let AuthorityInfo { certificate, fingerprint, validity } = root.info().clone();
        // A certificate that is no leaf.
        let issued = Issued {
            certificate,
            serial,
            id: "spiffe://td/ns/a/sa/b".parse().unwrap(),
            validity,
            issued_at: at,
            key_hash: KeyHash::of(b""),
            issuer: fingerprint,
            clamped: false,
            is_plain: false,
        };
        let entry = Entry::Certificate { issued: &issued, caller: "me" };
        assert_eq!(entry.encode(), Err(EncodeEntryError::Unreadable));
    }

    #[test]
    fn another_version_and_another_kind_are_named() {
        for (bytes, error) in [([2, 1], "version 2"), ([1, 9], "kind 9")] {
            assert!(Recorded::decode(0, &bytes).unwrap_err().to_string().contains(error));
        }
        assert!(matches!(
            Recorded::decode(0, &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]),
            Err(DecodeEntryError::Certificate(_))
        ));
        assert_eq!(
            Entry::JwtSvid { facts: &jwt(vec![]), caller: &"x".repeat(70_000) }.encode(),
            Err(EncodeEntryError::TooLarge)
        );
        let many = jwt(vec!["y".repeat(60_000), "z".repeat(60_000)]);
        assert_eq!(Entry::JwtSvid { facts: &many, caller: "me" }.encode(), Err(EncodeEntryError::TooLarge));
    }
}
