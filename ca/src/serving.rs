//! The CA's own serving certificate: issued in process, on record like any other, rotated at half of its life.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{
    Credentials, KeyError, ParseSpiffeIdError, ParseSvidError, Proven, RevokedBy, SpiffeId, SvidKey, TrustDomain,
    X509Svid, rfc3339,
};
use alcazar_ledger::AppendError;
use alcazar_service::{Shutdown, process};
use rcgen::{CertificateParams, KeyPair};
use thiserror::Error;

use crate::{
    ca::Ca,
    csr::{Csr, CsrError},
    hierarchy::Hierarchy,
    issue::{self, IssueError, Issued, Subject},
    ledger::{Entry, LedgerError},
    profile::{DnsName, Profile},
    serial::{NoRandomness, Serial},
};

/// A certificate to serve with, and its record.
pub(crate) struct Serving {
    pub(crate) credentials: Credentials,
    pub(crate) issued: Issued,
}

/// Whether it is the identity that the CA of some trust domain serves with.
pub(crate) fn is_the_cas(id: &SpiffeId) -> bool {
    id.namespace() == Some(NAMESPACE) && id.service_account() == Some(ACCOUNT)
}

const NAMESPACE: &str = "alcazar-system";
const ACCOUNT: &str = "alcazar-ca";

/// Issues a serving certificate for a fresh key, by the same way as anybody's.
pub(crate) fn issue(
    hierarchy: &Hierarchy,
    trust_domain: &TrustDomain,
    dns: &[DnsName],
    profile: &Profile,
    now: SystemTime,
) -> Result<Serving, ServingError> {
    let id = SpiffeId::workload(trust_domain, NAMESPACE, ACCOUNT)?;
    let key = KeyPair::generate().map_err(ServingError::Generate)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(ServingError::Generate)?;
    let csr = Csr::from_der(request.der())?;
    let subject = Subject { id: &id, dns };
    let issued = issue::issue(&csr, subject, profile.default_ttl(), hierarchy.intermediate(), Serial::random()?, now)?;
    let svid = X509Svid::new(hierarchy.chain(&issued.certificate), SvidKey::from_pkcs8(key.serialize_der())?)?;
    Ok(Serving { credentials: Credentials::new(svid, hierarchy.bundles().clone()), issued })
}

impl Ca {
    /// Replaces the serving certificate at half of its life, or when it was revoked, until the end. A failure keeps the present one.
    pub(crate) async fn rotate_serving(self, shutdown: Shutdown) {
        loop {
            let due = rotation_due(self.0.serving.borrow().svid());
            let now = (self.0.clock)();
            let wait = due.duration_since(now).unwrap_or_default();
            tokio::select! {
                () = shutdown.cancelled() => return,
                // The clock may be set, and the machine may sleep: look at it again now and then.
                () = tokio::time::sleep(wait.min(LOOK)) => {}
            }
            let (hierarchy, serving) = (self.hierarchy(), self.0.serving.borrow().clone());
            let now = (self.0.clock)();
            // After a clock was set back: nobody believes a certificate of the future.
            let is_good = now >= serving.svid().validity().not_before();
            if now < due && is_good && !self.is_withdrawn(serving.svid()) && serving.bundles() == hierarchy.bundles() {
                continue;
            }
            if let Err(error) = self.renew_serving().await {
                tracing::error!(reason = %process::chain(&error), "the CA's serving certificate was not renewed; the present one stays");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }

    /// Whether this very certificate is: another one would be good.
    fn is_withdrawn(&self, svid: &X509Svid) -> bool {
        let (id, serial, not_before) = (svid.id(), svid.serial(), svid.validity().not_before());
        let revoked = self.revocations().of(&Proven { id, serial, not_before, issuers: &[] });
        revoked.is_some_and(|revoked| matches!(revoked.rule, RevokedBy::Serial(_)))
    }

    /// The same certificate, with what is believed now.
    pub(crate) fn serve_with_new_bundles(&self) {
        let bundles = self.hierarchy().bundles().clone();
        self.0.serving.send_modify(|serving| {
            let revocations = Arc::clone(serving.revocations());
            *serving = Arc::new(Credentials::new(serving.svid().clone(), bundles).with_revocations(revocations));
        });
    }

    pub(crate) async fn renew_serving(&self) -> Result<(), ServingError> {
        let (ca, hierarchy) = (self.clone(), self.hierarchy());
        // A signer may wait for a token.
        let serving = tokio::task::spawn_blocking(move || {
            let inner = &ca.0;
            issue(&hierarchy, ca.trust_domain(), &inner.dns_names, &inner.profile, (inner.clock)())
        });
        let serving = serving.await.map_err(|_ending| ServingError::Interrupted)??;
        self.record_serving(&serving.issued).await?;
        let issued = &serving.issued;
        tracing::info!(target: "alcazar::rotation", spiffe_id = %issued.id, serial = %issued.serial, not_after = %rfc3339(issued.validity.not_after()), "the CA's serving certificate was renewed");
        self.0.serving.send_replace(Arc::new(serving.credentials.with_revocations(self.revocations())));
        Ok(())
    }
}

impl Ca {
    /// Puts it on record, on a full disk in the room that is kept for it.
    async fn record_serving(&self, issued: &Issued) -> Result<(), ServingError> {
        let entry = Entry::Certificate { issued, caller: "ca" };
        match self.0.ledger.record(&entry).await {
            Err(LedgerError::Append(AppendError::DiskFull { .. })) => {}
            outcome => return Ok(outcome.map(drop)?),
        }
        let reserve = Arc::clone(&self.0.reserve);
        let lent = tokio::task::spawn_blocking(move || reserve.lend()).await;
        if let Err(error) = lent.map_err(|_ending| ServingError::Interrupted)? {
            tracing::warn!(%error, "the room that is kept for the CA's own certificate cannot be used");
        }
        let recorded = self.0.ledger.record(&entry).await;
        self.keep_reserve().await;
        Ok(recorded.map(drop)?)
    }

    /// Holds room on the disk for the next start and the next certificate, where there is some.
    pub(crate) async fn keep_reserve(&self) {
        let reserve = Arc::clone(&self.0.reserve);
        // It goes on without when the process is ending.
        drop(tokio::task::spawn_blocking(move || reserve.keep()).await);
    }
}

fn rotation_due(svid: &X509Svid) -> SystemTime {
    let issued_at = svid.validity().not_before() + issue::BACKDATE;
    issued_at + svid.validity().not_after().duration_since(issued_at).unwrap_or_default() / 2
}

/// Why there is no serving certificate.
#[derive(Debug, Error)]
pub enum ServingError {
    /// The trust domain is too long for an identity in it.
    #[error("the CA's own identity cannot be made")]
    Id(#[from] ParseSpiffeIdError),
    /// No key.
    #[error("cannot make a key")]
    Generate(#[source] rcgen::Error),
    /// The CA refused its own request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// It was not issued.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What was issued is not an SVID.
    #[error("what was issued is not an SVID")]
    Svid(#[from] ParseSvidError),
    /// The process is ending.
    #[error("it was interrupted")]
    Interrupted,
    /// It is not on record.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

const LOOK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(5);
