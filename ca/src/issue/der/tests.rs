use std::{sync::Arc, time::Duration};

use alcazar_identity::{SpiffeId, TrustDomain};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SubjectPublicKeyInfo,
};
use x509_parser::prelude::FromDer;

use super::*;
use crate::{authority::Authority, signer::KeySigner};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn authority(algorithm: &'static SignatureAlgorithm) -> Authority {
    let trust_domain: TrustDomain = "cluster.local".parse().unwrap();
    let signer = || Arc::new(KeySigner::new(KeyPair::generate_for(algorithm).unwrap()));
    let root = Authority::root(&trust_domain, signer(), Serial::random().unwrap(), at(1_800_000_000)).unwrap();
    let serial = Serial::random().unwrap();
    Authority::intermediate(&root, &trust_domain, "east", signer(), serial, at(1_800_000_000)).unwrap()
}

fn csr(algorithm: &'static SignatureAlgorithm) -> Csr {
    let key = KeyPair::generate_for(algorithm).unwrap();
    Csr::from_der(CertificateParams::default().serialize_request(&key).unwrap().der()).unwrap()
}

/// The part that is signed, as rcgen writes it.
fn by_rcgen(
    issuer: &Authority,
    csr: &Csr,
    subject: Subject<'_>,
    serial: Serial,
    (from, to): (SystemTime, SystemTime),
) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial.to_bytes()));
    params.not_before = from.into();
    params.not_after = to.into();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(subject.id.as_str().try_into().unwrap())];
    let names = subject.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().unwrap()));
    params.subject_alt_names.extend(names);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let crl = issuer.crl().map(|url| rcgen::CrlDistributionPoint { uris: vec![url.to_owned()] });
    params.crl_distribution_points = crl.into_iter().collect();
    let key = SubjectPublicKeyInfo::from_der(csr.spki()).unwrap();
    let certificate = params.signed_by(&key, issuer.issuer()).unwrap();
    let (_, parsed) = X509Certificate::from_der(certificate.der()).unwrap();
    parsed.tbs_certificate.as_ref().to_vec()
}

fn labels() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[a-z0-9]{1,20}(-[a-z0-9]{1,20})?").unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked for, the bytes are those of rcgen, and the signature is over them.
    #[test]
    fn a_leaf_is_what_rcgen_would_write(
        issuer_kind in 0usize..3,
        key_kind in 0usize..3,
        namespace in labels(),
        account in labels(),
        dns in proptest::collection::vec((labels(), labels()), 0..9),
        serial in any::<[u8; 16]>(),
        from in 0u64..4_000_000_000,
        life in 1u64..100_000_000,
        // Lengths on both sides of where DER needs another byte.
        crl in proptest::option::of(proptest::string::string_regex("http://pki/[a-z]{0,150}").unwrap()),
    ) {
        let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        let (issuer, csr) = (authority(kinds[issuer_kind]), csr(kinds[key_kind]));
        let issuer = issuer.published_at(crl.map(|crl| crl.parse().unwrap()).as_ref());
        let id = SpiffeId::workload(&"cluster.local".parse().unwrap(), &namespace, &account).unwrap();
        let dns: Vec<DnsName> = dns.iter().map(|(one, two)| format!("{one}.{two}").parse().unwrap()).collect();
        let subject = Subject { id: &id, dns: &dns };
        let (serial, validity) = (Serial::from_random(serial), (at(from), at(from + life)));
        let ours = issuer.leaf().to_be_signed(&csr, subject, serial, validity);
        prop_assert_eq!(&ours, &by_rcgen(&issuer, &csr, subject, serial, validity));

        let signature = issuer.signer().sign(&ours).unwrap();
        let whole = issuer.leaf().certificate(&ours, &signature);
        let (rest, parsed) = X509Certificate::from_der(&whole).unwrap();
        let (_, above) = X509Certificate::from_der(&issuer.info().certificate).unwrap();
        prop_assert!(rest.is_empty() && parsed.verify_signature(Some(above.public_key())).is_ok());
        prop_assert_eq!(parsed.signature_algorithm, parsed.tbs_certificate.signature.clone());
    }

    /// Lengths of every form, on both sides of each step.
    #[test]
    fn lengths_are_as_short_as_der_wants(length in prop_oneof![0usize..300, 65_000usize..66_000]) {
        let mut out = Vec::new();
        tlv(&mut out, OCTET_STRING, |out| out.resize(out.len() + length, 7));
        let (rest, read) = x509_parser::der_parser::parse_der(&out).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(read.as_slice().unwrap().len(), length);
        prop_assert_eq!(out.len() - length, match length { 0..128 => 2, 128..256 => 3, 256..65_536 => 4, _ => 5 });
    }
}

#[test]
fn a_century_is_written_from_2050_on() {
    let written = |seconds| {
        let mut out = Vec::new();
        moment(&mut out, at(seconds));
        String::from_utf8(out.split_off(2)).unwrap()
    };
    assert_eq!(written(2_524_607_999), "491231235959Z");
    assert_eq!(written(2_524_608_000), "20500101000000Z");
}
