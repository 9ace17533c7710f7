use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{
    CertificateDer, Credentials, Fingerprint, ParseSvidError, Revocations, Revoked, SpiffeId, SvidKey, TrustBundle,
    TrustBundles, X509Svid,
};
use alcazar_mtls::{Side, VerifyPeerError, verify_peer};

use crate::issuers::ISSUERS;
use crate::schedule::Life;

/// A certificate that the CA issued, and that was held against what was asked for.
#[derive(Debug, Clone)]
pub struct Issued {
    credentials: Arc<Credentials>,
    life: Life,
}

/// How the trust bundles in a reply are known to be the CA's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The reply came over a connection that the held bundles verified.
    Established,
    /// Nothing is held yet: the root with this fingerprint must be among the roots of our own trust domain.
    Pinned(Fingerprint),
}

impl Issued {
    /// Accepts the CA's reply to a request made with `key` for the identity `expected`.
    ///
    /// # Errors
    /// When the certificate is another's, has another key, leads to no root of its bundle, or is not good now. A CA
    /// that answers so is broken; what it sent is not used.
    pub fn accept(
        reply: &v1::IssuedSvid,
        key: SvidKey,
        expected: &SpiffeId,
        trust: Trust,
        received: SystemTime,
    ) -> Result<Self, ReplyError> {
        let (leaf, above) = reply.chain.split_first().ok_or(ParseSvidError::Empty)?;
        let chain =
            std::iter::once(CertificateDer::from(leaf.clone())).chain(above.iter().map(|der| ISSUERS.share(der)));
        let svid = X509Svid::new(chain.collect(), key)?;
        if svid.id() != expected {
            return Err(ReplyError::OtherIdentity { got: svid.id().clone(), expected: expected.clone() });
        }
        let bundles = read_bundles(reply.bundles.as_ref().ok_or(ReplyError::NoBundle)?)?;
        let own = bundles.get(expected.trust_domain()).ok_or(ReplyError::NoBundle)?;
        if let Trust::Pinned(pin) = trust
            && !own.roots().any(|root| Fingerprint::of(root) == pin)
        {
            return Err(ReplyError::PinMissing(pin));
        }
        verify_peer(svid.chain(), &bundles, Side::Client, received)?;
        let issued_at = time_of(reply.issued_at).ok_or(ReplyError::Times)?;
        // The certificate itself is what peers look at; the reply's copy of its end is not needed.
        let life = Life::new(issued_at, svid.validity().not_after(), received).ok_or(ReplyError::Times)?;
        Ok(Self::restored(svid, bundles, life))
    }

    /// The certificate and its key.
    pub fn svid(&self) -> &X509Svid {
        self.credentials.svid()
    }

    /// The bundles that came with it, or were said since.
    pub fn bundles(&self) -> &TrustBundles {
        self.credentials.bundles()
    }

    /// How long it is good.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// What an endpoint needs to be it. Shared: there is one copy of each key.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.clone()
    }

    pub(crate) fn restored(svid: X509Svid, bundles: TrustBundles, life: Life) -> Self {
        Self { credentials: Arc::new(Credentials::new(svid, bundles)), life }
    }

    pub(crate) fn believe(&mut self, bundles: Arc<TrustBundles>) {
        Arc::make_mut(&mut self.credentials).believe(bundles);
    }

    /// Holds its peers against these from now on.
    pub(crate) fn revoke(&mut self, revocations: Arc<Revocations>) {
        Arc::make_mut(&mut self.credentials).revoke(revocations);
    }

    /// Why peers who know these revocations do not believe it any more.
    pub(crate) fn revoked(&self, now: SystemTime) -> Option<Revoked> {
        let own = verify_peer(self.svid().chain(), self.bundles(), Side::Client, now).ok()?;
        own.revoked_by(self.credentials.revocations())
    }
}

/// The bundles to believe when `said` comes after `held`: what was said, but never an older bundle for a newer one.
pub(crate) fn advance(held: &TrustBundles, said: &TrustBundles) -> TrustBundles {
    let newest = |said: &TrustBundle| match held.get(said.trust_domain()) {
        Some(held) if held.sequence() > said.sequence() => held.clone(),
        _ => said.clone(),
    };
    said.iter().map(newest).collect()
}

/// Reads the bundles that a CA sent.
pub(crate) fn read_bundles(wire: &v1::TrustBundles) -> Result<TrustBundles, ReplyError> {
    TrustBundles::try_from(wire.clone()).map_err(|error| ReplyError::Bundles(Box::new(error)))
}

