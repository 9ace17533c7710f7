//! What is issued is exactly what the standard and the design say, as OpenSSL, webpki and our own verifier read it.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_ca::{Authority, Csr, IssueError, Issued, Profile, Serial, SignError, Signer, Subject, issue};
use alcazar_identity::{CertificateDer, SpiffeId, TrustBundle, TrustBundles, TrustDomain};
use alcazar_mtls::{Side, verify_peer};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SignatureAlgorithm, SigningKey,
};
use rustls_pki_types::{ServerName, UnixTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// A signer as somebody outside this crate would write one.
struct TestSigner(KeyPair);

impl Signer for TestSigner {
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }

    fn public_key(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        SigningKey::sign(&self.0, message).map_err(|error| SignError(Box::new(error)))
    }
}

fn signer() -> Arc<dyn Signer> {
    Arc::new(TestSigner(crate::support::key()))
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn hierarchy() -> (Authority, Authority) {
    let root =
        Authority::root(&trust_domain(), signer(), Serial::random().unwrap(), at(crate::support::START)).unwrap();
    let serial = Serial::random().unwrap();
    let intermediate =
        Authority::intermediate(&root, &trust_domain(), "local", signer(), serial, at(crate::support::START)).unwrap();
    (root, intermediate)
}

fn leaf(issuer: &Authority, id: &SpiffeId, ttl: u64, now: u64) -> Result<Issued, IssueError> {
    let csr = Csr::from_der(&crate::support::csr(&crate::support::key())).unwrap();
    issue(&csr, id.into(), Duration::from_secs(ttl), issuer, Serial::random().unwrap(), at(now))
}

fn bundles(root: &Authority) -> TrustBundles {
    TrustBundle::new(trust_domain(), 1, [root.info().certificate.clone()]).unwrap().into()
}

/// A request that asks for the moon gets the key certified and nothing else.
#[test]
fn nothing_but_the_key_is_taken_from_a_request() {
    let (_, intermediate) = hierarchy();
    let key = crate::support::key();
    let mut greedy = CertificateParams::new(vec!["bank.example".into()]).unwrap();
    greedy.distinguished_name.push(DnType::CommonName, "root");
    greedy.subject_alt_names.push(SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()));
    greedy.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let csr = Csr::from_der(greedy.serialize_request(&key).unwrap().der()).unwrap();
    let now = at(crate::support::START);
    let issued = issue(
        &csr,
        (&crate::support::web()).into(),
        Duration::from_secs(60),
        &intermediate,
        Serial::random().unwrap(),
        now,
    )
    .unwrap();

    let (_, parsed) = X509Certificate::from_der(&issued.certificate).unwrap();
    assert_eq!(parsed.subject().iter().count(), 0);
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature alone");
    let extended = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.code_signing && !extended.any);
    assert_eq!(parsed.public_key().subject_public_key.data, key.public_key_raw());
}

#[test]
fn a_leaf_is_backdated_and_its_life_counts_from_issuance() {
    let (_, intermediate) = hierarchy();
    let issued = leaf(&intermediate, &crate::support::web(), 3600, crate::support::START + 7).unwrap();
    assert_eq!(issued.issued_at, at(crate::support::START + 7));
    assert_eq!(issued.validity.not_before(), at(crate::support::START + 7 - 120));
    assert_eq!(issued.validity.not_after(), at(crate::support::START + 7 + 3600));
    assert!(!issued.clamped);
}

#[test]
fn a_leaf_never_outlives_its_issuer_nor_comes_from_an_expired_one() {
    let (root, intermediate) = hierarchy();
    assert!(intermediate.info().validity.not_after() < root.info().validity.not_after());
    let end = intermediate.info().validity.not_after();
    let end_seconds = end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let issued = leaf(&intermediate, &crate::support::web(), 3600, end_seconds - 60).unwrap();
    assert!(issued.clamped && issued.validity.not_after() == end);
    let error = leaf(&intermediate, &crate::support::web(), 3600, end_seconds + 1).unwrap_err();
    assert!(matches!(error, IssueError::IssuerNotGood { .. }), "{error}");
    assert!(leaf(&intermediate, &crate::support::web(), 3600, crate::support::START - 3600).is_err());
    // Nor does an intermediate outlive its root.
    let nine_years = 9 * 365 * 24 * 3600 + 200 * 24 * 3600;
    let late = Authority::intermediate(
        &root,
        &trust_domain(),
        "local",
        signer(),
        Serial::random().unwrap(),
        at(crate::support::START + nine_years),
    )
    .unwrap();
    assert_eq!(late.info().validity.not_after(), root.info().validity.not_after());
}

