//! CRLs for those who check certificates by them, as stock Envoy does: heard from the CA, checked, and served all or none.

mod config;
mod judge;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{Crl, TrustBundles, TrustDomain};
use alcazar_mtls::Clock;
use alcazar_service::files::write_atomic;
use alcazar_service::process::chain;
use alcazar_service::{Part, Shutdown};
use prost::Message;
use tokio::sync::watch;

pub use config::CrlsConfig;
use judge::{Verdict, judge};

/// The CRLs of one trust domain that are served at a moment; none, where not all are here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Crls {
    of: Option<TrustDomain>,
    crls: Vec<Crl>,
}

impl Crls {
    /// All that there must be of a trust domain.
    pub fn new(of: TrustDomain, crls: Vec<Crl>) -> Self {
        Self { of: Some(of), crls }
    }

    /// Those of this trust domain.
    pub fn of(&self, trust_domain: &TrustDomain) -> &[Crl] {
        if self.of.as_ref() == Some(trust_domain) { &self.crls } else { &[] }
    }
}

/// Checks what the CA says of CRLs, and serves them while all are good.
pub(crate) struct CrlKeeper {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) file: CrlsFile,
    pub(crate) clock: Clock,
    /// What the CA says, as it arrives.
    pub(crate) said: watch::Receiver<Option<Arc<v1::Crls>>>,
    /// By which signatures are checked until the CA's are here: those of an earlier run.
    pub(crate) saved: TrustBundles,
    /// By which signatures are checked.
    pub(crate) bundles: watch::Receiver<Option<Arc<TrustBundles>>>,
    pub(crate) served: watch::Sender<Arc<Crls>>,
    pub(crate) part: Part,
}

impl CrlKeeper {
    /// Serves what an earlier run has saved, which counts until the CA has spoken, and returns what is to run until the shutdown. It is
    /// called before anybody is served: after a restart nobody is let in for a moment who is revoked.
    pub(crate) fn start(self, shutdown: Shutdown) -> impl Future<Output = ()> + use<> {
        let known = self.file.load().map(Arc::new);
        let mut told = None;
        let bundle = self.saved.get(&self.trust_domain);
        let verdict = known.as_ref().zip(bundle).map(|(said, bundle)| judge(said, bundle, (self.clock)()));
        self.serve(verdict, &mut told);
        self.keep(known, told, shutdown)
    }

    async fn keep(mut self, mut known: Option<Arc<v1::Crls>>, mut told: Option<String>, shutdown: Shutdown) {
        loop {
            let bundles = self.bundles.borrow_and_update().clone();
            let said = self.said.borrow_and_update().clone();
            if let Some(said) = said
                && known.as_ref() != Some(&said)
            {
                self.file.save(said.clone()).await;
                known = Some(said);
            }
            let bundle = bundles.as_deref().unwrap_or(&self.saved).get(&self.trust_domain);
            let now = (self.clock)();
            let verdict = known.as_ref().zip(bundle).map(|(said, bundle)| judge(said, bundle, now));
            let until = self.serve(verdict, &mut told);
            // Whatever the verdict is, time changes it, and so does a clock that is set.
            let left = until.map_or(LOOK, |until| until.duration_since(now).unwrap_or_default());
            let change = tokio::select! {
                change = self.said.changed() => change,
                change = self.bundles.changed() => change,
                () = tokio::time::sleep(left.clamp(SHORTEST, LOOK)) => Ok(()),
                () = shutdown.cancelled() => return,
            };
            if change.is_err() {
                return;
            }
        }
    }

    /// Serves what there is; until when.
    fn serve(&self, verdict: Option<Verdict>, told: &mut Option<String>) -> Option<SystemTime> {
        let (crls, until, reason) = match verdict {
            None => (Vec::new(), None, None),
            Some(Verdict::Served { crls, until }) => (crls, Some(until), None),
            Some(Verdict::Withheld { reason, wrong }) => (Vec::new(), None, Some((reason, wrong))),
        };
        match &reason {
            Some((reason, true)) => self.part.degraded(format!(
                "no CRLs are served, so whoever checks by them, as stock Envoy does, lets in what is revoked: {reason}"
            )),
            _ => self.part.ready(),
        }
        if let Some((reason, _)) = &reason
            && told.as_ref() != Some(reason)
        {
            tracing::warn!(target: "alcazar::revoked", reason, "no CRLs are served; certificates are checked without");
        }
        *told = reason.map(|(reason, _)| reason);
        let now = Crls::new(self.trust_domain.clone(), crls);
        let count = now.crls.len();
        let changed = self.served.send_if_modified(|held| {
            let changed = held.of(&self.trust_domain) != now.of(&self.trust_domain);
            if changed {
                *held = Arc::new(now);
            }
            changed
        });
        if changed && count > 0 {
            tracing::info!(target: "alcazar::revoked", crls = count, "CRLs are served");
        }
        until
    }
}

/// The file in which what the CA said is kept, in the folder of the agent's keys. It is checked whenever it is read.
#[derive(Debug, Clone)]
pub(crate) struct CrlsFile(PathBuf);

impl CrlsFile {
    pub(crate) fn within(data_dir: &Path) -> Self {
        Self(data_dir.join("crls.pb"))
    }

    fn load(&self) -> Option<v1::Crls> {
        let read = match std::fs::read(&self.0) {
            Ok(bytes) => v1::Crls::decode(bytes.as_slice()).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error),
        };
        read.inspect_err(|error| {
            tracing::warn!(target: "alcazar::revoked", file = %self.0.display(), %error, "the saved CRLs cannot be read; none are served until the CA says them again");
        })
        .ok()
    }

    async fn save(&self, said: Arc<v1::Crls>) {
        let path = self.0.clone();
        let written = tokio::task::spawn_blocking(move || write_atomic(&path, &said.encode_to_vec(), 0o600)).await;
        if let Err(error) = written.map_err(io::Error::other).and_then(|written| written) {
            tracing::warn!(file = %self.0.display(), reason = chain(&error), "the CRLs could not be saved; they are served all the same");
        }
    }
}

const SHORTEST: Duration = Duration::from_millis(10);
/// How often they are judged anew.
const LOOK: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
