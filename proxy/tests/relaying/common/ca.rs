use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Credentials, SvidKey, TrustBundle, TrustBundles, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A root that signs leaves of the trust domain `td`.
pub(crate) struct Ca {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn credentials(&self, id: &str) -> Credentials {
        self.credentials_for(id, Duration::from_secs(3600))
    }

    pub(crate) fn credentials_for(&self, id: &str, life: Duration) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + life).into();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = SvidKey::from_pkcs8(key.serialize_der()).unwrap();
        let svid = X509Svid::new(vec![leaf], key).unwrap();
        Credentials::new(svid, self.bundles())
    }

    pub(crate) fn bundles(&self) -> TrustBundles {
        TrustBundle::new("td".parse().unwrap(), 1, [self.root.clone()]).unwrap().into()
    }
}