#[test]
fn lives_are_asked_for_within_bounds() {
    let seconds = Duration::from_secs;
    let profile = Profile::new(seconds(3600), seconds(86_400)).unwrap();
    let ttl = |asked| profile.ttl(asked).ok();
    assert_eq!([ttl(0), ttl(-5), ttl(i64::MIN)], [Some(seconds(3600)); 3]);
    assert_eq!(
        [ttl(60), ttl(86_400), ttl(86_401), ttl(i64::MAX)],
        [Some(seconds(60)), Some(seconds(86_400)), None, None]
    );
    assert_eq!(ttl(1), Some(seconds(10)));
    for (default, max) in [(3600, 86_401), (0, 3600), (3601, 3600), (9, 9)] {
        assert!(Profile::new(seconds(default), seconds(max)).is_err(), "{default} {max}");
    }
}

#[test]
fn an_authority_is_a_certificate_of_a_ca_and_its_own_key() {
    let (root, _) = hierarchy();
    let certificate = root.info().certificate.clone();
    assert!(Authority::new(certificate, signer()).unwrap_err().to_string().contains("key does not belong"));
    let key = crate::support::key();
    let mut params = CertificateParams::default();
    let signed = |params: &CertificateParams| params.self_signed(&key).unwrap().der().clone();
    let authority = |certificate| {
        Authority::new(certificate, Arc::new(TestSigner(KeyPair::try_from(key.serialize_der()).unwrap())))
    };
    assert!(authority(signed(&params)).is_err());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    assert!(authority(signed(&params)).is_err());
    params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    assert!(authority(signed(&params)).is_ok());
    assert!(authority(CertificateDer::from(vec![1, 2, 3])).is_err());
}

