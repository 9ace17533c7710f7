//! What an operator changes by hand.

use std::path::Path;
use std::process::ExitCode;

use alcazar_api::ca::v1::{self, bundles_client::BundlesClient};
use alcazar_identity::{CertificateDer, Fingerprint, TrustDomain};
use rustls_pki_types::pem::PemObject;

use crate::operator::{CaArg, OperatorError};
use crate::say;

pub(super) async fn add(ca: &CaArg, file: &Path) -> Result<ExitCode, OperatorError> {
    let roots = certificates(file)?;
    let prints: Vec<_> = roots.iter().map(|root| Fingerprint::of(root).to_string()).collect();
    let roots = roots.iter().map(|root| root.to_vec()).collect();
    let mut client = BundlesClient::new(ca.connect().await?);
    let added = client.add_roots(v1::AddRootsRequest { roots }).await?.into_inner().added;
    let what = match added {
        0 => "trusted already".to_owned(),
        added => format!("{added} added; whatever they sign is believed"),
    };
    Ok(say(&format!("{}: {what}\n", prints.join(", "))))
}

pub(super) async fn remove(ca: &CaArg, file: &Path, force: bool) -> Result<ExitCode, OperatorError> {
    let roots = certificates(file)?;
    let [root] = roots.as_slice() else {
        return Err(OperatorError::File {
            path: file.to_owned(),
            what: format!("it holds {} certificates; one is removed at a time", roots.len()),
        });
    };
    let mut client = BundlesClient::new(ca.connect().await?);
    client.remove_root(v1::RemoveRootRequest { root: root.to_vec(), force }).await?;
    Ok(say(&format!("{}: trusted no more\n", Fingerprint::of(root))))
}

pub(super) async fn set(ca: &CaArg, trust_domain: &TrustDomain, file: &Path) -> Result<ExitCode, OperatorError> {
    let bundle = read(file)?;
    let mut client = BundlesClient::new(ca.connect().await?);
    let request = v1::SetForeignBundleRequest { trust_domain: trust_domain.to_string(), bundle };
    let changed = client.set_foreign_bundle(request).await?.into_inner().changed;
    Ok(say(&match changed {
        true => format!("{trust_domain}: believed by this bundle\n"),
        false => format!("{trust_domain}: this bundle is held already\n"),
    }))
}

pub(super) async fn delete(ca: &CaArg, trust_domain: &TrustDomain) -> Result<ExitCode, OperatorError> {
    let mut client = BundlesClient::new(ca.connect().await?);
    let request = v1::DeleteForeignBundleRequest { trust_domain: trust_domain.to_string() };
    match client.delete_foreign_bundle(request).await?.into_inner().deleted {
        true => Ok(say(&format!("{trust_domain}: believed no more\n"))),
        false => Err(super::no_bundle(trust_domain)),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, OperatorError> {
    let wrong = |what: String| OperatorError::File { path: file.to_owned(), what };
    let pem = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong("it holds no certificate in PEM".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, OperatorError> {
    std::fs::read(file).map_err(|error| OperatorError::File { path: file.to_owned(), what: error.to_string() })
}
