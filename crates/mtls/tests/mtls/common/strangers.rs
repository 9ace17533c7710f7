//! Peers whose chains break one rule each, and a TLS stack without rules to carry them.

use std::sync::Arc;

use alcazar_identity::{CertificateDer, TrustBundles};
use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use rustls_pki_types::{ServerName, UnixTime};

use super::*;

/// A chain that must be refused, and what a person must be able to read about it.
pub(crate) struct Stranger {
    pub(crate) rule: &'static str,
    pub(crate) holder: Holder,
    pub(crate) reason: Vec<String>,
}

/// One stranger for each rule.
pub(crate) fn strangers(mesh: &Mesh) -> Vec<Stranger> {
    let Mesh { root, cluster } = mesh;
    let mut all = Vec::new();
    let mut add = |rule, holder: Holder, reason: &[&str]| {
        let reason = reason.iter().map(|text| (*text).to_owned()).collect();
        all.push(Stranger { rule, holder, reason });
    };
    let leaf = |change: fn(&mut rcgen::CertificateParams)| cluster.leaf_with(&[REVIEWS], change);

    let expired = leaf(|params| dates(params, now() - 2 * HOUR, now() - HOUR));
    let clocks = ["2027-01-15T07:00:00Z", "1 h 0 min before our clock's 2027-01-15T08:00:00Z"];
    add("expired leaf", expired, &[REVIEWS, "certificate expired at", clocks[0], clocks[1]]);
    let early = leaf(|params| dates(params, now() + HOUR, now() + 2 * HOUR));
    add(
        "leaf of the future",
        early,
        &[REVIEWS, "not good before 2027-01-15T09:00:00Z", "our clock's 2027-01-15T08:00:00Z"],
    );

    let foreign = Ca::root("other").leaf("spiffe://other.example/ns/shop/sa/reviews");
    add("foreign trust domain", foreign, &["spiffe://other.example/", "we trust cluster.local"]);
    let impostor = Ca::root("impostor");
    let print = alcazar_identity::Fingerprint::of(&root.der).to_string();
    add(
        "unknown root",
        impostor.leaf(REVIEWS),
        &[REVIEWS, "CN=impostor", "roots that we trust for cluster.local", &print],
    );
    let namesake = Ca::root("root").intermediate(TD).leaf(REVIEWS);
    add("root of the same name", namesake, &[REVIEWS, "not by the key of the issuer it names", &print]);
    let mut bare = cluster.leaf(REVIEWS);
    bare.chain.truncate(1);
    add("missing intermediate", bare, &[REVIEWS, "CN=cluster east", "did not present"]);

    let two = cluster.leaf_with(&[REVIEWS, RATINGS], |_| ());
    add("two URIs", two, &[REVIEWS, RATINGS, "2 URIs"]);
    let hidden = cluster.leaf_with(&[], |params| {
        params.custom_extensions = vec![raw_uris(&[REVIEWS.as_bytes(), b"spiffe://cluster.local/\xff"])];
    });
    add("a second URI that cannot be read", hidden, &[REVIEWS, "names cannot be read"]);
    add("no URI", cluster.leaf_with(&[], |_| ()), &["an unnamed certificate", "no URI"]);
    add("no path", cluster.leaf("spiffe://cluster.local"), &["spiffe://cluster.local", "no path"]);
    add("no SPIFFE ID", cluster.leaf("https://cluster.local/a"), &["https://cluster.local/a", "not a SPIFFE ID"]);
    let ca = leaf(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    add("CA as leaf", ca, &[REVIEWS, "it is a CA certificate"]);
    let signer = leaf(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    add("leaf that may sign", signer, &[REVIEWS, "lets it sign certificates"]);
    let mailer = leaf(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection]);
    add("wrong extended key usage", mailer, &[REVIEWS, "extended key usage"]);

    let elsewhere = root.intermediate("other.example").leaf(REVIEWS);
    add(
        "intermediate of another trust domain",
        elsewhere,
        &[REVIEWS, "spiffe://other.example", "not a CA of the trust domain cluster.local"],
    );
    let odd = root.intermediate_with(|params| params.subject_alt_names = vec![uri("https://ca.example")]).leaf(REVIEWS);
    add("intermediate with a foreign URI", odd, &[REVIEWS, "not a CA of the trust domain cluster.local"]);
    let garbled = root.intermediate_with(|params| params.custom_extensions = vec![raw_uris(&[b"spiffe://\xff"])]);
    add("intermediate with an unreadable URI", garbled.leaf(REVIEWS), &[REVIEWS, "cannot be read"]);
    let mute = root.intermediate_with(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]).leaf(REVIEWS);
    add("intermediate without keyCertSign", mute, &[REVIEWS, "lacks keyCertSign"]);
    let silent = root.intermediate_with(|params| params.key_usages.clear()).leaf(REVIEWS);
    add("intermediate without key usage", silent, &[REVIEWS, "lacks keyCertSign"]);
    let old = root.intermediate_with(|params| dates(params, now() - YEAR, now() - HOUR)).leaf(REVIEWS);
    add("expired intermediate", old, &[REVIEWS, "intermediate expired at 2027-01-15T07:00:00Z", "CN=cluster east"]);
    let plain = root.intermediate_with(|params| params.is_ca = IsCa::ExplicitNoCa).leaf(REVIEWS);
    add("intermediate that is no CA", plain, &[REVIEWS, "rule of X.509", "EndEntityUsedAsCa"]);
    let deep =
        cluster.intermediate_with(|params| params.distinguished_name.push(DnType::CommonName, "deep")).leaf(REVIEWS);
    add("longer than the path length allows", deep, &[REVIEWS, "rule of X.509", "PathLenConstraintViolated"]);
    let mut long = cluster.leaf(REVIEWS);
    long.chain.extend(vec![cluster.der.clone(); 6]);
    add("too many certificates", long, &[REVIEWS, "presented 8 certificates"]);
    all
}

/// A client that shows this chain and believes anybody.
pub(crate) fn careless_client(holder: &Holder) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless(provider)))
        .with_client_auth_cert(holder.chain.clone(), holder.private_key())
        .unwrap();
    Arc::new(config)
}

/// A client on another TLS stack: it offers no hybrid group, and judges the server as ours do.
#[allow(dead_code, reason = "the benchmark's")]
pub(crate) fn verifying_client(holder: &Holder, bundles: &TrustBundles) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careful(provider, bundles.clone())))
        .with_client_auth_cert(holder.chain.clone(), holder.private_key())
        .unwrap();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// A client that shows nothing and believes anybody.
pub(crate) fn careless_anonymous_client() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless(provider)))
        .with_no_client_auth();
    Arc::new(config)
}

/// A server that shows this chain and believes anybody.
pub(crate) fn careless_server(holder: &Holder) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(Careless(provider)))
        .with_single_cert(holder.chain.clone(), holder.private_key())
        .unwrap();
    Arc::new(config)
}

#[derive(Debug)]
struct Careless(Arc<CryptoProvider>);

macro_rules! believe_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    };
}

#[derive(Debug)]
#[allow(dead_code, reason = "the benchmark's")]
struct Careful(Arc<CryptoProvider>, TrustBundles);

impl ServerCertVerifier for Careful {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(issuers).cloned().collect();
        match alcazar_mtls::verify_peer(&chain, &self.1, alcazar_mtls::Side::Server, now()) {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(refused) => Err(Error::General(refused.to_string())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::HandshakeNotComplete)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    believe_signatures!();
}

impl ClientCertVerifier for Careless {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    believe_signatures!();
}
