//! CRLs of roots that are kept offline: brought with their list, or with the set that is plugged in, and handed out as they are.

use std::collections::BTreeMap;

use alcazar_identity::{CertificateDer, Fingerprint};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, revocation_list::CertificateRevocationList};

use super::{RevokeError, crl::CrlError};
use crate::{
    ca::Ca,
    records::{RecordError, family},
};

/// A CRL on record, as it was signed.
#[derive(Serialize, Deserialize)]
struct CrlRecord {
    /// DER, in base64.
    crl: String,
}

impl Ca {
    /// Takes over CRLs that trusted roots have signed; of which roots. One that is not newer than what is held changes nothing.
    pub(crate) async fn import_crls(&self, crls: &[Vec<u8>]) -> Result<Vec<Fingerprint>, RevokeError> {
        let mut taken = Vec::new();
        for crl in crls {
            let hierarchy = self.hierarchy();
            let bundles = self.bundles_with(&hierarchy);
            let roots = bundles.iter().flat_map(|bundle| bundle.roots()).map(|root| (Fingerprint::of(root), root));
            let root = signer(crl, roots).ok_or(RevokeError::Crl)?;
            // Those of other trust domains are handed out by their own CAs.
            if !hierarchy.trusts(root) {
                continue;
            }
            if crl.len() > LONGEST {
                return Err(RevokeError::LongCrl(crl.len()));
            }
            if self.put_crl(root, crl).await? {
                taken.push(root);
            }
        }
        Ok(taken)
    }

    /// Never in place of a newer one; whether it is one.
    async fn put_crl(&self, root: Fingerprint, crl: &[u8]) -> Result<bool, RecordError> {
        let name = name_of(root);
        loop {
            let found = self.0.records.get::<CrlRecord>(family::REVOCATION_LISTS, &name).await?;
            let held = found.as_ref().and_then(|found| STANDARD.decode(&found.record.crl).ok());
            if held.is_some_and(|held| number(&held) >= number(crl)) {
                return Ok(false);
            }
            let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
            let record = CrlRecord { crl: STANDARD.encode(crl) };
            match self.0.records.put(family::REVOCATION_LISTS, &name, expected, &record).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(|_revision| true),
            }
        }
    }

    /// The newest CRL of a root that was brought: imported, or plugged in with the set.
    pub(super) async fn brought_crl(&self, root: Fingerprint) -> Result<Option<Vec<u8>>, CrlError> {
        let found = self.0.records.get::<CrlRecord>(family::REVOCATION_LISTS, &name_of(root)).await?;
        let imported = found.and_then(|found| STANDARD.decode(found.record.crl).ok());
        let hierarchy = self.hierarchy();
        let trusted =
            hierarchy.roots().iter().find(|info| info.fingerprint == root).map(|info| info.certificate.clone());
        let Some(certificate) = trusted else { return Ok(None) };
        let files = self.0.files.clone();
        let plugged = tokio::task::spawn_blocking(move || files.plugged.crls()).await;
        let plugged = plugged.map_err(|_ending| CrlError::Interrupted)?;
        let all = plugged.into_iter().chain(imported);
        let its = all.filter(|crl| signer(crl, [(root, &certificate)]).is_some());
        Ok(its.max_by_key(|crl| number(crl)))
    }

    /// Every CRL that was imported, of roots that are trusted.
    pub(crate) async fn imported_crls(&self) -> Result<Vec<Vec<u8>>, RecordError> {
        let mut crls = BTreeMap::new();
        for root in self.hierarchy().roots() {
            let found = self.0.records.get::<CrlRecord>(family::REVOCATION_LISTS, &name_of(root.fingerprint)).await?;
            if let Some(crl) = found.and_then(|found| STANDARD.decode(found.record.crl).ok()) {
                crls.insert(root.fingerprint, crl);
            }
        }
        Ok(crls.into_values().collect())
    }
}

/// The CRLs in a PEM file; what is none is left out.
pub(crate) fn crls_in(pem: &[u8]) -> Vec<Vec<u8>> {
    CertificateRevocationListDer::pem_slice_iter(pem).filter_map(Result::ok).map(|der| der.to_vec()).collect()
}

/// Which of these has signed a CRL.
fn signer<'a>(
    crl: &[u8],
    authorities: impl IntoIterator<Item = (Fingerprint, &'a CertificateDer<'static>)>,
) -> Option<Fingerprint> {
    let (rest, list) = CertificateRevocationList::from_der(crl).ok()?;
    let signed = |certificate: &CertificateDer<'_>| {
        X509Certificate::from_der(certificate).is_ok_and(|(_, issuer)| {
            issuer.subject() == list.issuer() && list.verify_signature(issuer.public_key()).is_ok()
        })
    };
    let mut found = authorities.into_iter().filter(|(_, certificate)| rest.is_empty() && signed(certificate));
    found.next().map(|(fingerprint, _)| fingerprint)
}

/// Later ones have higher numbers, which are as long as they like.
fn number(crl: &[u8]) -> (usize, Vec<u8>) {
    let list = CertificateRevocationList::from_der(crl).ok();
    let number = list.and_then(|(_, list)| list.crl_number().map(|number| number.to_bytes_be())).unwrap_or_default();
    (number.len(), number)
}

fn name_of(root: Fingerprint) -> String {
    format!("{CRLS}/{root}")
}

const CRLS: &str = "crls";
/// In base64 it fits into one value of every store: a thousand revoked intermediates.
const LONGEST: usize = 40 * 1024;