/// Seconds since the Unix epoch, as the CA writes them.
pub(crate) fn time_of(seconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// Why a reply of the CA is not used.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The chain is no X509-SVID of the key that was asked for.
    #[error("the CA sent what is no certificate for the request")]
    Svid(#[from] ParseSvidError),
    /// The certificate names somebody else.
    #[error("the CA sent a certificate of {got}, asked for was {expected}")]
    OtherIdentity {
        /// Whom it names.
        got: SpiffeId,
        /// Who was asked for.
        expected: SpiffeId,
    },
    /// There is no bundle of our own trust domain, so nothing could be verified.
    #[error("the CA sent no trust bundle of its trust domain")]
    NoBundle,
    /// The bundles cannot be read.
    #[error("the CA's trust bundles cannot be read")]
    Bundles(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The root that the join token pins is not among the roots.
    #[error("the CA's trust bundle lacks the root that the join token pins (SHA-256 {0})")]
    PinMissing(Fingerprint),
    /// The chain does not lead to a root, or is not good now.
    #[error("the CA sent a certificate that does not verify")]
    Verify(#[from] VerifyPeerError),
    /// Its times make no life.
    #[error("the CA sent a certificate that ends before it was issued")]
    Times,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;
    use crate::testing::ca::{Ca, NODE, node};

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    const HOUR: Duration = Duration::from_secs(3600);

    /// What is said of a reply that a CA has spoilt, received `late` after noon.
    fn verdict(late: i64, spoil: impl FnOnce(&mut Ca, &mut v1::IssuedSvid)) -> String {
        let mut ca = Ca::new(noon());
        let key = keys::generate().unwrap();
        let mut reply = ca.issue_one(&keys::request(&key).unwrap(), NODE, HOUR, noon());
        spoil(&mut ca, &mut reply);
        let late_by = Duration::from_secs(late.unsigned_abs());
        let received = if late < 0 { noon() - late_by } else { noon() + late_by };
        let trust = Trust::Pinned(Fingerprint::of(&ca.root_der()));
        match Issued::accept(&reply, key, &node(), trust, received) {
            Ok(issued) => format!("good for {:?}", issued.life().span()),
            Err(error) => alcazar_service::process::chain(&error),
        }
    }

    #[test]
    fn a_reply_is_used_only_when_it_is_what_was_asked_for() {
        let check = |late, spoil: fn(&mut Ca, &mut v1::IssuedSvid), expected: &str| {
            let verdict = verdict(late, spoil);
            assert!(verdict.contains(expected), "{verdict}\nshould say: {expected}");
        };
        check(0, |_, _| (), "good for 3600s");
        check(90, |_, _| (), "good for 3600s");
        check(-90, |_, _| (), "good for 3600s");
        // An hour wrong: both clocks are named.
        check(-3600, |_, _| (), "2027-01-15T07:00:00Z");
        check(3700, |_, _| (), "2027-01-15T09:01:40Z");
        check(0, |_, reply| reply.chain.clear(), "there is no certificate");
        check(0, |_, reply| reply.chain[0] = vec![1, 2, 3], "not an X.509 certificate");
        check(0, |_, reply| reply.bundles = None, "no trust bundle");
        check(0, |_, reply| reply.issued_at = i64::MIN, "ends before it was issued");
        check(0, |_, reply| reply.issued_at += 7200, "ends before it was issued");
        check(0, |_, reply| drop(reply.chain.pop()), "does not verify");
        let other_key = |ca: &mut Ca, reply: &mut v1::IssuedSvid| {
            let theirs = keys::request(&keys::generate().unwrap()).unwrap();
            *reply = ca.issue_one(&theirs, NODE, HOUR, noon());
        };
        check(0, other_key, "the private key is not the certificate's");
        let other_root = |_: &mut Ca, reply: &mut v1::IssuedSvid| {
            reply.bundles = Some((&Ca::new(noon()).bundles()).into());
        };
        check(0, other_root, "lacks the root that the join token pins");
        let nonsense = |_: &mut Ca, reply: &mut v1::IssuedSvid| {
            reply.bundles.as_mut().unwrap().bundles[0].roots = vec![vec![0]];
        };
        check(0, nonsense, "cannot be read");
    }

    #[test]
    fn a_certificate_of_somebody_else_is_refused() {
        let mut ca = Ca::new(noon());
        let key = keys::generate().unwrap();
        let other = "spiffe://td.example/node/east/vm-2";
        let reply = ca.issue_one(&keys::request(&key).unwrap(), other, HOUR, noon());
        let refused = Issued::accept(&reply, key, &node(), Trust::Established, noon()).unwrap_err();
        assert_eq!(refused.to_string(), format!("the CA sent a certificate of {other}, asked for was {NODE}"));
    }

    #[test]
    fn an_older_bundle_never_replaces_a_newer_one() {
        let mut ca = Ca::new(noon());
        let old = ca.bundles();
        ca.add_root(Ca::new(noon()).root_der());
        let new = ca.bundles();
        assert_eq!(advance(&old, &new), new);
        assert_eq!(advance(&new, &old), new);
        assert_eq!(advance(&TrustBundles::default(), &old), old);
        assert_eq!(
            advance(&new, &TrustBundles::default()),
            TrustBundles::default(),
            "what is not said is not believed"
        );
    }
}