fn write_pem(path: &Path, certificates: &[&CertificateDer<'_>]) {
    let block = |der: &&CertificateDer<'_>| alcazar_identity::pem_block("CERTIFICATE", der);
    fs::write(path, certificates.iter().map(block).collect::<String>()).unwrap();
}

fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn openssl_verifies_and_reads_the_chain() {
    let (root, intermediate) = hierarchy();
    let issued = leaf(&intermediate, &crate::support::web(), 3600, crate::support::START).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write_pem(&path.join("root.pem"), &[&root.info().certificate]);
    write_pem(&path.join("intermediate.pem"), &[&intermediate.info().certificate]);
    write_pem(&path.join("leaf.pem"), &[&issued.certificate]);

    let time = crate::support::START.to_string();
    for purpose in ["sslclient", "sslserver"] {
        let verify = [
            "verify",
            "-x509_strict",
            "-attime",
            &time,
            "-purpose",
            purpose,
            "-CAfile",
            "root.pem",
            "-untrusted",
            "intermediate.pem",
            "leaf.pem",
        ];
        assert_eq!(openssl(path, &verify).trim(), "leaf.pem: OK");
    }
    let text = openssl(path, &["x509", "-noout", "-text", "-in", "leaf.pem"]);
    for expected in [
        "Subject: \n",
        "X509v3 Subject Alternative Name: critical\n                URI:spiffe://cluster.local/ns/shop/sa/web\n",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
    let text = openssl(path, &["x509", "-noout", "-text", "-in", "intermediate.pem"]);
    for expected in ["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "URI:spiffe://cluster.local\n", "OU = local"] {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
    let text = openssl(path, &["x509", "-noout", "-text", "-in", "root.pem"]);
    for expected in
        ["CA:TRUE, pathlen:1", "Certificate Sign, CRL Sign", "Subject: CN = Alcazar root", "O = cluster.local"]
    {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
}

#[test]
fn dns_names_stand_beside_the_identity_where_they_are_given() {
    let (root, intermediate) = hierarchy();
    let csr = Csr::from_der(&crate::support::csr(&crate::support::key())).unwrap();
    let dns = ["ca.example".parse().unwrap(), "*.ca.example".parse().unwrap()];
    let subject = Subject { id: &crate::support::web(), dns: &dns };
    let issued = issue(
        &csr,
        subject,
        Duration::from_secs(60),
        &intermediate,
        Serial::random().unwrap(),
        at(crate::support::START),
    )
    .unwrap();
    let end_entity = webpki::EndEntityCert::try_from(&issued.certificate).unwrap();
    let anchor = webpki::anchor_from_trusted_cert(&root.info().certificate).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(crate::support::START));
    let intermediates = [intermediate.info().certificate.clone()];
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            &intermediates,
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .unwrap();
    for name in ["ca.example", "x.ca.example"] {
        end_entity.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap()).unwrap();
    }
    assert!(end_entity.verify_is_valid_for_subject_name(&ServerName::try_from("other.example").unwrap()).is_err());
    for bad in ["", "a b", "-a", "a..b", "*", "a.*.b", "ä.example", &"a".repeat(64)] {
        assert!(bad.parse::<alcazar_ca::DnsName>().is_err(), "{bad:?}");
    }
}

fn segments() -> impl Strategy<Value = String> {
    "[a-z0-9][a-zA-Z0-9._-]{0,30}".prop_filter("not a dot segment", |text| text != "." && text != "..")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// For any identity, life, moment and random bytes: our verifier takes it within its dates and not outside them.
    #[test]
    fn what_is_issued_verifies_within_its_life(
        namespace in segments(), account in segments(), ttl in 10..86_400u64, later in 0..300 * 24 * 3600u64, random: [u8; 16],
    ) {
        let (root, intermediate) = hierarchy();
        let now = crate::support::START + later;
        let id = SpiffeId::workload(&trust_domain(), &namespace, &account).unwrap();
        let csr = Csr::from_der(&crate::support::csr(&crate::support::key())).unwrap();
        let issued = issue(&csr, (&id).into(), Duration::from_secs(ttl), &intermediate, Serial::from_random(random), at(now)).unwrap();
        let chain = [issued.certificate.clone(), intermediate.info().certificate.clone()];
        for (moment, good) in [(now, true), (now - 120, true), (now + ttl, true), (now - 121, false), (now + ttl + 1, false)] {
            // The authorities themselves are as old as the start.
            let good = good && moment >= crate::support::START - 120;
            for side in [Side::Client, Side::Server] {
                let verdict = verify_peer(&chain, &bundles(&root), side, at(moment));
                prop_assert_eq!(verdict.is_ok(), good, "{} {:?}", moment, verdict);
                if let Ok(peer) = verdict {
                    prop_assert_eq!(peer.id(), &id);
                    prop_assert_eq!(peer.serial(), issued.serial.to_string());
                    prop_assert_eq!(peer.validity(), issued.validity);
                    prop_assert_eq!(peer.issuer(), issued.issuer);
                }
            }
        }
    }

    /// RFC 5280 §4.1.2.2: positive, at most 20 bytes; and not the same for another 126 bits.
    #[test]
    fn serials_are_positive_and_of_one_length(random: [u8; 16]) {
        let serial = Serial::from_random(random);
        let text = serial.to_string();
        prop_assert_eq!(text.len(), 32);
        prop_assert!(('4'..='7').contains(&text.chars().next().unwrap()));
        prop_assert_eq!(text.parse::<Serial>().unwrap(), serial);
    }
}

#[test]
fn the_same_key_gets_another_serial_each_time() {
    let (_, intermediate) = hierarchy();
    let csr = Csr::from_der(&crate::support::csr(&crate::support::key())).unwrap();
    let one = || {
        issue(
            &csr,
            (&crate::support::web()).into(),
            Duration::from_secs(60),
            &intermediate,
            Serial::random().unwrap(),
            at(crate::support::START),
        )
        .unwrap()
    };
    assert_ne!(one().serial, one().serial);
}
