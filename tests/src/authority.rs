use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

/// Writes `ca.pem`, and `cert.pem` with `key.pem` of it for these names, good for servers and for clients. For components that are
/// not ours and have certificates that are no SVIDs.
pub(crate) fn write(folder: &Path, names: &[&str]) -> Result<()> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let mut leaf = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    // etcd 3.4's gateway takes no certificate without a name.
    leaf.distinguished_name.push(rcgen::DnType::CommonName, "component of a test");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    fs::write(folder.join("cert.pem"), leaf.signed_by(&key, &authority)?.pem())?;
    fs::write(folder.join("key.pem"), key.serialize_pem())?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    Ok(())
}
