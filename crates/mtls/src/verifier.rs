//! The two adapters between rustls and [`verify_peer`](crate::verify_peer): one for each side, made for one handshake.

use std::fmt;
use std::sync::{Arc, OnceLock};

use alcazar_identity::{CertificateDer, Credentials, Fingerprint, Revocations, TrustBundle, TrustBundles, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{ServerName, UnixTime};

use crate::verify::{Presented, verify_chain};
use crate::{Clients, Clock, Expected, PeerIdentity, Side, VerifyPeerError, provider};

/// What one handshake found out about the peer: written once by the verifier, read once the handshake is over.
#[derive(Default)]
pub(crate) struct Verdict(OnceLock<Result<PeerIdentity, VerifyPeerError>>);

impl Verdict {
    /// The peer, once it is verified.
    pub(crate) fn peer(&self) -> Option<PeerIdentity> {
        self.0.get()?.as_ref().ok().cloned()
    }

    /// The reason, once it is refused.
    pub(crate) fn refused(&self) -> Option<VerifyPeerError> {
        self.0.get()?.as_ref().err().cloned()
    }

    /// Keeps the outcome, and tells rustls which alert the peer should see.
    fn settle(&self, outcome: Result<PeerIdentity, VerifyPeerError>) -> Result<(), Error> {
        let answer = match &outcome {
            Ok(_) => Ok(()),
            Err(refused) => Err(Error::InvalidCertificate(alert_for(refused))),
        };
        match self.0.set(outcome) {
            Ok(()) => answer,
            // One connection, one verification: a second could only contradict what was reported.
            Err(_) => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }
}

/// The error whose TLS alert tells the peer most about why it is refused.
fn alert_for(refused: &VerifyPeerError) -> CertificateError {
    match refused {
        VerifyPeerError::Expired { .. } => CertificateError::Expired,
        VerifyPeerError::NotYetValid { .. } => CertificateError::NotValidYet,
        VerifyPeerError::WrongUsage { .. } => CertificateError::InvalidPurpose,
        VerifyPeerError::Revoked { .. } => CertificateError::Revoked,
        VerifyPeerError::Unexpected { .. } => CertificateError::ApplicationVerificationFailure,
        VerifyPeerError::ForeignTrustDomain { .. }
        | VerifyPeerError::UnknownIssuer { .. }
        | VerifyPeerError::Signature { .. }
        | VerifyPeerError::Issuer { .. }
        | VerifyPeerError::PinnedRootMissing { .. }
        | VerifyPeerError::PinnedRootUnusable { .. } => CertificateError::UnknownIssuer,
        VerifyPeerError::NoCertificate
        | VerifyPeerError::LongChain { .. }
        | VerifyPeerError::Form { .. }
        | VerifyPeerError::Path { .. } => CertificateError::BadEncoding,
    }
}

/// What both sides say of the signature in a handshake: the two traits of rustls ask for it separately.
macro_rules! signatures_of_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &provider::signatures())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider::signatures().supported_schemes()
        }
    };
}

/// Judges the client of one connection.
pub(crate) struct VerifyClient {
    credentials: Arc<Credentials>,
    clients: Clients,
    clock: Clock,
    pub(crate) verdict: Verdict,
}

impl VerifyClient {
    pub(crate) fn new(credentials: Arc<Credentials>, clients: Clients, clock: Clock) -> Self {
        Self { credentials, clients, clock, verdict: Verdict::default() }
    }
}

impl ClientCertVerifier for VerifyClient {
    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::Required
    }

    // None: a client has one identity, and our roots are not for strangers to list.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now = (self.clock)();
        let outcome = verify_chain(
            end_entity,
            intermediates,
            self.credentials.bundles(),
            self.credentials.revocations(),
            Side::Client,
            now,
        );
        self.verdict.settle(outcome).map(|()| ClientCertVerified::assertion())
    }

    signatures_of_tls13!();
}

/// Judges the server of one connection.
pub(crate) struct VerifyServer {
    trust: Trust,
    expected: Expected,
    clock: Clock,
    pub(crate) verdict: Verdict,
}

/// Where a client's roots come from.
pub(crate) enum Trust {
    /// From our own bundles.
    Credentials(Arc<Credentials>),
    /// From these bundles, less what is revoked, by a client that has no credentials or shows none.
    Bundles(Arc<TrustBundles>, Arc<Revocations>),
    /// From the server's own chain: the certificate with this fingerprint, for this trust domain alone.
    Pin(TrustDomain, Fingerprint),
}

impl VerifyServer {
    pub(crate) fn new(trust: Trust, expected: Expected, clock: Clock) -> Self {
        Self { trust, expected, clock, verdict: Verdict::default() }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
    ) -> Result<PeerIdentity, VerifyPeerError> {
        let now = (self.clock)();
        let peer = match &self.trust {
            Trust::Credentials(credentials) => {
                verify_chain(leaf, issuers, credentials.bundles(), credentials.revocations(), Side::Server, now)
            }
            Trust::Bundles(bundles, revocations) => {
                verify_chain(leaf, issuers, bundles, revocations, Side::Server, now)
            }
            Trust::Pin(trust_domain, pin) => {
                let bundles = pinned(leaf, issuers, trust_domain, *pin)?;
                verify_chain(leaf, issuers, &bundles, &Revocations::default(), Side::Server, now)
            }
        }?;
        match self.expected.allows(peer.id()) {
            true => Ok(peer),
            false => Err(VerifyPeerError::Unexpected { id: peer.id().clone(), expected: self.expected.clone() }),
        }
    }
}

/// The presented certificate with the pinned fingerprint, as the one root of its trust domain.
fn pinned(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    trust_domain: &TrustDomain,
    pin: Fingerprint,
) -> Result<TrustBundles, VerifyPeerError> {
    let root = issuers.iter().find(|issuer| Fingerprint::of(issuer) == pin).ok_or_else(|| {
        let presented = issuers.iter().map(|issuer| Fingerprint::of(issuer)).collect();
        VerifyPeerError::PinnedRootMissing { peer: Presented::boxed(leaf), pin, presented }
    })?;
    TrustBundle::new(trust_domain.clone(), 0, [root.clone().into_owned()])
        .map(TrustBundles::from)
        .map_err(|_| VerifyPeerError::PinnedRootUnusable { pin })
}

impl ServerCertVerifier for VerifyServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let outcome = self.judge(end_entity, intermediates);
        self.verdict.settle(outcome).map(|()| ServerCertVerified::assertion())
    }

    signatures_of_tls13!();
}

impl fmt::Debug for VerifyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyClient").field("clients", &self.clients).finish_non_exhaustive()
    }
}

impl fmt::Debug for VerifyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyServer").field("expected", &self.expected).finish_non_exhaustive()
    }
}
